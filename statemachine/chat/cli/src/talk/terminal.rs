//! The terminal: a line that is edited, a line of status above it, and everything else above both.
//!
//! rustyline edits, on a thread of its own. What is to be shown waits here until rustyline draws its prompt the next time,
//! and is then drawn in front of it, at once with it: so nothing is drawn twice or lost, even if the user ends the line at
//! that moment. A message to rustyline's external printer makes it draw; it moves the cursor up a row and down again.

use std::{
    borrow::Cow,
    collections::BTreeSet,
    io::{self, Write as _},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc as threads},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use rustyline::{
    CompletionType, Config, Context, Editor, ExternalPrinter as _, Helper,
    completion::Completer,
    config::BellStyle,
    error::ReadlineError,
    highlight::{CmdKind, Highlighter},
    hint::Hinter,
    history::MemHistory,
    validate::Validator,
};
use tokio::sync::mpsc;
use unicode_width::UnicodeWidthChar as _;

use super::{Event, input::Input, words::COMMANDS};

/// Lines that the arrow keys bring back. They are kept in memory only: what people wrote is nobody else's business.
const HISTORY_MAX: usize = 1_000;
/// How often it is told that the line changes.
const EDITING_EVERY: Duration = Duration::from_millis(500);
/// The row of status, as rustyline measures it; what is drawn there is at most as wide as the terminal.
const STATUS_ROW: &str = " \n";
/// Up a row, and down again: rustyline ends every message with a new row unless it ends with one.
const NUDGE: &str = "\x1b[A\n";
const ROW_COLUMNS: usize = 80;

/// What is drawn, and what is to be.
#[derive(Default)]
struct Drawn {
    /// Whether rustyline has the terminal.
    editing: bool,
    /// Whether it was told to draw, and hasn't yet.
    nudged: bool,
    /// Rows that belong above the line, each with its end.
    waiting: String,
    status: String,
    /// The line as it is edited, and the cursor's place in it.
    line: String,
    cursor: usize,
    prompt: String,
    names: BTreeSet<String>,
    told: Option<Instant>,
}

/// The terminal of a talk.
pub(super) struct Terminal {
    /// As it was, for the end.
    mode: Termios,
    drawn: Arc<Mutex<Drawn>>,
    nudge: threads::Sender<()>,
    prompts: threads::Sender<String>,
}

fn lock(drawn: &Mutex<Drawn>) -> MutexGuard<'_, Drawn> {
    drawn.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a person at a terminal can edit lines here.
pub(super) fn is_there() -> bool {
    use io::IsTerminal as _;
    let dumb = std::env::var("TERM").is_ok_and(|term| ["dumb", "cons25", "emacs"].contains(&term.as_str()));
    io::stdin().is_terminal() && io::stdout().is_terminal() && !dumb
}

impl Terminal {
    /// Takes the terminal. Lines come as events, each after [`Terminal::ask`].
    pub(super) fn start(colours: bool, events: mpsc::Sender<Event>) -> anyhow::Result<Self> {
        let config = Config::builder()
            .max_history_size(HISTORY_MAX)
            .context("the history")?
            .auto_add_history(true)
            .completion_type(CompletionType::List)
            .bell_style(BellStyle::None)
            // The prompt carries what is to be shown, so it is always drawn by us.
            .color_mode(rustyline::ColorMode::Forced)
            .build();
        let drawn = Arc::new(Mutex::new(Drawn::default()));
        let mut editor = Editor::with_history(config.clone(), MemHistory::with_config(&config))
            .context("cannot edit lines at this terminal")?;
        editor.set_helper(Some(Line { drawn: Arc::clone(&drawn), colours, events: events.clone() }));
        let mut printer = editor.create_external_printer().context("cannot draw at this terminal")?;
        let (nudge, nudges) = threads::channel();
        // Apart from the others: it waits while rustyline is busy.
        thread::spawn(move || nudges.iter().all(|()| printer.print(NUDGE.to_owned()).is_ok()));
        let mode = tcgetattr(io::stdin()).context("cannot ask the terminal for its mode")?;
        let (prompts, asked) = threads::channel();
        let edited = Arc::clone(&drawn);
        thread::spawn(move || edit(&mut editor, &edited, &asked, &events));
        Ok(Self { mode, drawn, nudge, prompts })
    }

    /// Lets the user edit the next line.
    pub(super) fn ask(&self, prompt: &str) {
        let _ = self.prompts.send(format!("{STATUS_ROW}{prompt}")); // else the line's end has been told
    }

    /// Shows a row above the line.
    pub(super) fn show(&self, row: &str) {
        let mut drawn = lock(&self.drawn);
        drawn.waiting.push_str(row);
        drawn.waiting.push('\n');
        if drawn.editing { self.draw(drawn) } else { flush(&mut drawn) }
    }

    /// Gives the terminal back, in the middle of a line if need be.
    pub(super) fn leave(&self) {
        let mut drawn = lock(&self.drawn);
        if std::mem::replace(&mut drawn.editing, false) {
            let above = drawn.line.get(..drawn.cursor).unwrap_or_default();
            let up = match rows(&format!("{}{above}", drawn.prompt), columns()) {
                0 => String::new(),
                rows => format!("\x1b[{rows}A"),
            };
            // Bracketed paste off, and up to where the prompt begins.
            let _ = write!(io::stdout(), "\x1b[?2004l{up}\r\x1b[J");
            let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &self.mode);
        }
        flush(&mut drawn);
    }

    /// Shows this status.
    pub(super) fn status(&self, status: &str) {
        let mut drawn = lock(&self.drawn);
        if drawn.status != status {
            status.clone_into(&mut drawn.status);
            if drawn.editing {
                self.draw(drawn);
            }
        }
    }

    /// Offers these names for completion.
    pub(super) fn names<'a>(&self, names: impl Iterator<Item = &'a String>) {
        lock(&self.drawn).names = names.cloned().collect();
    }

    fn draw(&self, mut drawn: MutexGuard<'_, Drawn>) {
        if !drawn.nudged {
            drawn.nudged = true;
            let _ = self.nudge.send(()); // else nothing is drawn any more, and what waits is flushed
        }
    }
}

/// Edits line after line.
fn edit(
    editor: &mut Editor<Line, MemHistory>,
    drawn: &Mutex<Drawn>,
    asked: &threads::Receiver<String>,
    events: &mpsc::Sender<Event>,
) {
    while let Ok(prompt) = asked.recv() {
        {
            let mut drawn = lock(drawn);
            (drawn.editing, drawn.nudged) = (true, false);
            (drawn.line, drawn.cursor, drawn.told) = (String::new(), 0, None);
            prompt.clone_into(&mut drawn.prompt);
        }
        let edited = editor.readline(&prompt);
        {
            let mut drawn = lock(drawn);
            drawn.editing = false;
            // After a line the cursor is below its end, else below its place in it.
            let above = match &edited {
                Ok(line) => format!("{prompt}{line}"),
                Err(_) => format!("{prompt}{}", drawn.line.get(..drawn.cursor).unwrap_or_default()),
            };
            let _ = write!(io::stdout(), "\x1b[{}A\r\x1b[J", rows(&above, columns()) + 1);
            flush(&mut drawn);
        }
        let input = match edited {
            Ok(line) => Input::Line(line),
            Err(ReadlineError::Interrupted) => Input::Cleared,
            Err(ReadlineError::Eof) => Input::End,
            Err(error) => Input::Failed(anyhow::Error::new(error).context("cannot read the terminal")),
        };
        if events.blocking_send(Event::Input(input)).is_err() {
            return;
        }
    }
}

/// Writes what waits. For when rustyline doesn't have the terminal.
fn flush(drawn: &mut Drawn) {
    let mut out = io::stdout();
    let _ = out.write_all(drawn.waiting.as_bytes()).and_then(|()| out.flush()); // nobody is left to show it to
    drawn.waiting.clear();
}

fn columns() -> usize {
    let size = tcgetwinsize(io::stdout());
    size.ok().map(|size| usize::from(size.ws_col)).filter(|&columns| columns > 0).unwrap_or(ROW_COLUMNS)
}

/// How many rows below its first one a text ends, as rustyline counts them.
fn rows(text: &str, columns: usize) -> usize {
    let (mut row, mut column) = (0, 0);
    for c in text.chars() {
        if c == '\n' {
            (row, column) = (row + 1, 0);
            continue;
        }
        let width = if c == '\t' { 8 - column % 8 } else { c.width().unwrap_or(0) };
        column += width;
        if column > columns {
            (row, column) = (row + 1, width);
        }
    }
    if column == columns { row + 1 } else { row }
}

/// As much of a text as fits into one row.
fn fit(text: &str, columns: usize) -> &str {
    let mut used = 0;
    let end = text.char_indices().find(|(_, c)| {
        used += c.width().unwrap_or(0);
        used >= columns
    });
    end.map_or(text, |(end, _)| &text[..end])
}

/// What rustyline asks about its line.
struct Line {
    drawn: Arc<Mutex<Drawn>>,
    colours: bool,
    events: mpsc::Sender<Event>,
}

impl Line {
    fn edited(&self, line: &str, cursor: usize) {
        let mut drawn = lock(&self.drawn);
        let changed = drawn.line != line;
        line.clone_into(&mut drawn.line);
        drawn.cursor = cursor;
        if changed && drawn.told.is_none_or(|told| told.elapsed() >= EDITING_EVERY) {
            drawn.told = Some(Instant::now());
            let _ = self.events.try_send(Event::Input(Input::Editing(line.to_owned()))); // the next change tells it
        }
    }
}

impl Helper for Line {}

impl Validator for Line {}

impl Hinter for Line {
    type Hint = String;

    /// Gives no hint; it is how rustyline tells that the line has changed.
    fn hint(&self, line: &str, cursor: usize, _: &Context<'_>) -> Option<String> {
        self.edited(line, cursor);
        None
    }
}

impl Highlighter for Line {
    /// Draws the prompt, with all that waits above it.
    fn highlight_prompt<'b, 's: 'b, 'p: 'b>(&'s self, prompt: &'p str, _default: bool) -> Cow<'b, str> {
        let Some(prompt) = prompt.strip_prefix(STATUS_ROW) else { return prompt.into() }; // a search in the history
        let mut drawn = lock(&self.drawn);
        drawn.nudged = false;
        let mut text = std::mem::take(&mut drawn.waiting);
        let status = fit(&drawn.status, columns());
        let (dim, bold) = match self.colours {
            true => (anstyle::Style::new().dimmed(), anstyle::Style::new().bold()),
            false => <(anstyle::Style, anstyle::Style)>::default(),
        };
        text.push_str(&format!("{dim}{status}{dim:#}\n{bold}{prompt}{bold:#}"));
        text.into()
    }

    /// Highlights nothing; it is how rustyline tells that the cursor has moved.
    fn highlight_char(&self, line: &str, cursor: usize, _: CmdKind) -> bool {
        self.edited(line, cursor);
        false
    }
}

impl Completer for Line {
    type Candidate = String;

    fn complete(&self, line: &str, cursor: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        let names = &lock(&self.drawn).names;
        Ok(complete(&line[..cursor], names))
    }
}

/// What a line up to the cursor can go on with: where, and how.
fn complete(line: &str, names: &BTreeSet<String>) -> (usize, Vec<String>) {
    let named = |prefix: &str, end: &str| {
        let found = names.iter().filter(|name| name.starts_with(prefix)).map(|name| format!("{name}{end}"));
        (line.len() - prefix.len(), found.collect())
    };
    if let Some(name) = line.strip_prefix("/to ") {
        named(name, "")
    } else if let Some(name) = line.strip_prefix('@').filter(|name| !name.contains(' ')) {
        named(name, " ")
    } else if line.starts_with('/') {
        (0, COMMANDS.iter().filter(|command| command.starts_with(line)).map(|&command| command.to_owned()).collect())
    } else {
        (line.len(), Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_counted_as_they_are_drawn() {
        for (text, expected) in [
            ("", 0),
            (" \n> ", 1),
            (" \n> 12345678", 2),
            (" \n> 1234567", 1),
            (" \n> 123456789", 2),
            (" \n> 漢字漢字", 2),
            ("\n\n", 2),
        ] {
            assert_eq!(rows(text, 10), expected, "{text:?}");
        }
    }

    #[test]
    fn a_status_never_fills_its_row() {
        assert_eq!(fit("alice · 2 unread", 80), "alice · 2 unread");
        assert_eq!(fit("alice", 5), "alic");
        assert_eq!(fit("漢字漢字", 5), "漢字");
        assert_eq!(fit("漢字漢字", 4), "漢");
    }

    #[test]
    fn commands_and_names_are_completed() {
        let names = ["bob", "bobby", "eve"].map(str::to_owned).into();
        let complete = |line: &str| complete(line, &names);
        assert_eq!(complete("/read"), (0, vec!["/read ".to_owned()]));
        assert_eq!(complete("/re"), (0, vec!["/react ".to_owned(), "/read ".to_owned()]));
        assert_eq!(complete("@bob"), (1, vec!["bob ".to_owned(), "bobby ".to_owned()]));
        assert_eq!(complete("/to e"), (4, vec!["eve".to_owned()]));
        assert_eq!(complete("hello @e").1, [""; 0]);
    }
}

//! Printing: tables, colour that obeys NO_COLOR and pipes, JSON.

use std::{
    io::{self, Write},
    time::Duration,
};

use anstyle::{AnsiColor, Style};
use comfy_table::{Table, presets};

/// What a command prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// A colour; `{style}text{style:#}`. anstream drops it where it isn't wanted.
pub(super) const fn paint(colour: AnsiColor) -> Style {
    Style::new().fg_color(Some(anstyle::Color::Ansi(colour)))
}

/// A table without lines, its head in capitals.
pub(super) fn table(head: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(head.iter().map(|name| name.to_uppercase()));
    table
}

/// The lines of a table, without trailing blanks.
pub(super) fn table_text(table: &mut Table) -> String {
    table.column_iter_mut().for_each(|column| {
        column.set_padding((0, 2));
    });
    table.to_string().lines().fold(String::new(), |text, line| text + line.trim_end() + "\n")
}

/// Prints a table.
pub(super) fn print_table(table: &mut Table) -> io::Result<()> {
    anstream::stdout().lock().write_all(table_text(table).as_bytes())
}

/// Prints a value as JSON.
pub(super) fn print_json(value: &serde_json::Value) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value).map_err(io::Error::from)?;
    writeln!(out)?;
    Ok(())
}

/// Prints a value as JSON on one line.
pub(super) fn print_json_line(value: &serde_json::Value) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, value).map_err(io::Error::from)?;
    writeln!(out)?;
    Ok(out.flush()?)
}

/// Says something beside the result, on standard error.
pub(super) fn note(format: Format, text: &str) {
    // A closed standard error is no reason to fail.
    let _ = match format {
        Format::Json => writeln!(io::stderr(), "{}", serde_json::json!({ "note": { "message": text } })),
        Format::Table => {
            let yellow = paint(AnsiColor::Yellow);
            writeln!(anstream::stderr(), "{yellow}note:{yellow:#} {text}")
        }
    };
}

/// Whether the reader of our output has gone, which is none of our business.
pub(super) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe))
}

/// A number of seconds above 0, as an argument.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    // Clocks can't count further; nobody waits longer than a century.
    let sensible = |time: &Duration| *time >= Duration::from_millis(1) && *time < Duration::from_secs(3_000_000_000);
    seconds.filter(sensible).ok_or_else(|| "expected a number of seconds, at least 0.001, such as 2 or 0.5".to_owned())
}

/// `1.5 MiB`.
pub(super) fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut value = n as f64;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// `1 node`, `3 nodes`.
pub(super) fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// Lower-case hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1_023), "1023 B");
        assert_eq!(bytes(1_572_864), "1.5 MiB");
    }

    #[test]
    fn seconds_are_positive_and_finite() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for bad in ["", "0", "-1", "0.0001", "NaN", "inf", "1e300", "1s"] {
            assert!(seconds(bad).is_err(), "{bad:?} was taken");
        }
    }
}

//! Talking: lines that are typed go out, messages that are pushed come in, at the same time.
//!
//! ```text
//! terminal | input ──lines──▶ Talk ──jobs──▶ desk ──▶ session: each request until it has an outcome
//!                    view ◀───┘ ▲▲ ◀──done─────┘
//!                               │└─── feed: pushed events; every few seconds, who answers and what is unread
//!                               └──── people: notices that pass
//! ```
//!
//! Everything that happens becomes an [`Event`], and [`Talk`] alone decides what it means. A message is shown, then marked
//! read, then the place in the events is saved: as with `chat listen`, a talk that is killed in between shows it again.

mod answer;
mod desk;
mod enter;
mod feed;
mod input;
mod line;
mod people;
mod shown;
mod take;
mod terminal;
mod view;
mod words;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use anyhow::Result;
use replicator_client::{Client, Cursor, SavedSession, Session};
use replicator_proto::chat::v1::{Presence, chat_push};
use serde_json::json;
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior},
};

use self::{
    desk::{Desk, Done, Job},
    feed::{Fed, Pulse, Task},
    input::Input,
    people::{Notices, People},
    shown::Shown,
    view::View,
};
use crate::{
    args::Global,
    failure::{not_logged_in, usage},
    keys::AccountKey,
    output::visible,
};

/// Jobs that wait at the desk. Lines are asked for only while there is room.
const JOBS_MAX: usize = 64;
/// Lines that may be on their way at once, at a terminal.
const LINES_MAX: usize = 32;
/// Events that wait to be taken.
const EVENTS_MAX: usize = 256;
/// How often it is looked what has become late.
const TICK: Duration = Duration::from_millis(250);
/// After so long without an answer, the user is told that a line is on its way.
const SLOW: Duration = Duration::from_secs(2);
/// How long those who are here have to say so.
const ROLL_CALL: Duration = Duration::from_secs(1);

/// What happens in a talk.
enum Event {
    Input(Input),
    /// With the life that it is of: what comes late from an earlier session says nothing about this one.
    Fed(Life, Fed),
    Pulse(Life, Result<Pulse>),
    Done(Box<Done>),
}

/// Talks until the user has had enough.
///
/// # Errors
/// If there is no login to talk with, if it ends and can't be had again, or if a line of a script failed.
pub(super) async fn talk(global: &Global) -> Result<()> {
    if global.vote {
        return Err(usage("--vote is for single commands, as `chat --vote send NAME TEXT`"));
    }
    let enter::Entered { account, unread, key } = enter::enter(global).await?;
    let (sender, mut events) = mpsc::channel(EVENTS_MAX);
    let (client, session) = (account.client.clone(), account.session.saved());
    let name = account.name.clone();
    let jobs = Desk::start(account, global, sender.clone());
    let view = View::start(global, sender.clone())?;
    let mut talk = Talk {
        live: Live::start(0, &client, &session, &name, &sender),
        view,
        name,
        key,
        client,
        jobs,
        events: sender,
        session,
        partner: None,
        unread,
        people: People::default(),
        shown: Shown::default(),
        held: None,
        unmarked: Vec::new(),
        cursor: None,
        marking: false,
        renewing: false,
        logged_out: false,
        under_way: 0,
        since: VecDeque::new(),
        told_slow: false,
        for_login: VecDeque::new(),
        roll_call: None,
        node: None,
        lost: false,
        began: false,
        asked: false,
        ending: false,
        failed: 0,
        end: None,
    };
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while talk.end.is_none() {
        let taken = tokio::select! {
            event = events.recv() => match event {
                Some(event) => talk.take(event),
                None => break,
            },
            _ = ticks.tick() => talk.tick(),
        };
        if let Err(error) = taken {
            talk.end = Some(Err(error));
        }
        talk.go_on();
    }
    talk.finish().await
}

/// Counts the sessions of a talk.
type Life = u32;

/// What listens and speaks for one session.
struct Live {
    life: Life,
    notices: Notices,
    _feed: Task,
    _pulse: Task,
    _alive: replicator_client::KeepAlive,
}

impl Live {
    fn start(life: Life, client: &Client, session: &SavedSession, account: &str, events: &mpsc::Sender<Event>) -> Self {
        let resume = || Session::resume(client, session.clone()); // none of them uses a number
        Self {
            notices: Notices::start(client, resume()),
            _feed: feed::listen(life, client, resume(), events.clone()),
            _pulse: feed::pulse(life, client, resume(), account.to_owned(), events.clone()),
            life,
            _alive: resume().keep_alive_in_background(),
        }
    }
}

/// A talk.
struct Talk {
    view: View,
    live: Live,
    jobs: mpsc::Sender<Job>,
    events: mpsc::Sender<Event>,
    client: Client,
    session: SavedSession,
    name: String,
    key: Option<Arc<AccountKey>>,
    /// Whom the user talks with.
    partner: Option<String>,
    people: People,
    /// Unread messages that were not shown here.
    unread: u64,
    shown: Shown,
    /// Events that came while older messages were being fetched, or will be.
    held: Option<Vec<(chat_push::Event, Option<Cursor>)>>,
    /// Shown, and not yet marked read.
    unmarked: Vec<u64>,
    /// How far the events were shown, if that isn't saved yet.
    cursor: Option<Cursor>,
    marking: bool,
    renewing: bool,
    /// Whether there is no login until the user has logged in.
    logged_out: bool,
    /// Jobs that lines have asked for, and that aren't done.
    under_way: usize,
    /// Since when each of them is.
    since: VecDeque<Instant>,
    told_slow: bool,
    /// Jobs that wait for a login.
    for_login: VecDeque<Job>,
    /// When it is told who is here.
    roll_call: Option<Instant>,
    /// The node that answered last.
    node: Option<String>,
    /// Whether no server answers.
    lost: bool,
    /// Whether the last messages were shown.
    began: bool,
    /// Whether a line was asked for.
    asked: bool,
    /// Whether the user has said all.
    ending: bool,
    /// Lines that failed.
    failed: usize,
    /// How it ends, once it does.
    end: Option<Result<()>>,
}

impl Talk {
    /// What may be done next: ask for a line, mark what was shown, end.
    fn go_on(&mut self) {
        self.mark();
        let room = if self.view.is_terminal() { LINES_MAX } else { 1 };
        let ready = self.began && self.under_way + self.for_login.len() < room && self.roll_call.is_none();
        if ready && !self.asked && !self.ending {
            self.asked = true;
            self.view.ask(&self.prompt());
        }
        let waits = !self.for_login.is_empty() && !self.logged_out;
        // While no server answers, what may have come isn't waited for.
        let fetching = self.held.is_some() && !self.lost;
        let quiet = self.under_way == 0 && !self.marking && !waits && !fetching && self.roll_call.is_none();
        if self.ending && quiet && self.end.is_none() {
            self.end = Some(Ok(()));
        }
        let (people, now) = (&mut self.people, std::time::Instant::now());
        self.view.status(|| {
            let mut status = format!("{} · {} unread", visible(&self.name), self.unread);
            if let Some(node) = &self.node {
                status.push_str(&format!(" · at {node}"));
            }
            if self.lost {
                status.push_str(" · no server answers, trying again");
            }
            if self.logged_out {
                status.push_str(" · logged out, /login goes on");
            }
            if self.told_slow {
                status.push_str(&format!(" · {} on the way", self.under_way));
            }
            for name in people.typing(now) {
                status.push_str(&format!(" · {} is typing…", visible(name)));
            }
            status
        });
    }

    fn prompt(&self) -> String {
        match &self.partner {
            Some(partner) => format!("to {}: ", visible(partner)),
            None => "> ".to_owned(),
        }
    }

    /// Gives the desk a job. There is room: lines are asked for only then, and the other jobs are few.
    fn give(&mut self, job: Job) {
        if self.jobs.try_send(job).is_err() {
            self.end.get_or_insert_with(|| Err(anyhow::anyhow!("this program has lost count of its jobs")));
        }
    }

    /// Gives the desk a job that a line asks for.
    fn ask(&mut self, job: Job) {
        self.under_way += 1;
        self.since.push_back(Instant::now());
        self.give(job);
    }

    /// Has what was shown marked read, and the place saved.
    fn mark(&mut self) {
        if self.marking || self.renewing || self.logged_out || (self.unmarked.is_empty() && self.cursor.is_none()) {
            return;
        }
        self.marking = true;
        let count = self.unmarked.len().min(1_000);
        let message_ids = self.unmarked.drain(..count).collect();
        // The place is saved with the last of what was shown up to it.
        let cursor = if self.unmarked.is_empty() { self.cursor.take() } else { None };
        self.give(Job::Mark { message_ids, cursor, shown_id: self.shown.last() });
    }

    /// Finds another login, or makes one.
    fn renew(&mut self) {
        if !self.renewing {
            self.renewing = true;
            self.give(Job::Renew { gone: self.session.id, key: self.key.clone() });
        }
    }

    /// What has become late.
    fn tick(&mut self) -> Result<()> {
        let now = Instant::now();
        if !self.told_slow && self.since.front().is_some_and(|since| now.duration_since(*since) > SLOW) {
            self.told_slow = true;
            let json = json!({ "under_way": self.under_way });
            self.view.note("slow", json, "no answer yet; it is tried again until one comes, and done once")?;
        }
        if self.roll_call.is_some_and(|at| now >= at) {
            self.roll_call = None;
            self.tell_who()?;
        }
        Ok(())
    }

    fn tell_who(&self) -> Result<()> {
        let here: Vec<&String> = self.people.here().collect();
        let away: Vec<&String> = self.people.known().filter(|name| !here.contains(name)).collect();
        let names = |names: &[&String]| match names {
            [] => "nobody".to_owned(),
            names => names.iter().map(|name| visible(name)).collect::<Vec<_>>().join(", "),
        };
        let node = self.node.as_deref().unwrap_or("no server yet");
        let text = format!(
            "{}, {} unread, at {node}. Here: {}. Not here: {}",
            visible(&self.name),
            self.unread,
            names(&here),
            names(&away)
        );
        let json = json!({
            "account": self.name, "unread": self.unread, "node": self.node, "here": here, "not_here": away,
        });
        self.view.show("who", json, &text)
    }

    /// Says goodbye.
    async fn finish(mut self) -> Result<()> {
        for job in std::mem::take(&mut self.for_login) {
            self.failed += 1;
            self.view.failed(&job.undone(), &not_logged_in("the login has ended"))?;
        }
        self.view.leave();
        self.people.announce(Presence::Gone, false, &self.live.notices);
        self.live.notices.finish().await;
        match self.end.take() {
            Some(Ok(())) if self.failed > 0 && !self.view.is_terminal() => {
                Err(anyhow::anyhow!("lines that failed: {}", self.failed))
            }
            Some(end) => end,
            None => Ok(()),
        }
    }
}

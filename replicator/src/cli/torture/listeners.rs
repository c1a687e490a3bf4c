//! Those who read and those who subscribe while the writers write.

use std::time::Duration;

use anyhow::{Context as _, anyhow};
use replicator_client::{Consistency, Cursor, Error, LogIndex, Subscription};

use super::{
    account::Pushed,
    world::World,
    writers::{DEADLINE, name},
};
use crate::cli::journal::Runs;

/// How long a read is tried. Shorter than a node stands still: then reads wait at a stopped node that began after others had already written
/// without it, and are answered when it goes on.
const READ_DEADLINE: Duration = Duration::from_millis(300);
/// Between two reads of one reader.
const READ_PACE: Duration = Duration::from_millis(10);
/// Events that a subscriber asks for again when it goes on at another node.
const REPEATED: usize = 3;
/// How long a subscriber searches at a time while its node is away.
const SEARCH: Duration = Duration::from_millis(500);

/// How a reader reads.
#[derive(Debug, Clone)]
pub(super) struct Reading {
    /// At this one.
    pub(super) node: usize,
    /// Its name.
    pub(super) node_id: String,
    /// Over streams, or by unary calls.
    pub(super) streams: bool,
    pub(super) consistency: Consistency,
}

impl Reading {
    /// The reader's name.
    pub(super) fn name(&self) -> String {
        format!("{} ({})", self.node_id, if self.streams { "streams" } else { "unary calls" })
    }
}

/// Reads one writer after the other at one node, until the word to stop. A read that isn't answered in time proves nothing.
pub(super) async fn read(world: World, how: Reading, writers: usize) -> anyhow::Result<()> {
    let reader = how.name();
    let Reading { node, node_id, streams, consistency } = how;
    let new_client = || world.client_of(node).deadline(READ_DEADLINE).streams(streams).build();
    let mut client = new_client()?;
    for turn in node.. {
        if world.is_stopped() {
            break;
        }
        let writer = turn % writers;
        let read = world.account().read_begins(writer);
        match client.query(Runs::query(&name(writer)), consistency, None).await {
            Ok(answer) => {
                let seen = Runs::parse(&answer.response)?;
                let mut account = world.account();
                account.read_ends(read, &answer.node_id, answer.log_index.0, &seen);
                if answer.node_id == node_id {
                    account.reader_was_answered(&reader);
                } else {
                    client = new_client()?; // It was referred to the primary, and would stay there.
                }
            }
            Err(Error::Unavailable { .. } | Error::OutcomeUnknown { .. }) => {}
            Err(error) => return Err(anyhow!(error).context(format!("a read at {}", world.endpoints[node]))),
        }
        tokio::time::sleep(READ_PACE).await;
    }
    Ok(())
}

/// A subscription to a writer's topic, from now on.
pub(super) async fn subscribe(world: &World, writer: usize) -> anyhow::Result<Listener> {
    let client = world.client_of(writer).deadline(DEADLINE).build()?;
    let topic = format!("journal/{}", name(writer));
    let mut events = client.subscribe(None, [&topic], None);
    let begin = events.established().await.context("can't subscribe")?;
    Ok(Listener { world: world.clone(), writer, topic, begin, events, turn: writer })
}

/// Someone who must be given each of a writer's events.
pub(super) struct Listener {
    world: World,
    writer: usize,
    topic: String,
    begin: Cursor,
    events: Subscription,
    turn: usize,
}

impl Listener {
    /// Listens until it is stopped from outside; goes on at another node each time that it is told to.
    pub(super) async fn listen(mut self) -> anyhow::Result<()> {
        let mut moves = self.world.moves.clone();
        loop {
            tokio::select! {
                event = self.events.next() => match event {
                    Some(Ok(push)) => self.note(&push)?,
                    Some(Err(Error::Unavailable { .. })) => {} // Its node is away; the next call tries again.
                    Some(Err(error)) => return Err(anyhow!(error).context(format!("the subscriber to {}", self.topic))),
                    None => return Err(anyhow!("the subscription to {} has ended", self.topic)),
                },
                moved = moves.changed() => match moved {
                    Ok(()) => self.go_on_elsewhere()?,
                    Err(_) => return Ok(()),
                },
            }
        }
    }

    fn note(&self, push: &replicator_client::Push) -> anyhow::Result<()> {
        let text = String::from_utf8_lossy(&push.payload);
        let number = text.strip_prefix(&name(self.writer)).and_then(|number| number.trim_start().parse().ok());
        let number = number.with_context(|| format!("{} brought {text:?}", self.topic))?;
        let cursor = (push.cursor.log_index.0, push.cursor.ordinal);
        self.world.account().pushed(self.writer, Pushed { cursor, number });
        Ok(())
    }

    fn go_on_elsewhere(&mut self) -> anyhow::Result<()> {
        self.turn += 1;
        let back = self.world.account().goes_back(self.writer, REPEATED);
        let after = back.map_or(self.begin, |(log_index, ordinal)| Cursor {
            lineage: self.begin.lineage,
            log_index: LogIndex(log_index),
            ordinal,
        });
        // A new client, which knows that node alone, whatever earlier ones were referred to.
        let client = self.world.client_of(self.turn).deadline(SEARCH).build()?;
        self.events = client.subscribe(None, [&self.topic], Some(after));
        Ok(())
    }
}

//! Everything in short lines.

use replicator_chain::{Command, CoordinatorEffect, Effect, LogEntry, Message, Promise, Record, Role, Wish};
use replicator_types::{DiskId, Position};

use crate::{disk::length, world::World};

/// A disk's node; with the disk's number, if the node has another one by now.
pub(crate) fn disk(world: &World, disk: DiskId) -> String {
    match world.owners.get(&disk) {
        Some(&node) if world.nodes[node].disk.id == disk => world.nodes[node].name.clone(),
        Some(&node) => format!("{}'s old disk", world.nodes[node].name),
        None => disk.to_string(),
    }
}

pub(crate) fn at(position: Option<Position>) -> String {
    position.map_or("-".into(), |position| position.to_string())
}

/// `3 x e1, 2 x e4`: how many entries of which epoch.
pub(crate) fn log(entries: &[LogEntry]) -> String {
    let mut runs: Vec<(u64, usize)> = Vec::new();
    for entry in entries {
        match runs.last_mut() {
            Some((epoch, count)) if *epoch == entry.position.epoch.0 => *count += 1,
            _ => runs.push((entry.position.epoch.0, 1)),
        }
    }
    let runs: Vec<String> = runs.iter().map(|(epoch, count)| format!("{count} of e{epoch}")).collect();
    if runs.is_empty() { "empty".into() } else { runs.join(" + ") }
}

/// `n1(primary) → n2 → n3(tail)  epoch 4  start 5@3`.
pub(crate) fn chain(world: &World, record: &Record) -> String {
    let Some(configuration) = &record.configuration else { return "no chain".into() };
    let last = configuration.chain.len() - 1;
    let members = configuration.chain.iter().enumerate().map(|(i, life)| {
        let role = match i {
            0 => "(primary)",
            i if i == last => "(tail)",
            _ => "",
        };
        format!("{}{role}", disk(world, life.disk))
    });
    let members: Vec<String> = members.collect();
    format!("{}  epoch {}  start {}", members.join(" → "), configuration.epoch, at(configuration.start))
}

pub(crate) fn command(world: &World, command: &Command) -> String {
    match command {
        Command::Found { .. } => "found".into(),
        Command::Attempt { epoch, by } => format!("attempt to leave epoch {epoch}, by {}", disk(world, by.0)),
        Command::Configure { epoch, attempt, chain, start } => {
            let chain: Vec<String> = chain.iter().map(|life| disk(world, life.disk)).collect();
            format!("configure {} after epoch {epoch} by attempt {attempt}, start {}", chain.join(" → "), at(*start))
        }
    }
}

fn promise(promise: Promise) -> String {
    format!("({}, {})", promise.epoch, promise.attempt)
}

fn entries(entries: &[LogEntry]) -> String {
    let texts = entries.iter().map(|entry| format!("{} {}", entry.position, String::from_utf8_lossy(&entry.payload)));
    format!("[{}]", texts.collect::<Vec<_>>().join(", "))
}

pub(crate) fn message(world: &World, message: &Message) -> String {
    match message {
        Message::Append { epoch, previous, entries: some, commit, barrier } => {
            let some = if some.is_empty() { "nothing".into() } else { entries(some) };
            format!("append e{epoch} {some} after {}, commit {}, barrier {barrier}", at(*previous), at(*commit))
        }
        Message::Acknowledged { epoch, received, durable, barrier, gap } => {
            let gap = if *gap { ", gap" } else { "" };
            format!(
                "acknowledged e{epoch} received {}, durable {}, barrier {barrier}{gap}",
                at(*received),
                at(*durable)
            )
        }
        Message::Seal { configuration, attempt } => format!("seal ({}, {attempt})", configuration.epoch),
        Message::Sealed { promise: p, last, .. } => format!("sealed {}, ends at {}", promise(*p), at(*last)),
        Message::Equalise { promise: p, target, source } => {
            format!("equalise {} to {} from {}", promise(*p), at(*target), disk(world, *source))
        }
        Message::Equal { promise: p, last, .. } => format!("equal {} at {}", promise(*p), at(*last)),
        Message::Fetch { epoch, attempt, last, .. } => {
            let what = attempt.map_or("committed".into(), |attempt| format!("for attempt {attempt}"));
            format!("fetch e{epoch} {what} after {}", at(*last))
        }
        Message::Fetched { epoch, previous, entries: some, commit, .. } => {
            format!("fetched e{epoch} {} after {}, commit {}", entries(some), at(*previous), at(*commit))
        }
        Message::Purged { epoch, through, .. } => format!("purged e{epoch} through {through}"),
        Message::Beat { epoch, last, commit, .. } => {
            format!("beat e{epoch} ends at {}, commit {}", at(*last), at(*commit))
        }
        Message::Configured { configuration } => format!("configured e{}", configuration.epoch),
    }
}

/// Heartbeats are left out.
pub(crate) fn is_news(message: &Message) -> bool {
    !matches!(message, Message::Beat { .. })
}

pub(crate) fn effect(effect: &Effect) -> Option<String> {
    Some(match effect {
        Effect::AppendLog(_) | Effect::Send { .. } => return None,
        Effect::TruncateLog(position) => format!("truncates to {}", at(*position)),
        Effect::StorePromise(p) => format!("promises {}", promise(*p)),
        Effect::GetImage { at_least, .. } => format!("wants an image of {at_least}"),
        Effect::EnterImage(position) => format!("goes on from an image of {position}"),
        Effect::Committed(position) => format!("commits {position}"),
        Effect::Accepted { last, .. } => format!("accepts up to {last}"),
        Effect::Refused { reason, .. } => format!("refuses: {reason:?}"),
        Effect::ReadConfirmed { number, index } => format!("read {number} at {index}"),
        Effect::ReadRefused { number } => format!("refuses read {number}"),
        Effect::Entered(configuration) => format!("enters epoch {}", configuration.epoch),
        Effect::Left(configuration) => format!("learns in epoch {}", configuration.epoch),
        Effect::Damaged(_) => "stops: its disk is damaged".into(),
    })
}

fn wish(world: &World, wish: Wish) -> String {
    match wish {
        Wish::Primary(id) => format!("primary {}", disk(world, id)),
        Wish::Remove(id) => format!("remove {}", disk(world, id)),
    }
}

pub(crate) fn coordinator_effect(world: &World, effect: &CoordinatorEffect) -> Option<String> {
    Some(match effect {
        CoordinatorEffect::Propose(_) | CoordinatorEffect::Send { .. } => return None,
        CoordinatorEffect::WishDone(done) => format!("wish done: {}", wish(world, *done)),
        CoordinatorEffect::WishRefused(refused, why) => {
            format!("wish refused: {}: {}", wish(world, *refused), names(world, why))
        }
        CoordinatorEffect::Regressed { disk: id, last, start } => {
            format!("{} has regressed: it ends at {}, and confirmed {}", disk(world, *id), at(*last), at(*start))
        }
    })
}

/// Disks in a sentence, by their nodes' names.
pub(crate) fn names(world: &World, sentence: &str) -> String {
    world.owners.keys().fold(sentence.to_owned(), |text, id| text.replace(&id.to_string(), &disk(world, *id)))
}

/// How a node stands, for `state`.
pub(crate) fn node(world: &World, node: usize) -> String {
    let n = &world.nodes[node];
    let Some(replica) = &n.replica else {
        let (log, end) = (log(&n.disk.durable), if n.is_up() { "a witness" } else { "down" });
        return if n.witness { format!("{}: {end}", n.name) } else { format!("{}: {end}, log {log}", n.name) };
    };
    let standing = replica.standing();
    let role = match standing.role {
        Role::Idle => "idle",
        Role::Primary => "primary",
        Role::Middle => "middle",
        Role::Tail => "tail",
        Role::Sealed => "sealed",
        Role::Learner => "learner",
    };
    let mut line = format!("{}: {role} in epoch {}, log {}", n.name, standing.epoch, log(&n.disk.log.0));
    if n.disk.durable.len() != n.disk.log.0.len() {
        line += &format!(" ({} durable)", n.disk.durable.len());
    }
    if standing.held > 0 {
        line += &format!(", holds {}", standing.held);
    }
    line + &format!(", {} committed", length(standing.commit))
}

//! What differs, in words that name the usual causes.

use bytes::Bytes;
use replicator_machine::{Applied, Command, Entry, Outcome, QueryOutcome, RequestResult};

use crate::beside::{Differences, Example};

/// Bytes of a request or an answer that are shown.
const SHOWN_BYTES: usize = 64;

/// Elsewhere in memory, something else comes out.
pub(super) const ADDRESSES: &str = "in a memory that is laid out otherwise, something else comes out: it depends on addresses. The usual cause \
    is walking through a HashMap or HashSet, whose order follows addresses here: use BTreeMap or BTreeSet, or sort first. Others are pointers \
    that are compared, hashed or printed.";
/// After snapshot and restore, something else comes out.
pub(super) const RESTORED: &str = "after snapshot and restore, something else comes out: a swap would change answers. Something that decides \
    them isn't in the snapshot, or restore makes something else of it, or they follow addresses, as the order of a HashMap does.";
/// A restored module writes another snapshot.
pub(super) const SNAPSHOT: &str = "a snapshot that was restored gives another snapshot: something is lost or added on the way, or it is \
    written in the order of a HashMap, which follows addresses: write it in an order of its own.";

/// The first thing that differs; nothing if nothing does.
pub(super) fn first(differences: &Differences, query: Option<&(Bytes, QueryOutcome, QueryOutcome)>) -> Option<String> {
    if let Some(Example { position, entry, old, new, .. }) = differences.examples().first() {
        return Some(format!("{} of {position}: {}, and otherwise {}", asked(entry), outcome(old), outcome(new)));
    }
    let (request, before, after) = query?;
    Some(format!("query {}: {}, and otherwise {}", shown(request), answer(before), answer(after)))
}

/// What should have been equal in everything, and isn't.
pub(super) fn unequal(differences: &Differences, query: &Option<(Bytes, QueryOutcome, QueryOutcome)>) -> String {
    let first = first(differences, query.as_ref());
    let first = first.unwrap_or_else(|| "all that comes out is equal, and the states aren't".to_owned());
    format!("the same entries came to something else: this program, its engine or this machine is broken. {first}")
}

fn asked(entry: &Entry) -> String {
    match &entry.command {
        Command::Request { request, .. } => format!("request {}", shown(request)),
        _ => "an entry".to_owned(),
    }
}

fn outcome(applied: &Applied) -> String {
    let pushes = match applied.pushes.first() {
        None => String::new(),
        Some(push) => format!(" with {} pushes, first {}", applied.pushes.len(), shown(&push.payload)),
    };
    match &applied.outcome {
        Outcome::Executed { result, .. } => format!("{}{pushes}", self::result(result)),
        other => format!("{other:?}{pushes}"),
    }
}

fn answer(outcome: &QueryOutcome) -> String {
    match outcome {
        QueryOutcome::Answered { result, .. } => self::result(result),
        QueryOutcome::Refused(refusal) => refusal.to_string(),
    }
}

fn result(result: &RequestResult) -> String {
    match result {
        RequestResult::Reply(reply) => shown(reply),
        RequestResult::Trap(trap) => format!("a trap ({trap})"),
    }
}

/// Bytes as they can be shown on a line.
fn shown(bytes: &[u8]) -> String {
    let cut = &bytes[..bytes.len().min(SHOWN_BYTES)];
    let more = if cut.len() < bytes.len() { "…" } else { "" };
    format!("\"{}{more}\"", cut.escape_ascii())
}

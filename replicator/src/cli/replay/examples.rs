//! Entries, outcomes and pushes in few words, for those who compare them.

use replicator_machine::{Applied, Command, Entry, Outcome, RequestResult};
use serde_json::{Value, json};

use crate::cli::{call::print::readable, output};

/// Bytes of a request, a response or a push that are shown.
const SHOWN_BYTES: usize = 96;

/// Bytes as text where that is safe and clear, else in hexadecimal digits; cut where they are long.
pub(in crate::cli) fn preview(bytes: &[u8]) -> String {
    let cut = match std::str::from_utf8(bytes) {
        Ok(text) => text.floor_char_boundary(SHOWN_BYTES.min(text.len())),
        Err(_) => SHOWN_BYTES.min(bytes.len()),
    };
    let text = readable(&bytes[..cut], true);
    match bytes.len() - cut {
        0 => text,
        more => format!("{text}… ({more} more bytes)"),
    }
}

/// What an entry orders.
pub(in crate::cli) fn entry_text(entry: &Entry) -> String {
    match &entry.command {
        Command::Request { session, sequence, request, .. } => {
            format!("request {sequence} of session {session}: {}", preview(request))
        }
        command => crate::cli::log::command_text(command),
    }
}

/// What came of an entry.
pub(in crate::cli) fn outcome_text(applied: &Applied) -> String {
    let outcome = match &applied.outcome {
        Outcome::Executed { result: RequestResult::Reply(reply), .. } if reply.is_empty() => "an empty response".into(),
        Outcome::Executed { result: RequestResult::Reply(reply), .. } => preview(reply),
        Outcome::Executed { result: RequestResult::Trap(trap), .. } => format!("trapped: {trap}"),
        Outcome::Refused(refusal) => format!("refused: {refusal}"),
        other => format!("{other:?}"),
    };
    let pushes = applied
        .pushes
        .iter()
        .take(4)
        .map(|push| format!("; push to {}: {}", output::hex(&push.to), preview(&push.payload)));
    let more = match applied.pushes.len() {
        0..=4 => String::new(),
        many => format!("; {} more pushes", many - 4),
    };
    outcome + &pushes.collect::<String>() + &more
}

/// What came of an entry, for programs.
pub(in crate::cli) fn outcome_json(applied: &Applied) -> Value {
    let pushes = applied.pushes.iter().map(|push| {
        json!({ "to": output::hex(&push.to), "text": preview(&push.payload), "hex": output::hex(cut(&push.payload)) })
    });
    let pushes: Vec<Value> = pushes.take(16).collect();
    let count = applied.pushes.len();
    match &applied.outcome {
        Outcome::Executed { result: RequestResult::Reply(reply), .. } => json!({
            "kind": "response",
            "text": preview(reply),
            "hex": output::hex(cut(reply)),
            "bytes": reply.len(),
            "pushes": pushes,
            "push_count": count,
        }),
        Outcome::Executed { result: RequestResult::Trap(trap), .. } => {
            json!({ "kind": "trap", "text": trap.to_string(), "pushes": pushes, "push_count": count })
        }
        Outcome::Refused(refusal) => {
            json!({ "kind": "refusal", "text": refusal.to_string(), "pushes": pushes, "push_count": count })
        }
        other => json!({ "kind": "other", "text": format!("{other:?}"), "pushes": pushes, "push_count": count }),
    }
}

fn cut(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.len().min(SHOWN_BYTES)]
}

//! How a node caught up, or does, in a status.

use replicator_proto::replicator::v1 as pb;
use serde_json::{Value, json};

use super::output;

/// For people, while it lasts; None: it has caught up.
pub(super) fn line(restart: &pb::Restart) -> Option<String> {
    if restart.caught_up {
        return None;
    }
    let goal = restart.peers.iter().map(|peer| peer.log_index).max()?;
    let clocks: Vec<String> = restart.peers.iter().map(|peer| format!("{} {}", peer.node_id, peer.log_index)).collect();
    let how = match &restart.whole_state {
        Some(whole) if !whole.entered => format!(
            "takes the whole state from {}: {} of {}, for {:.1} s",
            whole.from_node_id,
            output::bytes(whole.bytes),
            output::bytes(whole.bytes_total),
            whole.took_ms as f64 / 1_000.0
        ),
        Some(whole) => format!("took the whole state from {}, and applies the log after it", whole.from_node_id),
        None if restart.own_log_index < goal => "takes the log".to_owned(),
        None => "applies its own log".to_owned(),
    };
    Some(format!("started with logical clock {}, its peers' are {}; {how}", restart.own_log_index, clocks.join(", ")))
}

pub(super) fn json(restart: &pb::Restart) -> Value {
    json!({
        "own_log_index": restart.own_log_index,
        "peers": restart.peers.iter().map(|peer| json!({ "node_id": peer.node_id, "log_index": peer.log_index })).collect::<Vec<_>>(),
        "snapshot_log_index": restart.snapshot_log_index,
        "caught_up": restart.caught_up,
        "took_ms": restart.took_ms,
        "whole_state": restart.whole_state.as_ref().map(|whole| json!({
            "from_node_id": whole.from_node_id,
            "log_index": whole.log_index,
            "bytes": whole.bytes,
            "bytes_total": whole.bytes_total,
            "took_ms": whole.took_ms,
            "entered": whole.entered,
        })),
        "repaired": restart.repaired,
    })
}

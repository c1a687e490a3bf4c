//! Bounds, in ticks of one heartbeat, and sizes of what is under way.

/// How soon the chain notices and decides, and how much it sends ahead. Ticks are heartbeats: 50 ms unless configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Silence before a member, or a link, counts as dead.
    pub suspect_ticks: u32,
    /// How long an attempt waits, in each phase, for those that beat but don't answer.
    pub answer_ticks: u32,
    /// How long all others must have been silent before a chain of one is made.
    pub alone_ticks: u32,
    /// How long all eligible disks are waited for when no member lives in the life that the configuration names.
    pub cold_ticks: u32,
    /// How long the primary may have entries of which none becomes committed, before an attempt finds out whose disk hangs.
    pub stall_ticks: u32,
    /// Before a member that was left out is let in again; doubles each time.
    pub patience_min_ticks: u32,
    /// The longest such wait; so long in the chain, and the wait is short again.
    pub patience_max_ticks: u32,
    /// A learner that lags by no more entries is let in.
    pub join_lag_max: u64,
    /// Entries sent to the successor and not yet received there.
    pub window_entries_max: usize,
    /// Payload bytes of one message, about.
    pub message_bytes_max: usize,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            suspect_ticks: 6,
            answer_ticks: 4,
            alone_ticks: 12,
            cold_ticks: 100,
            stall_ticks: 100,
            patience_min_ticks: 20,
            patience_max_ticks: 1_200,
            join_lag_max: 1_000,
            window_entries_max: 16_384,
            message_bytes_max: 1 << 20,
        }
    }
}

//! The link to the successor: what it was sent, what it has, and how much may be under way.

use std::collections::VecDeque;

use replicator_types::{DiskId, Epoch, LogIndex, Position};

use super::{Effect, LogView, ends::next_index};
use crate::{Link, LogEntry, Message, Timing};

/// The payload bytes that may be under way, in messages of the largest size.
pub(super) const WINDOW_MESSAGES: usize = 16;

/// What each append tells besides entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Front {
    pub(super) commit: Option<Position>,
    pub(super) barrier: u64,
}

/// A successor in one epoch.
///
/// Invariant: `durable <= received <= sent <=` the end of what this member has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Successor {
    pub(super) disk: DiskId,
    epoch: Epoch,
    sent: Option<Position>,
    received: Option<Position>,
    pub(super) durable: Option<Position>,
    pub(super) barrier_passed: u64,
    /// What the last append told.
    told: Front,
    /// The last index and the payload bytes of each message sent and not received.
    under_way: VecDeque<(LogIndex, usize)>,
    under_way_bytes: usize,
    silent_ticks: u32,
    entries_max: usize,
    message_bytes_max: usize,
}

impl Successor {
    /// In an epoch that both entered with logs that end at `start`, durably.
    pub(super) fn new(disk: DiskId, epoch: Epoch, start: Option<Position>, timing: &Timing) -> Self {
        Self {
            disk,
            epoch,
            sent: start,
            received: start,
            durable: start,
            barrier_passed: 0,
            told: Front { commit: None, barrier: 0 },
            under_way: VecDeque::new(),
            under_way_bytes: 0,
            silent_ticks: 0,
            entries_max: timing.window_entries_max.max(1),
            message_bytes_max: timing.message_bytes_max.max(1),
        }
    }

    /// How many more entries may go.
    fn room(&self) -> usize {
        if self.under_way_bytes >= WINDOW_MESSAGES * self.message_bytes_max {
            return 0;
        }
        let entries = next_index(self.sent).0 - next_index(self.received).0;
        self.entries_max.saturating_sub(usize::try_from(entries).unwrap_or(usize::MAX))
    }

    /// An append. Without entries: a heartbeat, or news of a commit or a barrier.
    fn send(&mut self, entries: Vec<LogEntry>, bytes: usize, front: Front, effects: &mut Vec<Effect>) {
        let previous = self.sent;
        if let Some(end) = entries.last() {
            self.sent = Some(end.position);
            self.under_way.push_back((end.position.index, bytes));
            self.under_way_bytes += bytes;
        }
        self.told = front;
        let Front { commit, barrier } = front;
        let message = Message::Append { epoch: self.epoch, previous, entries, commit, barrier };
        effects.push(Effect::Send { to: self.disk, message });
    }

    /// Sends as much of `entries`, which follow `end`, as the window takes; nothing if something before them was not sent yet.
    pub(super) fn offer(
        &mut self,
        end: Option<Position>,
        entries: &[LogEntry],
        front: Front,
        effects: &mut Vec<Effect>,
    ) {
        if self.sent != end {
            return;
        }
        let mut rest = entries;
        while !rest.is_empty() {
            let room = self.room();
            if room == 0 {
                return;
            }
            let (count, bytes) = message_of(rest.iter().take(room), self.message_bytes_max);
            let (now, later) = rest.split_at(count);
            self.send(now.to_vec(), bytes, front, effects);
            rest = later;
        }
    }

    /// Sends what was not sent yet, as much as the window takes: from the log, then from `held`, which follows `last`.
    pub(super) fn pump(
        &mut self,
        last: Option<Position>,
        held: &VecDeque<LogEntry>,
        front: Front,
        log: &dyn LogView,
        effects: &mut Vec<Effect>,
    ) {
        loop {
            let (next, room) = (next_index(self.sent), self.room());
            if room == 0 {
                return;
            }
            let logged = next_index(last);
            let (entries, bytes) = if next < logged {
                let to = LogIndex(logged.0.min(next.0.saturating_add(room as u64)));
                let entries = log.read(next, to, self.message_bytes_max);
                let bytes = entries.iter().map(|entry| entry.payload.len()).sum();
                (entries, bytes)
            } else {
                let skip = usize::try_from(next.0 - logged.0).unwrap_or(usize::MAX).min(held.len());
                let (count, bytes) = message_of(held.range(skip..).take(room), self.message_bytes_max);
                (held.range(skip..skip + count).cloned().collect(), bytes)
            };
            if entries.is_empty() {
                return; // All is sent; or the log takes the rest only with the effects of this step.
            }
            self.send(entries, bytes, front, effects);
        }
    }

    /// What the successor says of itself, all of it only rising. Whatever came late is overtaken.
    pub(super) fn acknowledged(&mut self, received: Option<Position>, durable: Option<Position>, barrier: u64) {
        self.silent_ticks = 0;
        self.received = self.received.max(received);
        self.sent = self.sent.max(self.received); // It may have got more before what was sent was forgotten.
        self.durable = self.durable.max(durable);
        self.barrier_passed = self.barrier_passed.max(barrier);
        while let Some(&(index, bytes)) = self.under_way.front()
            && index < next_index(self.received)
        {
            self.under_way.pop_front();
            self.under_way_bytes -= bytes;
        }
    }

    /// What is under way may be lost: it is sent again, from what was received.
    pub(super) fn rewind(&mut self) {
        self.sent = self.received;
        self.under_way.clear();
        self.under_way_bytes = 0;
    }

    /// Tells `front` at once, if the last append told less: the backups' clients wait for the commit, and reads for the barrier.
    pub(super) fn tell(&mut self, front: Front, effects: &mut Vec<Effect>) {
        if self.told != front {
            self.send(Vec::new(), 0, front, effects);
        }
    }

    /// An append without entries, whatever was told.
    pub(super) fn greet(&mut self, front: Front, effects: &mut Vec<Effect>) {
        self.send(Vec::new(), 0, front, effects);
    }

    /// A tick has passed, and with it goes a heartbeat.
    pub(super) fn tick(&mut self) {
        self.silent_ticks = self.silent_ticks.saturating_add(1);
    }

    pub(super) fn link(&self) -> Link {
        let index = |position: Option<Position>| position.map_or(LogIndex(0), |position| position.index);
        Link {
            to: self.disk,
            sent: index(self.sent),
            received: index(self.received),
            durable: index(self.durable),
            silent_ticks: self.silent_ticks,
        }
    }
}

/// How many of the entries make one message, at least one if there is one, and their payload bytes.
fn message_of<'a>(entries: impl Iterator<Item = &'a LogEntry>, bytes_max: usize) -> (usize, usize) {
    let (mut count, mut bytes) = (0, 0);
    for entry in entries {
        if count > 0 && bytes + entry.payload.len() > bytes_max {
            break;
        }
        count += 1;
        bytes += entry.payload.len();
    }
    (count, bytes)
}

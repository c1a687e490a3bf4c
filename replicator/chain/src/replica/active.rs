//! A member of an epoch that has not promised to leave it: orders, appends, forwards, acknowledges and commits.

use std::collections::VecDeque;

use bytes::Bytes;
use replicator_types::{DiskId, Epoch, LogIndex, Position};

use super::{
    Effect, Ends, LogView, PersistOrder,
    ends::{continues, next_index},
    reads::Reads,
    successor::{Front, Successor, WINDOW_MESSAGES},
};
use crate::{Configuration, Life, LogEntry, Message, Timing};

/// Entries that wait for commitment, in windows: beyond that a primary refuses more.
const UNCOMMITTED_WINDOWS: u64 = 8;
/// The same for their payload bytes: whatever disk is slow, all that waits for it is in some member's memory.
const UNCOMMITTED_BYTES_WINDOWS: usize = 4;

/// What a successor has told its predecessor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Told {
    received: Option<Position>,
    durable: Option<Position>,
    barrier: u64,
    /// Payload bytes received since.
    bytes: usize,
    /// Something is missing, which is told once in a tick: each append that is under way misses the same.
    gap: bool,
}

/// A member in its epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Active {
    epoch: Epoch,
    order: PersistOrder,
    timing: Timing,
    predecessor: Option<DiskId>,
    successor: Option<Successor>,
    /// What a backups-first primary's own log doesn't have yet. Invariant: contiguous, and follows the log's end.
    held: VecDeque<LogEntry>,
    /// The last index and the payload bytes of each proposal that wasn't committed when the last one came.
    uncommitted: VecDeque<(LogIndex, usize)>,
    uncommitted_bytes: usize,
    /// The last barrier asked for in this epoch.
    barrier: u64,
    reads: Reads,
    told: Told,
    /// An append has come since the last tick: an answer is due.
    heard: bool,
}

/// What the messages of [`Active`] read and change beside it.
pub(super) struct Around<'a> {
    pub(super) ends: &'a mut Ends,
    pub(super) log: &'a dyn LogView,
    pub(super) effects: &'a mut Vec<Effect>,
}

impl Active {
    /// Begins `configuration`, which names `life`, with a log that ends at its start, and tells the neighbours.
    pub(super) fn enter(
        configuration: &Configuration,
        life: Life,
        order: PersistOrder,
        timing: Timing,
        around: &mut Around<'_>,
    ) -> Self {
        let Configuration { epoch, start, .. } = *configuration;
        let successor = configuration.successor(life);
        let mut active = Self {
            epoch,
            order,
            timing,
            predecessor: configuration.predecessor(life).map(|life| life.disk),
            successor: successor.map(|life| Successor::new(life.disk, epoch, start, &timing)),
            held: VecDeque::new(),
            uncommitted: VecDeque::new(),
            uncommitted_bytes: 0,
            barrier: 0,
            reads: Reads::default(),
            told: Told::default(),
            heard: false,
        };
        let front = active.front(around.ends);
        if let Some(link) = &mut active.successor {
            link.greet(front, around.effects);
        }
        // The predecessor may have entered before, and what it sent since was dropped.
        active.acknowledge(true, around);
        active
    }

    pub(super) fn is_primary(&self) -> bool {
        self.predecessor.is_none()
    }

    pub(super) fn successor(&self) -> Option<&Successor> {
        self.successor.as_ref()
    }

    pub(super) fn held(&self) -> usize {
        self.held.len()
    }

    fn front(&self, ends: &Ends) -> Front {
        Front { commit: ends.commit, barrier: self.barrier }
    }

    /// The end of all that this member has.
    fn end(&self, ends: &Ends) -> Option<Position> {
        self.held.back().map(|entry| entry.position).or(ends.last)
    }

    /// Up to here this member and all behind it hold the log durably.
    fn durable(&self, ends: &Ends) -> Option<Position> {
        self.successor.as_ref().map_or(ends.durable, |link| link.durable.min(ends.durable))
    }

    /// The last barrier that this member and all behind it have passed.
    fn barrier_passed(&self) -> u64 {
        self.successor.as_ref().map_or(self.barrier, |link| link.barrier_passed)
    }

    /// Takes a client's entries, as the primary. Returns the last one's position; None: too much waits.
    pub(super) fn propose(&mut self, payloads: Vec<Bytes>, around: &mut Around<'_>) -> Option<Position> {
        let end = self.end(around.ends);
        let committed = next_index(around.ends.commit);
        while let Some((_, bytes)) = self.uncommitted.pop_front_if(|(last, _)| *last < committed) {
            self.uncommitted_bytes -= bytes;
        }
        let uncommitted = next_index(end).0 - committed.0;
        let bytes_max = UNCOMMITTED_BYTES_WINDOWS * WINDOW_MESSAGES * self.timing.message_bytes_max;
        if uncommitted >= UNCOMMITTED_WINDOWS * self.timing.window_entries_max as u64
            || self.uncommitted_bytes >= bytes_max
        {
            return None;
        }
        let mut index = next_index(end);
        let mut place = |payload| {
            let position = Position { epoch: self.epoch, index };
            index = index.next();
            LogEntry { position, payload }
        };
        let entries: Vec<LogEntry> = payloads.into_iter().map(&mut place).collect();
        let last = entries.last()?.position;
        let bytes = entries.iter().map(|entry| entry.payload.len()).sum();
        self.uncommitted.push_back((last.index, bytes));
        self.uncommitted_bytes += bytes;
        self.forward(end, &entries, around);
        if self.order == PersistOrder::BackupsFirst && self.successor.is_some() {
            self.held.extend(entries);
        } else {
            around.ends.append(&entries);
            around.effects.push(Effect::AppendLog(entries));
        }
        Some(last)
    }

    /// `Append`, from the predecessor.
    pub(super) fn append(
        &mut self,
        from: DiskId,
        previous: Option<Position>,
        mut entries: Vec<LogEntry>,
        front: Front,
        around: &mut Around<'_>,
    ) {
        if self.predecessor != Some(from) || !continues(previous, &entries, self.epoch) {
            return;
        }
        self.heard = true;
        self.barrier = self.barrier.max(front.barrier);
        let (follows, end) = (next_index(previous), next_index(around.ends.last));
        let mut gap = false;
        if follows > end {
            gap = !self.told.gap;
        } else {
            // Within an epoch the logs of its members are beginnings of one another.
            let known = usize::try_from(end.0 - follows.0).unwrap_or(usize::MAX);
            let met =
                if known == 0 { Some(previous) } else { entries.get(known - 1).map(|entry| Some(entry.position)) };
            let last = around.ends.last;
            assert!(met.is_none_or(|met| met == last), "{from} sends {met:?} where this log ends at {last:?} (5)");
            let fresh = entries.split_off(known.min(entries.len()));
            self.take(fresh, around);
        }
        let commit = front.commit.min(around.ends.durable);
        around.commit_to(commit);
        self.tell_successor(around);
        self.acknowledge(gap, around);
    }

    /// Appends what follows this log's end, and sends it on.
    fn take(&mut self, entries: Vec<LogEntry>, around: &mut Around<'_>) {
        if entries.is_empty() {
            return;
        }
        self.told.gap = false;
        self.told.bytes += entries.iter().map(|entry| entry.payload.len()).sum::<usize>();
        self.forward(around.ends.last, &entries, around);
        around.ends.append(&entries);
        around.effects.push(Effect::AppendLog(entries));
    }

    /// Sends `entries`, which follow `end`, after all that was not sent before them.
    fn forward(&mut self, end: Option<Position>, entries: &[LogEntry], around: &mut Around<'_>) {
        self.pump(around);
        let front = self.front(around.ends);
        if let Some(link) = &mut self.successor {
            link.offer(end, entries, front, around.effects);
        }
    }

    fn pump(&mut self, around: &mut Around<'_>) {
        let front = self.front(around.ends);
        if let Some(link) = &mut self.successor {
            link.pump(around.ends.last, &self.held, front, around.log, around.effects);
        }
    }

    fn tell_successor(&mut self, around: &mut Around<'_>) {
        let front = self.front(around.ends);
        if let Some(link) = &mut self.successor {
            link.tell(front, around.effects);
        }
    }

    /// `Acknowledged`, from the successor. Claims beyond what this member has are nobody's who obeys the protocol.
    pub(super) fn acknowledged(&mut self, from: DiskId, told: Acknowledgement, around: &mut Around<'_>) {
        let end = self.end(around.ends);
        let Some(link) = self.successor.as_mut().filter(|link| link.disk == from) else { return };
        if told.durable > told.received || told.received > end || told.barrier > self.barrier {
            return;
        }
        link.acknowledged(told.received, told.durable, told.barrier);
        if told.gap {
            link.rewind();
        }
        let durable = link.durable;
        self.release(durable, around);
        self.advance(around);
    }

    /// Appends what was held until all backups had it durably.
    fn release(&mut self, durable: Option<Position>, around: &mut Around<'_>) {
        let count = next_index(durable).0.saturating_sub(next_index(around.ends.last).0);
        if self.held.is_empty() || count == 0 {
            return;
        }
        let entries: Vec<LogEntry> = self.held.drain(..usize::try_from(count).unwrap_or(usize::MAX)).collect();
        around.ends.append(&entries);
        assert_eq!(around.ends.last, durable, "all backups hold a position that was never given (5)");
        around.effects.push(Effect::AppendLog(entries));
    }

    /// What is durable, received or passed may have risen.
    pub(super) fn advance(&mut self, around: &mut Around<'_>) {
        if self.is_primary() {
            // Every member holds it durably, this one included: that is what committed means (2, 5).
            let commit = self.durable(around.ends);
            around.commit_to(commit);
            if self.reads.passed(self.barrier, self.barrier_passed(), around.effects) {
                self.begin_barrier(around);
            }
        }
        self.pump(around);
        self.tell_successor(around);
        self.acknowledge(false, around);
    }

    /// A read wants an index, of the primary. Returns whether one will be told.
    pub(super) fn ask_read(&mut self, number: u64, around: &mut Around<'_>) -> bool {
        let Some(commit) = around.ends.commit else { return false };
        if self.successor.is_none() {
            // Unsealed now, and nobody else is in the epoch.
            around.effects.push(Effect::ReadConfirmed { number, index: commit.index });
            return true;
        }
        if !self.reads.add(number) {
            return false;
        }
        if self.reads.idle() {
            self.begin_barrier(around);
            self.tell_successor(around);
        }
        true
    }

    /// All reads that wait share a barrier, which begins after all of them came.
    fn begin_barrier(&mut self, around: &mut Around<'_>) {
        if let Some(commit) = around.ends.commit
            && self.reads.begin(commit.index)
        {
            self.barrier += 1;
        }
    }

    /// The epoch is over for this member: what waited gets no answer from it.
    pub(super) fn end_epoch(self, effects: &mut Vec<Effect>) {
        self.reads.refuse(effects);
    }

    /// Tells the predecessor what has risen. Received entries alone only after a quarter of the window: what is durable says so too.
    fn acknowledge(&mut self, gap: bool, around: &mut Around<'_>) {
        let (durable, barrier, last) = (self.durable(around.ends), self.barrier_passed(), around.ends.last);
        let entries = next_index(last).0 - next_index(self.told.received).0;
        let much = entries > 0 && entries >= self.timing.window_entries_max as u64 / 4
            || self.told.bytes >= WINDOW_MESSAGES * self.timing.message_bytes_max / 4;
        if gap || much || durable > self.told.durable || barrier > self.told.barrier {
            self.answer(gap, around);
        }
    }

    fn answer(&mut self, gap: bool, around: &mut Around<'_>) {
        let Some(predecessor) = self.predecessor else { return };
        let (durable, barrier, received) = (self.durable(around.ends), self.barrier_passed(), around.ends.last);
        self.told = Told { received, durable, barrier, bytes: 0, gap: gap || self.told.gap };
        let message = Message::Acknowledged { epoch: self.epoch, received, durable, barrier, gap };
        around.effects.push(Effect::Send { to: predecessor, message });
    }

    /// A heartbeat to the successor; an answer to the predecessor, if it was heard.
    pub(super) fn tick(&mut self, around: &mut Around<'_>) {
        self.pump(around);
        let front = self.front(around.ends);
        if let Some(link) = &mut self.successor {
            link.tick();
            link.greet(front, around.effects);
        }
        self.told.gap = false;
        if std::mem::take(&mut self.heard) {
            self.answer(false, around);
        }
    }

    /// A connection was made anew: whatever was under way on it is sent again.
    pub(super) fn connected(&mut self, disk: DiskId, around: &mut Around<'_>) {
        if self.predecessor == Some(disk) {
            self.answer(false, around);
        }
        if let Some(link) = self.successor.as_mut().filter(|link| link.disk == disk) {
            link.rewind();
            self.pump(around);
            let front = self.front(around.ends);
            if let Some(link) = &mut self.successor {
                link.greet(front, around.effects);
            }
        }
    }
}

/// What an `Acknowledged` says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Acknowledgement {
    pub(super) received: Option<Position>,
    pub(super) durable: Option<Position>,
    pub(super) barrier: u64,
    pub(super) gap: bool,
}

impl Around<'_> {
    /// Everything up to `position` is committed.
    pub(super) fn commit_to(&mut self, position: Option<Position>) {
        if let Some(commit) = self.ends.commit_to(position) {
            self.effects.push(Effect::Committed(commit));
        }
    }
}

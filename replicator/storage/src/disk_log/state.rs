//! The log as its callers see it, and what is to be written. A change is made here at once; the writer follows.

use std::{collections::VecDeque, mem, sync::Arc};

use bytes::Bytes;
use replicator_types::{LogIndex, Position};

use super::{
    index::{Index, Slot},
    record::{self, Change},
    replay::{Ends, next},
    segment::Segment,
};
use crate::{Durable, Record, StorageError, meta::LogTag};

/// A buffer that grew beyond this is not kept for the next batch.
const SPARE_BYTES_MAX: usize = 4 << 20;

/// What the log's lock guards.
pub(crate) struct State {
    pub(crate) tag: LogTag,
    pub(crate) ends: Ends,
    pub(crate) index: Index,
    /// The segments that have records on the disk, in order.
    pub(crate) segments: VecDeque<Arc<Segment>>,
    /// The global offset of the log's end.
    end: u64,
    /// Records that the writer hasn't taken yet.
    pub(crate) pending: Vec<u8>,
    /// The buffer of an earlier batch, empty.
    spare: Vec<u8>,
    /// Those who wait for what is pending; if nothing is, those who are to be called at once.
    pub(crate) waiting: Vec<Durable>,
    in_flight: Option<Flight>,
    /// The last durable entry that is still in the log.
    pub(crate) durable: Option<Position>,
    /// The global offset up to which the log is durable.
    durable_end: u64,
    pub(crate) failed: Option<Arc<str>>,
    /// Somebody wants what is pending to be written.
    pub(crate) wanted: bool,
    /// What is in flight waits for room on the disk.
    pub(crate) stalled: bool,
    /// The writer sleeps.
    pub(crate) idle: bool,
    pub(crate) closing: bool,
}

struct Flight {
    waiting: Vec<Durable>,
    /// The last entry of what will be durable that is still in the log.
    kept: Option<Position>,
}

/// What the writer makes durable at once.
pub(crate) struct Batch {
    /// Whole records; none if everything was durable, and somebody is only to be called.
    pub(crate) records: Vec<u8>,
    /// The global offset of the log's end after them.
    pub(crate) end: u64,
    pub(crate) ends: Ends,
    /// Segments that end before this global offset hold nothing that is needed once the batch is durable.
    needed_from: u64,
}

/// What is left to do after a batch became durable.
pub(crate) struct Landed {
    pub(crate) waiting: Vec<Durable>,
    /// Segments that nobody needs any more, in order.
    pub(crate) freed: Vec<Arc<Segment>>,
    /// Payloads that leave the cache.
    pub(crate) evicted: Vec<Bytes>,
}

/// What a reader is to fetch, and what was in memory.
pub(crate) struct Plan {
    /// These come first.
    pub(crate) on_disk: Vec<(Position, Slot)>,
    pub(crate) in_memory: Vec<Record>,
    /// Those of `on_disk`, and perhaps more.
    pub(crate) segments: Vec<Arc<Segment>>,
}

impl State {
    /// A log that is durable to its end.
    pub(crate) fn new(tag: LogTag, ends: Ends, index: Index, segments: Vec<Arc<Segment>>, end: u64) -> Self {
        Self {
            tag,
            ends,
            index,
            segments: segments.into(),
            end,
            pending: Vec::new(),
            spare: Vec::new(),
            waiting: Vec::new(),
            in_flight: None,
            durable: ends.last,
            durable_end: end,
            failed: None,
            wanted: false,
            stalled: false,
            idle: false,
            closing: false,
        }
    }

    /// # Errors
    /// If the log has failed.
    pub(crate) fn check(&self) -> Result<(), StorageError> {
        self.failed.as_ref().map_or(Ok(()), |what| Err(StorageError::failed(what.clone())))
    }

    /// Appends records that follow the log's end, each of at most `bytes_max` bytes.
    pub(crate) fn append(&mut self, records: Vec<Record>, bytes_max: usize) -> Result<(), StorageError> {
        self.check_append(&records, bytes_max)?;
        for Record { position, payload } in records {
            let offset = self.end;
            self.write(Change::Append(position), &payload);
            self.index.push_cached(position, offset, payload);
        }
        Ok(())
    }

    fn check_append(&self, records: &[Record], bytes_max: usize) -> Result<(), StorageError> {
        let mut last = self.ends.last;
        for Record { position, payload } in records {
            if position.index != next(last) || last.is_some_and(|last| position.epoch < last.epoch) {
                return Err(self.not_contiguous(format!("can't append {position} after {last:?}")));
            }
            if payload.len() > bytes_max {
                return Err(StorageError::TooLarge { bytes: payload.len(), bytes_max });
            }
            last = Some(*position);
        }
        Ok(())
    }

    pub(crate) fn truncate_after(&mut self, last: Option<Position>) -> Result<(), StorageError> {
        let last = last.or(self.ends.purged);
        if last == self.ends.last {
            return Ok(());
        }
        if let Some(kept) = last.filter(|_| last != self.ends.purged)
            && self.index.position(kept.index) != last
        {
            return Err(self.not_contiguous(format!("can't truncate after {kept}, which is not in it")));
        }
        self.truncate(last);
        Ok(())
    }

    /// Drops every entry after `last`, which is in the log or its purged end.
    fn truncate(&mut self, last: Option<Position>) {
        self.write(Change::TruncateAfter(last), &[]);
        self.index.truncate(next(last));
        // What was durable beyond it is no part of the log any more.
        let flying = self.in_flight.as_mut().map(|flight| &mut flight.kept);
        for position in flying.into_iter().chain([&mut self.durable]) {
            if position.map(|position| position.index) > last.map(|last| last.index) {
                *position = last;
            }
        }
    }

    /// Whether anything changed.
    pub(crate) fn purge_through(&mut self, through: Position) -> Result<bool, StorageError> {
        let Ends { purged, last } = self.ends;
        if let Some(purged) = purged {
            if through.index < purged.index || through == purged {
                return Ok(false);
            }
            if through.index == purged.index || through.epoch < purged.epoch {
                return Err(self.not_contiguous(format!("can't purge through {through} after {purged}")));
            }
        }
        if self.index.position(through.index) != Some(through) && last != purged {
            // An image installed over a log that doesn't hold its last entry: it is another history's, or too short.
            self.truncate(purged);
        }
        self.write(Change::PurgeThrough(through), &[]);
        self.index.purge(through.index);
        Ok(true)
    }

    fn write(&mut self, change: Change, payload: &[u8]) {
        let taken = record::encode(&mut self.pending, self.tag, self.end, self.durable_end, change, payload);
        self.end += taken as u64;
        self.ends.apply(change);
    }

    fn not_contiguous(&self, what: String) -> StorageError {
        StorageError::NotContiguous { last: self.ends.last, what }
    }

    /// Sees to it that `done` is called when everything written so far is durable. Returns whether the writer must know.
    pub(crate) fn wait(&mut self, done: Durable) -> bool {
        match &mut self.in_flight {
            Some(flight) if self.pending.is_empty() => {
                flight.waiting.push(done);
                false
            }
            _ => {
                self.waiting.push(done);
                true
            }
        }
    }

    /// Takes what is pending, and those who wait for it.
    pub(crate) fn take_batch(&mut self) -> Batch {
        self.wanted = false;
        let waiting = mem::take(&mut self.waiting);
        self.in_flight = Some(Flight { waiting, kept: self.ends.last });
        let records = mem::replace(&mut self.pending, mem::take(&mut self.spare));
        let (end, ends) = (self.end, self.ends);
        // Without a purge, the first segment stays: it is how the log shows that its beginning is there.
        let needed_from = ends.purged.map_or(0, |_| self.index.first_offset().unwrap_or(end));
        Batch { records, end, ends, needed_from }
    }

    /// The batch is durable, and these segments were begun by it.
    pub(crate) fn landed(&mut self, batch: Batch, begun: Vec<Arc<Segment>>, cache_bytes_max: usize) -> Landed {
        let Batch { mut records, end, needed_from, .. } = batch;
        self.segments.extend(begun);
        self.durable_end = end;
        let mut waiting = Vec::new();
        if let Some(flight) = self.in_flight.take() {
            self.durable = flight.kept;
            waiting = flight.waiting;
        }
        let unneeded = self.segments.iter().skip(1).take_while(|next| next.start <= needed_from).count();
        let freed = self.segments.drain(..unneeded).collect();
        let evicted = self.index.evict(cache_bytes_max, end);
        if records.capacity() <= SPARE_BYTES_MAX {
            records.clear();
            self.spare = records;
        }
        Landed { waiting, freed, evicted }
    }

    /// The log has failed: nothing more is written. Returns those who wait, in order.
    pub(crate) fn fail(&mut self, what: &Arc<str>) -> Vec<Durable> {
        self.failed.get_or_insert_with(|| what.clone());
        let mut waiting = self.in_flight.take().map(|flight| flight.waiting).unwrap_or_default();
        waiting.append(&mut self.waiting);
        waiting
    }

    /// The entries of `from..to` that are there, at least one if there is one, and no more once `bytes_max` of payload are read.
    pub(crate) fn plan(&self, from: LogIndex, to: LogIndex, bytes_max: usize) -> Plan {
        let mut plan = Plan { on_disk: Vec::new(), in_memory: Vec::new(), segments: Vec::new() };
        let mut bytes = 0_usize;
        for (i, (position, slot, payload)) in self.index.range(from, to).enumerate() {
            bytes = bytes.saturating_add(slot.length as usize);
            if bytes > bytes_max && i > 0 {
                break;
            }
            match payload {
                Some(payload) => plan.in_memory.push(Record { position, payload: payload.clone() }),
                None => plan.on_disk.push((position, *slot)),
            }
        }
        if let (Some((_, first)), Some((_, last))) = (plan.on_disk.first(), plan.on_disk.last()) {
            let begin = self.segments.partition_point(|segment| segment.start <= first.offset).saturating_sub(1);
            let end = self.segments.partition_point(|segment| segment.start <= last.offset);
            // One more, if there is one: it says where the last one of these ends.
            plan.segments.extend(self.segments.range(begin..(end + 1).min(self.segments.len())).cloned());
        }
        plan
    }
}

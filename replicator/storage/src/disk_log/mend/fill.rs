//! What a hole held, as far as it matters: entries from a peer that provably has the same ones, in exactly as many bytes.
//!
//! Entries are known to be those that were lost by log matching: who has the entry behind the hole, by epoch and index, has the same ones before
//! it. What else was in the hole (truncations, what they dropped, purges) is made up where it leaves no other trace: the records behind it
//! stay at their places, so the hole must be filled to its last byte.

use std::collections::BTreeSet;

use bytes::Bytes;
use replicator_types::{Epoch, LogIndex, Position};

use super::{
    super::{
        record::{self, Change, HEADER_BYTES},
        replay::{Replay, next},
    },
    EntrySource, Trouble,
    reading::After,
    survey::Hole,
};
use crate::{Record, meta::LogTag};

/// A record that carries no payload.
const BARE_BYTES: u64 = record::record_bytes(0) as u64;
/// A made-up record is at most so large.
const MADE_UP_BYTES_MAX: u64 = 1 << 20;
/// What is put into one hole at most: it is in memory meanwhile.
const HOLE_BYTES_MAX: u64 = 1 << 30;

/// What is known where the hole begins.
pub(super) struct Place<'a> {
    pub(super) hole: &'a Hole,
    pub(super) tag: LogTag,
    /// The log up to there.
    pub(super) replay: &'a Replay,
    /// What lies in the hole's bytes; empty if nothing there can be of use.
    pub(super) old: &'a [u8],
    /// The durable end that the record before it tells.
    pub(super) durable_end: u64,
    /// Entries through this one are purged later in the log: what they were doesn't matter.
    pub(super) cover: Option<Position>,
    /// After this entry the log is cut later, at the lowest: what was behind it doesn't matter, and is in no other log.
    pub(super) cut: Option<Option<Position>>,
    pub(super) named: &'a [Position],
    /// What must be purged here, if there is room: no other record says so.
    pub(super) absent: Option<Position>,
}

/// What the hole is filled with.
#[derive(Debug)]
pub(super) struct Fill {
    /// The global offset at which it begins.
    pub(super) offset: u64,
    pub(super) bytes: Vec<u8>,
    /// The first entry and the last one that a peer gave.
    pub(super) entries: Option<(LogIndex, LogIndex)>,
    /// Whose they are.
    pub(super) from: BTreeSet<String>,
    /// Nobody was asked: one byte was wrong, and the record's own checks tell which.
    pub(super) corrected: bool,
}

type Changes = Vec<(Change, Bytes)>;

impl Place<'_> {
    pub(super) fn fill(&self, source: &mut dyn EntrySource) -> Result<Fill, Trouble> {
        if let Some(bytes) = self.corrected() {
            return Ok(Fill {
                offset: self.hole.end - BARE_BYTES,
                bytes,
                entries: None,
                from: BTreeSet::new(),
                corrected: true,
            });
        }
        if self.hole.offset.is_some_and(|offset| self.hole.end - offset > HOLE_BYTES_MAX) {
            return Err(Trouble::Never(format!("more than {HOLE_BYTES_MAX} bytes are lost at one place")));
        }
        let mut taken = Taken::default();
        let mut changes = self.changes(source, &mut taken)?;
        let used = changes.iter().map(size).sum::<u64>();
        let room = self.hole.offset.map_or(used, |offset| self.hole.end - offset);
        let mut spare = room.checked_sub(used).ok_or_else(|| misfit(used, room))?;
        let purges = self.hole.purged.max(self.absent) > self.replay.ends.purged;
        let more = spare.saturating_sub(if purges { BARE_BYTES } else { 0 });
        if matches!(changes.first(), Some((Change::TruncateAfter(_), _))) && more >= BARE_BYTES {
            // What the truncation dropped was here.
            let bytes = if more <= MADE_UP_BYTES_MAX { more } else { MADE_UP_BYTES_MAX + more % MADE_UP_BYTES_MAX };
            changes.insert(0, litter(self.replay.ends.last, bytes));
            spare -= bytes;
        } else if let Some((_, payload)) = taken.made_up.and_then(|last| changes.get_mut(last)) {
            // One of those that nobody reads takes what is left, but for a purge and what is too much for one.
            let bytes = if more <= MADE_UP_BYTES_MAX { more } else { more % MADE_UP_BYTES_MAX };
            *payload = vec![0; BARE_BYTES as usize - HEADER_BYTES + bytes as usize].into();
            spare -= bytes;
        }
        self.fill_up(&mut changes, spare)?;
        let offset = self.hole.end.checked_sub(room).ok_or_else(|| misfit(used, self.hole.end))?;
        let bytes = self.encode(&changes, offset);
        Ok(Fill { offset, bytes, entries: taken.entries, from: taken.from, corrected: false })
    }

    /// The record without payload that lies here, if only one byte of it is damaged: no peer has it, and its checks prove which one it was.
    fn corrected(&self) -> Option<Vec<u8>> {
        let offset = self.hole.offset.filter(|offset| self.hole.end - offset == BARE_BYTES)?;
        let mut bytes = self.old.get(..BARE_BYTES as usize)?.to_vec();
        for at in 0..bytes.len() {
            let old = bytes[at];
            for candidate in 0..=u8::MAX {
                bytes[at] = candidate;
                let field = *bytes.first_chunk()?;
                let whole = record::extent(field, self.tag, offset) == record::Extent::Record(bytes.len());
                if whole && record::decode(&bytes, self.tag, offset).is_some() {
                    return Some(bytes);
                }
            }
            bytes[at] = old;
        }
        None
    }

    /// What the log must go through here, without what is only there to fill the hole.
    fn changes(&self, source: &mut dyn EntrySource, taken: &mut Taken) -> Result<Changes, Trouble> {
        let ends = self.replay.ends;
        let first = next(ends.last);
        let (to, exact, anchor) = match self.hole.after {
            After::Entry(position) => (position.index, None, Some(position)),
            After::Last(last) | After::Cut(last) => (next(last), Some(last), last),
        };
        if let Some(last) = exact.filter(|last| *last == ends.last || *last == ends.purged || self.holds(*last)) {
            let cut = last != ends.last && !matches!(self.hole.after, After::Cut(_));
            return Ok(if cut { vec![bare(Change::TruncateAfter(last))] } else { Vec::new() });
        }
        let Some(anchor) = anchor else {
            return Err(Trouble::Never("it should have been empty there, and begins later".into()));
        };
        let room = self.hole.offset.map_or(HOLE_BYTES_MAX, |offset| self.hole.end - offset);
        // One record without payload can't have dropped entries and put others in their place.
        if exact.is_none() && to == first && room < 2 * BARE_BYTES {
            return Ok(Vec::new());
        }
        // Where the entry behind the hole was dropped later, nobody else has it.
        let cut = self.cut.filter(|cut| next(*cut) <= to);
        let anchor_kept = cut.unwrap_or(Some(anchor));
        let kept = cut.map_or(to, next).min(to);
        let covered = self.cover.map_or(LogIndex(0), |cover| cover.index.next());
        let mut changes = Vec::new();
        let mut at = first;
        if covered >= kept || kept < first && cut.is_some() {
            // Nothing of it is read ever again.
            if to < first || (to == first && exact.is_some()) {
                // The last one must have the epoch that it had.
                at = if exact.is_some() { LogIndex(to.0 - 1) } else { to };
                changes.push(bare(Change::TruncateAfter(self.before(at))));
            }
            let before = self.before(at);
            self.make_up(&mut changes, before, at, to, exact.flatten(), anchor, taken);
        } else {
            let wanted = anchor_kept
                .ok_or_else(|| Trouble::Never("nothing that is left tells which entries they were".into()))?;
            if covered > first {
                self.make_up(&mut changes, self.replay.ends.last, first, covered, None, anchor, taken);
                changes.extend(self.fetch(covered, kept, wanted, room, source, taken)?.into_iter().map(append));
            } else {
                let (from, entries) = self.matching(first, kept, wanted, room, source, taken)?;
                if from < first {
                    changes.push(bare(Change::TruncateAfter(self.before(from))));
                }
                changes.extend(entries.into_iter().map(append));
            }
            let last = changes.iter().rev().find_map(|(change, _)| match change {
                Change::Append(position) => Some(*position),
                _ => None,
            });
            self.make_up(&mut changes, last.or(ends.last), kept.max(at), to, exact.flatten(), anchor, taken);
        }
        Ok(changes)
    }

    /// Adds entries that nobody will read, in the place of those of `from..to`, as they are purged or dropped later in the log.
    #[expect(clippy::too_many_arguments, reason = "what surrounds them, and which they are")]
    fn make_up(
        &self,
        changes: &mut Changes,
        before: Option<Position>,
        from: LogIndex,
        to: LogIndex,
        exact: Option<Position>,
        anchor: Position,
        taken: &mut Taken,
    ) {
        let mut epoch = before.map_or(Epoch(0), |before| before.epoch);
        for index in from.0..to.0 {
            let known = self.named.iter().chain(&exact).chain(&self.cover).filter(|known| known.index.0 == index);
            epoch = known.map(|known| known.epoch).filter(|known| *known <= anchor.epoch).fold(epoch, Ord::max);
            taken.made_up = Some(changes.len());
            changes.push(bare(Change::Append(Position { epoch, index: LogIndex(index) })));
        }
    }

    /// The entries before `to` from where on they aren't those that the log has before the hole.
    fn matching(
        &self,
        first: LogIndex,
        to: LogIndex,
        anchor: Position,
        room: u64,
        source: &mut dyn EntrySource,
        taken: &mut Taken,
    ) -> Result<(LogIndex, Vec<Record>), Trouble> {
        let begin = next(self.replay.ends.purged);
        let mut from = first.min(to);
        let mut step = 1;
        // What was purged was committed: that is the same everywhere.
        while from > begin {
            let Some(ours) = self.before(from) else { break };
            let given = source.entries(from, from, anchor)?;
            if given.before == Some(ours) {
                break;
            }
            from = LogIndex(from.0.saturating_sub(step)).max(begin);
            step *= 2;
        }
        let mut entries = self.fetch(from, to, anchor, room, source, taken)?;
        let same = entries.iter().take_while(|entry| self.holds(Some(entry.position))).count();
        entries.drain(..same);
        Ok((LogIndex(from.0 + same as u64), entries))
    }

    /// All entries of `from..to` of a log that has `anchor`.
    fn fetch(
        &self,
        from: LogIndex,
        to: LogIndex,
        anchor: Position,
        room: u64,
        source: &mut dyn EntrySource,
        taken: &mut Taken,
    ) -> Result<Vec<Record>, Trouble> {
        let mut entries: Vec<Record> = Vec::new();
        let (mut at, mut bytes) = (from, 0);
        while at < to {
            let given = source.entries(at, to, anchor)?;
            if given.records.is_empty() {
                return Err(Trouble::Never(format!(
                    "{} has entry {anchor}, and gives none of those before it",
                    given.from
                )));
            }
            for entry in given.records.into_iter().take(usize::try_from(to.0 - at.0).unwrap_or(usize::MAX)) {
                let epoch = entries.last().map_or(Epoch(0), |before| before.position.epoch);
                let Position { epoch: found, index } = entry.position;
                let fits = index == at
                    && epoch <= found
                    && found <= anchor.epoch
                    && (index != anchor.index || found == anchor.epoch);
                if !fits {
                    return Err(Trouble::Never(format!(
                        "{} gives {} in the place of entry {at}",
                        given.from, entry.position
                    )));
                }
                bytes += record::record_bytes(entry.payload.len()) as u64;
                if bytes > room {
                    return Err(misfit(bytes, room));
                }
                at = index.next();
                entries.push(entry);
            }
            taken.from.insert(given.from);
        }
        if let (Some(first), Some(last)) = (entries.first(), entries.last()) {
            taken.entries = Some((first.position.index, last.position.index));
        }
        Ok(entries)
    }

    /// The last entry of the log if it ended before `index`.
    fn before(&self, index: LogIndex) -> Option<Position> {
        let ends = self.replay.ends;
        if index == next(ends.last) {
            return ends.last;
        }
        if index == next(ends.purged) {
            return ends.purged;
        }
        self.replay.index.position(LogIndex(index.0.checked_sub(1)?))
    }

    fn holds(&self, position: Option<Position>) -> bool {
        position.is_some_and(|position| self.replay.index.position(position.index) == Some(position))
    }

    /// Adds what is known to have been purged here, and then changes that change nothing, until all of the hole is filled.
    fn fill_up(&self, changes: &mut Changes, mut spare: u64) -> Result<(), Trouble> {
        let mut ends = self.replay.ends;
        changes.iter().for_each(|(change, _)| ends.apply(*change));
        let purged = self.hole.purged.max(self.absent).filter(|purged| Some(*purged) > ends.purged);
        let purged = purged.filter(|purged| ends.last.is_some_and(|last| purged.index <= last.index));
        let after =
            spare.checked_sub(BARE_BYTES).filter(|after| [0, BARE_BYTES].contains(after) || *after >= 2 * BARE_BYTES);
        if let Some((purged, after)) = purged.zip(after) {
            changes.push(bare(Change::PurgeThrough(purged)));
            ends.apply(Change::PurgeThrough(purged));
            spare = after;
        }
        while spare > 0 {
            // Where the log is cut next, anything may be dropped by that.
            if matches!(self.hole.after, After::Cut(_)) && (BARE_BYTES..MADE_UP_BYTES_MAX).contains(&spare) {
                changes.push(litter(ends.last, spare));
                return Ok(());
            }
            if spare >= 2 * BARE_BYTES {
                let whole = (spare - BARE_BYTES).min(MADE_UP_BYTES_MAX);
                let rest = spare - BARE_BYTES - whole;
                let bytes = if rest > 0 && rest < 2 * BARE_BYTES { whole - 2 * BARE_BYTES } else { whole };
                changes.push(litter(ends.last, bytes));
                spare -= bytes;
            }
            changes.push(bare(Change::TruncateAfter(ends.last)));
            spare = spare.checked_sub(BARE_BYTES).ok_or_else(|| misfit(0, spare))?;
        }
        Ok(())
    }

    /// The records' bytes. Where a record's own checks lie in the hole unharmed, they choose the durable end that it told, and prove it to the last bit.
    fn encode(&self, changes: &Changes, start: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut durable_end = self.durable_end;
        for (change, payload) in changes {
            let at = bytes.len();
            let offset = start + at as u64;
            let old = self.old.get(at..).unwrap_or_default();
            let told = old.get(16..).and_then(|old| old.first_chunk()).map(|field| u64::from_be_bytes(*field));
            let candidates = told.into_iter().chain([durable_end]).chain(self.hole.durable_end).chain([offset]);
            let candidates = candidates.filter(|told| (durable_end..=offset).contains(told));
            let encoded = candidates.map(|told| {
                let mut encoded = Vec::new();
                record::encode(&mut encoded, self.tag, offset, told, *change, payload);
                let differing = encoded.iter().zip(old).filter(|(new, old)| new != old).count();
                let proven = old.get(8..16) == encoded.get(8..16);
                ((!proven, differing), told, encoded)
            });
            let (_, told, encoded) = encoded.min_by_key(|(rank, ..)| *rank).expect("the offset itself is a candidate");
            durable_end = told;
            bytes.extend_from_slice(&encoded);
        }
        bytes
    }
}

/// What peers gave.
#[derive(Default)]
struct Taken {
    entries: Option<(LogIndex, LogIndex)>,
    from: BTreeSet<String>,
    /// The last of the changes that is a made-up entry.
    made_up: Option<usize>,
}

fn bare(change: Change) -> (Change, Bytes) {
    (change, Bytes::new())
}

/// An entry of so many bytes after `last`, that is dropped at once.
fn litter(last: Option<Position>, bytes: u64) -> (Change, Bytes) {
    let epoch = last.map_or(Epoch(0), |last| last.epoch);
    (Change::Append(Position { epoch, index: next(last) }), vec![0; bytes as usize - HEADER_BYTES].into())
}

fn append(record: Record) -> (Change, Bytes) {
    (Change::Append(record.position), record.payload)
}

fn size((_, payload): &(Change, Bytes)) -> u64 {
    record::record_bytes(payload.len()) as u64
}

fn misfit(bytes: u64, room: u64) -> Trouble {
    Trouble::Never(format!("what belongs there takes {bytes} bytes, and {room} were lost"))
}

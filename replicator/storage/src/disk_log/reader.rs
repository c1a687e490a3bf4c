//! Reads entries that are no longer in memory back from their segments.

use std::{fs::File, os::unix::fs::FileExt, sync::Arc};

use bytes::Bytes;
use replicator_types::Position;

use super::{
    index::Slot,
    record::{self, Change, Extent, HEADER_BYTES, SIZE_FIELD_BYTES},
    segment::Segment,
};
use crate::{Record, StorageError, meta::LogTag};

/// What is read at once, if records lie one after the other. The payloads keep it in memory together.
const RUN_BYTES: u64 = 256 << 10;

/// Reads these entries, which are on the disk, and checks each. `segments` holds all of their segments, in order.
pub(crate) fn read(
    wanted: &[(Position, Slot)],
    segments: &[Arc<Segment>],
    tag: LogTag,
) -> Result<Vec<Record>, StorageError> {
    let mut records = Vec::with_capacity(wanted.len());
    let mut open: Option<(usize, File)> = None;
    let mut rest = wanted;
    while let Some((_, first)) = rest.first() {
        let at = segments.partition_point(|segment| segment.start <= first.offset) - 1;
        let segment = &segments[at];
        let end = segments.get(at + 1).map_or(u64::MAX, |next| next.start);
        let (count, run_end) = run(rest, end);
        let file = match open.take() {
            Some((of, file)) if of == at => file,
            _ => File::open(&segment.path).map_err(StorageError::io("open", &segment.path))?,
        };
        let mut bytes = vec![0; usize::try_from(run_end - first.offset).expect("a run fits in memory")];
        file.read_exact_at(&mut bytes, segment.byte_of(first.offset))
            .map_err(StorageError::io("read", &segment.path))?;
        open = Some((at, file));
        let bytes = Bytes::from(bytes);
        for (position, slot) in &rest[..count] {
            let from = (slot.offset - first.offset) as usize;
            let taken = record::record_bytes(slot.length as usize);
            if !is_entry(&bytes[from..from + taken], *position, slot.offset, tag) {
                let what = format!("entry {position}, which was written here, can't be read");
                return Err(StorageError::damaged(&segment.path, segment.byte_of(slot.offset), what));
            }
            let payload = from + HEADER_BYTES;
            records.push(Record { position: *position, payload: bytes.slice(payload..payload + slot.length as usize) });
        }
        rest = &rest[count..];
    }
    Ok(records)
}

/// How many of the entries lie one after the other before `end`, and where they end.
fn run(wanted: &[(Position, Slot)], end: u64) -> (usize, u64) {
    let begin = wanted[0].1.offset;
    let mut count = 0;
    let mut at = begin;
    for (_, slot) in wanted {
        let to = slot.offset + record::record_bytes(slot.length as usize) as u64;
        if slot.offset != at || at >= end || (count > 0 && to - begin > RUN_BYTES) {
            break;
        }
        at = to;
        count += 1;
    }
    (count, at)
}

fn is_entry(bytes: &[u8], position: Position, offset: u64, tag: LogTag) -> bool {
    let field = bytes.first_chunk::<SIZE_FIELD_BYTES>().copied().unwrap_or_default();
    record::extent(field, tag, offset) == Extent::Record(bytes.len())
        && record::decode(bytes, tag, offset).is_some_and(|record| record.change == Change::Append(position))
}

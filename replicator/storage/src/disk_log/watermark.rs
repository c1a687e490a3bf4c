//! The durable watermark: up to where the log has been fsynced, kept beside it.
//!
//! Written after each flush, before anybody hears of it, and not fsynced itself: so it survives a killed process always, and after a
//! power loss it may be older than the truth, never newer. What lies below it was durable once, and if it isn't there any more
//! or isn't whole, that is damage and not a torn write.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use replicator_types::{Position, codec::CodecError};
use xxhash_rust::xxh3::xxh3_64;

use crate::{StorageError, atomic_file, meta::LogTag};

/// The file's name in the log's folder.
pub(crate) const WATERMARK_FILE: &str = "durable";

const MAGIC: [u8; 7] = *b"RPLMARK";
/// Of everything in the log's folder.
pub(crate) const VERSION: u8 = 2;
const SLOT_BYTES: usize = 64;
/// Two slots, a page apart: a torn write of one can't touch the other.
const SLOT_OFFSETS: [u64; 2] = [0, 4096];
const FILE_BYTES: usize = 8192;

/// How far the log is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Watermark {
    /// The global offset at which the durable part ends. Invariant: the end of a record.
    pub(crate) end: u64,
    /// The log's last position there, purged or not.
    pub(crate) last: Option<Position>,
}

/// The open file. Two slots are written in turn, so that one is always whole.
#[derive(Debug)]
pub(crate) struct WatermarkFile {
    path: PathBuf,
    file: File,
    tag: LogTag,
    generation: u64,
}

/// What was found in the file.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) watermark: Watermark,
    /// Whether one slot was torn or damaged, and the other had to do.
    pub(crate) one_slot_lost: bool,
}

impl WatermarkFile {
    /// Makes the file of a new log, with both slots whole; durable on return.
    pub(crate) fn create(log_dir: &Path, tag: LogTag) -> Result<(), StorageError> {
        let mut bytes = [0; FILE_BYTES];
        for (generation, at) in (0..).zip(SLOT_OFFSETS) {
            let slot = encode(generation, tag, Watermark::default());
            bytes[at as usize..][..SLOT_BYTES].copy_from_slice(&slot);
        }
        atomic_file::replace(&log_dir.join(WATERMARK_FILE), &bytes)
    }

    /// Opens the file and reads the newest whole slot.
    pub(crate) fn open(log_dir: &Path, tag: LogTag) -> Result<(Self, Found), StorageError> {
        let (generation, found) = read(log_dir, tag)?;
        let path = log_dir.join(WATERMARK_FILE);
        let file = OpenOptions::new().write(true).open(&path).map_err(StorageError::io("open", &path))?;
        Ok((Self { path, file, tag, generation }, found))
    }

    /// Writes the watermark over the older slot. It is the operating system's on return, not the disk's.
    pub(crate) fn write(&mut self, watermark: Watermark) -> Result<(), StorageError> {
        self.generation += 1;
        let at = SLOT_OFFSETS[(self.generation % 2) as usize];
        let slot = encode(self.generation, self.tag, watermark);
        self.file.write_all_at(&slot, at).map_err(StorageError::io("write", &self.path))
    }

    /// Makes what was written durable.
    pub(crate) fn sync(&self) -> Result<(), StorageError> {
        self.file.sync_data().map_err(StorageError::io("fsync", &self.path))
    }
}

/// Reads the newest whole slot, and its generation. Changes nothing.
pub(crate) fn read(log_dir: &Path, tag: LogTag) -> Result<(u64, Found), StorageError> {
    let path = log_dir.join(WATERMARK_FILE);
    let bytes = atomic_file::read(&path)?
        .ok_or_else(|| StorageError::damaged(&path, None, "the log's durable watermark is missing"))?;
    if bytes.len() != FILE_BYTES {
        let what = format!("the file has {} bytes instead of {FILE_BYTES}", bytes.len());
        return Err(StorageError::damaged(path, None, what));
    }
    for slot in SLOT_OFFSETS.map(|at| &bytes[at as usize..][..SLOT_BYTES]) {
        if let Some(found) = version(slot).filter(|found| *found != VERSION) {
            let source = CodecError::Version { what: "log", found, expected: VERSION };
            return Err(StorageError::Version { path, source });
        }
    }
    let slots = SLOT_OFFSETS.map(|at| decode(&bytes[at as usize..][..SLOT_BYTES], tag));
    let one_slot_lost = slots.iter().any(Option::is_none);
    let Some((generation, watermark)) = slots.into_iter().flatten().max_by_key(|(generation, _)| *generation) else {
        let what = "neither of its two slots is whole and of this log, so what was durable is unknown";
        return Err(StorageError::damaged(path, None, what));
    };
    Ok((generation, Found { watermark, one_slot_lost }))
}

fn encode(generation: u64, tag: LogTag, watermark: Watermark) -> [u8; SLOT_BYTES] {
    let last = watermark.last.unwrap_or_default();
    let has_last = u64::from(watermark.last.is_some());
    let numbers = [generation, tag.0, watermark.end, has_last, last.epoch.0, last.index.0];
    let mut slot = [0; SLOT_BYTES];
    slot[..7].copy_from_slice(&MAGIC);
    slot[7] = VERSION;
    for (place, number) in slot[8..56].chunks_exact_mut(8).zip(numbers) {
        place.copy_from_slice(&number.to_be_bytes());
    }
    let checksum = xxh3_64(&slot[..56]);
    slot[56..].copy_from_slice(&checksum.to_be_bytes());
    slot
}

/// The version of a slot that is whole.
fn version(slot: &[u8]) -> Option<u8> {
    let (content, checksum) = slot.split_last_chunk::<8>()?;
    let whole = xxh3_64(content) == u64::from_be_bytes(*checksum);
    content.strip_prefix(&MAGIC)?.first().copied().filter(|_| whole)
}

/// The generation and the watermark of a slot, if it is whole and of the log `tag`.
fn decode(slot: &[u8], tag: LogTag) -> Option<(u64, Watermark)> {
    version(slot)?;
    let number = |i: usize| slot.get(8 + 8 * i..)?.first_chunk().map(|bytes| u64::from_be_bytes(*bytes));
    let last = match number(3)? {
        0 => None,
        _ => Some(Position::new(number(4)?, number(5)?)),
    };
    (number(1)? == tag.0).then_some((number(0)?, Watermark { end: number(2)?, last }))
}

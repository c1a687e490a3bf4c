//! Reads every byte of the log before raft-log may touch it, and tells damage from a torn tail.
//!
//! raft-log deletes a last chunk that was cut below one record, opens a file cut at a record's end without a word, and can't know
//! what was durable. So everything is decided here, and raft-log opens only what it can't misread:
//!
//! - Below the *floor* everything was durable, and whatever doesn't fit is damage. The floor is the greatest of the watermark, and
//!   the start of the last chunk: a chunk's first record is written only after the chunk before it was fsynced.
//! - Above it, what can't be read is a torn tail, unless a whole record after it says that it was appended when the log was
//!   durable beyond the tear: the watermark file may be older than the truth after a power loss, and the records know better.
//! - A whole record that doesn't fit the log is damage wherever it is.

use std::{
    fs::{self, File, OpenOptions},
    io::Read,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use raft_log::{ChunkId, WALRecord, chunked_wal::Config, codeq::Decode};

use super::{
    replay::{Replay, position},
    types::{APPEND_HEADER_AT, APPEND_TYPE, WalRecord, payload_length},
    watermark::Watermark,
};
use crate::{StorageError, atomic_file, meta::LogTag};

/// No checkpoint that we write is longer: type 4, version 1, no vote 1, two places 25 each, no commit 1, no user data 1, checksum 8,
/// and a byte to spare.
const CHECKPOINT_BYTES_MAX: u64 = 67;

/// What was cut off the end of a log: written, but never known to be durable, and so never acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TornTail {
    /// The file in which it began.
    pub file: PathBuf,
    /// At which byte.
    pub offset: u64,
    /// How many bytes there were, later files included.
    pub bytes: u64,
    /// How many whole records were among them, after the tear.
    pub records: u64,
}

/// A log that may be opened, after [`Scan::repair`].
#[derive(Debug)]
pub(crate) struct Scan {
    /// What the records add up to.
    pub(crate) replay: Replay,
    /// The global offset of the log's end, without the torn tail.
    pub(crate) end: u64,
    /// How many records there are, raft-log's own included.
    pub(crate) records: u64,
    pub(crate) torn_tail: Option<TornTail>,
    /// The chunks that stay, with their sizes after the repair.
    kept: Vec<(Chunk, u64)>,
    /// Chunks of the torn tail that hold nothing at all, the last one first.
    removed: Vec<PathBuf>,
}

/// A chunk's file. Its name is the global offset of its first byte.
#[derive(Debug, Clone)]
struct Chunk {
    start: u64,
    path: PathBuf,
}

impl Scan {
    /// Reads the log in `dir`. Changes nothing.
    pub(crate) fn read(dir: &Path, tag: LogTag, watermark: Watermark) -> Result<Self, StorageError> {
        let mut chunks = chunks(dir)?;
        let unborn = split_unborn(&mut chunks)?;
        if let Some(lost) = unborn.iter().find(|chunk| chunk.start < watermark.end) {
            return Err(StorageError::damaged(&lost.path, 0, "its first record can't be read, and it was durable"));
        }
        let mut reader = Reader { watermark, replay: Replay::new(tag), records: 0 };
        let mut kept = Vec::new();
        let mut tear = None;
        for (i, chunk) in chunks.iter().enumerate() {
            let next = chunks.get(i + 1);
            let (bytes, used) = reader.read_chunk(chunk, next)?;
            if used < bytes.len() {
                tear = Some((chunk.clone(), bytes[used..].to_vec()));
            }
            kept.push((chunk.clone(), used as u64));
        }
        let end = kept.last().map_or(0, |(chunk, bytes)| chunk.start + bytes);
        if end < watermark.end {
            let path = kept.last().map_or(dir, |(chunk, _)| &chunk.path);
            let offset = kept.last().map(|(_, bytes)| *bytes);
            let missing = watermark.end - end;
            return Err(StorageError::damaged(
                path,
                offset,
                format!("the log ends here, and {missing} durable bytes are missing"),
            ));
        }
        if let Some(absent) = reader.replay.absent() {
            return Err(StorageError::damaged(dir, None, format!("the log's beginning is missing: {absent}")));
        }
        let torn_tail = torn_tail(tag, tear, &unborn, end)?;
        Ok(Self {
            end,
            records: reader.records,
            replay: reader.replay,
            torn_tail,
            kept,
            removed: unborn.into_iter().rev().map(|chunk| chunk.path).collect(),
        })
    }

    /// Cuts the torn tail off, and makes sure that everything else is on the disk, from `watermark` on.
    pub(crate) fn repair(&self, dir: &Path, watermark: Watermark) -> Result<(), StorageError> {
        for path in &self.removed {
            fs::remove_file(path).map_err(StorageError::io("remove", path))?;
        }
        for (chunk, bytes) in self.kept.iter().filter(|(chunk, bytes)| chunk.start + bytes >= watermark.end) {
            rewrite(chunk, *bytes, watermark.end.saturating_sub(chunk.start))?;
        }
        atomic_file::sync_dir(dir)
    }
}

/// Cuts the file to `bytes`, and writes those from `from` on once more. If an earlier process's fsync failed, the system may hold them
/// in memory, marked as clean, and never write them: an fsync alone would then answer that all is well.
fn rewrite(chunk: &Chunk, bytes: u64, from: u64) -> Result<(), StorageError> {
    let file =
        OpenOptions::new().read(true).write(true).open(&chunk.path).map_err(StorageError::io("open", &chunk.path))?;
    let mut tail = vec![0; usize::try_from(bytes.saturating_sub(from)).expect("a chunk fits in memory")];
    file.read_exact_at(&mut tail, from.min(bytes))
        .and_then(|()| file.set_len(bytes))
        .and_then(|()| file.write_all_at(&tail, from.min(bytes)))
        .and_then(|()| file.sync_all())
        .map_err(StorageError::io("make durable", &chunk.path))
}

/// The chunks of the log, in order.
fn chunks(dir: &Path) -> Result<Vec<Chunk>, StorageError> {
    let mut chunks = Vec::new();
    for name in atomic_file::names(dir)? {
        let Ok(start) = Config::parse_chunk_file_name(&name) else { continue };
        let path = dir.join(&name);
        // raft-log reads names leniently: two could mean the same chunk.
        if Config::chunk_file_name(ChunkId(start)) != name {
            return Err(StorageError::damaged(path, None, "its name is almost that of a chunk of the log"));
        }
        chunks.push(Chunk { start, path });
    }
    chunks.sort_by_key(|chunk| chunk.start);
    Ok(chunks)
}

/// Takes the chunks off the end whose first record isn't whole: files are made ahead, before the chunk before them is durable.
fn split_unborn(chunks: &mut Vec<Chunk>) -> Result<Vec<Chunk>, StorageError> {
    let mut born = chunks.len();
    while born > 0 && !is_born(&chunks[born - 1])? {
        born -= 1;
    }
    Ok(chunks.split_off(born))
}

fn is_born(chunk: &Chunk) -> Result<bool, StorageError> {
    let mut bytes = Vec::new();
    File::open(&chunk.path)
        .and_then(|file| file.take(CHECKPOINT_BYTES_MAX).read_to_end(&mut bytes))
        .map_err(StorageError::io("read", &chunk.path))?;
    Ok(matches!(WalRecord::decode(&bytes[..]), Ok(WALRecord::Checkpoint(_))))
}

/// What is known while reading chunk after chunk.
struct Reader {
    watermark: Watermark,
    replay: Replay,
    records: u64,
}

impl Reader {
    /// Reads one chunk: its bytes, and how many of them are whole records. Fewer than all only in the last one.
    fn read_chunk(&mut self, chunk: &Chunk, next: Option<&Chunk>) -> Result<(Vec<u8>, usize), StorageError> {
        let bytes = fs::read(&chunk.path).map_err(StorageError::io("read", &chunk.path))?;
        let damaged = |at: usize, what: String| StorageError::damaged(&chunk.path, at as u64, what);
        let mut at = 0;
        while at < bytes.len() {
            let start = chunk.start + at as u64;
            let mut rest = &bytes[at..];
            let record = match WalRecord::decode(&mut rest) {
                Ok(record) => record,
                Err(_) if next.is_none() && start >= self.watermark.end => break,
                Err(error) => return Err(damaged(at, format!("a durable record can't be read: {error}"))),
            };
            let end = chunk.start + (bytes.len() - rest.len()) as u64;
            if start < self.watermark.end && self.watermark.end < end {
                return Err(damaged(at, format!("durable was the log up to {}, amid this record", self.watermark.end)));
            }
            self.replay.apply(&record, start, at == 0).map_err(|what| damaged(at, what))?;
            self.records += 1;
            at = bytes.len() - rest.len();
            let (found, known) = (position(self.replay.last()), self.watermark.last);
            if end == self.watermark.end && found != known {
                return Err(damaged(at, format!("the last entry is {found:?} here, and {known:?} was durable")));
            }
        }
        match next {
            Some(next) if chunk.start + at as u64 != next.start => {
                let what = format!("the chunk ends here, and the next one begins at {} of the log", next.start);
                Err(damaged(at, what))
            }
            _ => Ok((bytes, at)),
        }
    }
}

/// Describes the torn tail, or finds out that it isn't one.
fn torn_tail(
    tag: LogTag,
    tear: Option<(Chunk, Vec<u8>)>,
    unborn: &[Chunk],
    end: u64,
) -> Result<Option<TornTail>, StorageError> {
    let mut parts = Vec::new();
    if let Some((chunk, bytes)) = tear {
        parts.push((chunk.path, end - chunk.start, bytes));
    }
    for chunk in unborn {
        let bytes = fs::read(&chunk.path).map_err(StorageError::io("read", &chunk.path))?;
        parts.push((chunk.path.clone(), 0, bytes));
    }
    let Some((file, offset, _)) = parts.first().cloned() else { return Ok(None) };
    let mut tail = TornTail { file, offset, bytes: 0, records: 0 };
    for (_, _, bytes) in &parts {
        let later = LaterRecords::find(tag, bytes);
        if later.durable_end > end {
            let what = "the record can't be read, and later ones say that it was durable";
            return Err(StorageError::damaged(&tail.file, tail.offset, what));
        }
        tail.bytes += bytes.len() as u64;
        tail.records += later.count;
    }
    Ok(Some(tail))
}

/// The whole append records in bytes whose beginning is unreadable.
#[derive(Default)]
struct LaterRecords {
    count: u64,
    durable_end: u64,
}

impl LaterRecords {
    fn find(tag: LogTag, bytes: &[u8]) -> Self {
        let mut found = Self::default();
        let mut at = 0;
        while at < bytes.len() {
            at += match read_append(tag, &bytes[at..]) {
                Some((size, durable_end)) => {
                    found.count += 1;
                    found.durable_end = found.durable_end.max(durable_end);
                    size
                }
                None => 1,
            };
        }
        found
    }
}

/// The size and the durable end of the append record of this log that `bytes` begin with. The tag is random, so an entry that a
/// client made to look like a record is none.
fn read_append(tag: LogTag, bytes: &[u8]) -> Option<(usize, u64)> {
    if !bytes.starts_with(&APPEND_TYPE) {
        return None;
    }
    payload_length(bytes.get(APPEND_HEADER_AT..)?)?;
    let mut rest = bytes;
    match WalRecord::decode(&mut rest) {
        Ok(WALRecord::Action(raft_log::RaftLogAction::Append(_, payload))) if payload.tag == tag => {
            Some((bytes.len() - rest.len(), payload.durable_end))
        }
        _ => None,
    }
}

/// Whether the folder holds no chunk of a log.
pub(crate) fn is_blank(dir: &Path) -> Result<bool, StorageError> {
    Ok(chunks(dir)?.is_empty())
}

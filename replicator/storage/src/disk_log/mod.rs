//! The log on the disk: raft-log's chunks, opened only after our scanner has read them, with a durable watermark beside them.
//!
//! What raft-log gives: append-only chunk files with checksums, an index and a cache in memory, and a thread that writes and fsyncs.
//! What is added here: one flush in flight ([`flusher`]), damage told from torn tails ([`scanner`], [`watermark`]), and strict
//! positions. raft-log's vote, commit and user data are never used.

mod flusher;
mod options;
mod replay;
mod scanner;
mod types;
mod watermark;

use std::{
    fmt, fs,
    io::{self, ErrorKind},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        mpsc::{self, Sender},
    },
    thread::{self, JoinHandle},
};

use raft_log::{RaftLog, api::raft_log_writer::RaftLogWriter, types::Segment};
use replicator_types::{LogIndex, Position};

pub use self::{
    flusher::FlushCheck,
    options::{DiskLogOptions, OpenReport},
    scanner::TornTail,
};
use self::{
    flusher::{Event, Flushing},
    replay::{next, position},
    scanner::Scan,
    types::{Payload, Place, WalTypes},
    watermark::{Watermark, WatermarkFile},
};
use crate::{
    Durable, Log, LogEnds, NodeDir, Record, StorageError, atomic_file,
    meta::LogTag,
    node_dir::{self, LogClaim},
};

/// A log in a node's folder. Dropping it flushes what is left, and waits for that and for those who are called.
pub struct DiskLog {
    shared: Arc<Shared>,
    flusher: Option<JoinHandle<()>>,
    record_bytes_max: usize,
}

/// What the log and its flusher share. Locked in this order: `core`, then `flushing`.
struct Shared {
    core: RwLock<Core>,
    flushing: Mutex<Flushing>,
    events: Sender<Event>,
    flush_check: Option<FlushCheck>,
    /// Held until raft-log, which is dropped first, is gone too.
    _claim: LogClaim,
}

/// raft-log, and what it holds.
struct Core {
    raft: RaftLog<WalTypes>,
    path: PathBuf,
    tag: LogTag,
    /// See [`Place`].
    round: u64,
    /// The global offset of the log's end.
    end: u64,
    purged: Option<Position>,
    /// Invariant: `purged <= last`.
    last: Option<Position>,
}

impl fmt::Debug for DiskLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskLog").field("ends", &self.ends()).finish_non_exhaustive()
    }
}

impl DiskLog {
    /// Opens the log called `name` in the folder, or makes it if the folder never had it. Everything in the log is durable on
    /// return. A torn tail, which nobody was told of, is cut off and reported.
    ///
    /// # Errors
    /// [`StorageError::Damaged`] if anything that was durable is missing or isn't as it was written; then nothing is changed.
    pub fn open(dir: &NodeDir, name: &str, options: DiskLogOptions) -> Result<(Self, OpenReport), StorageError> {
        let path = dir.path().join(name);
        let claim = dir.claim_log(name)?;
        let (tag, created) = known_or_made(dir, name, &path)?;
        let (mut file, found) = WatermarkFile::open(&path, tag)?;
        let scan = Scan::read(&path, tag, found.watermark)?;
        warn_of(&path, &scan, found.one_slot_lost);
        scan.repair(&path, found.watermark)?;
        let core = open_raft_log(&path, tag, &scan, &options)?;
        let watermark = Watermark { end: core.end, last: core.last };
        sync_files(&path)?;
        file.write(watermark)?;
        file.sync()?;

        let (events, heard) = mpsc::channel();
        let shared = Arc::new(Shared {
            core: RwLock::new(core),
            flushing: Mutex::new(Flushing::new(watermark)),
            events,
            flush_check: options.flush_check.clone(),
            _claim: claim,
        });
        let flusher = thread::Builder::new()
            .name(format!("{name}-flusher"))
            .spawn({
                let shared = shared.clone();
                move || flusher::run(&shared, &heard, file)
            })
            .map_err(StorageError::io("start the flusher of", &path))?;
        let report = OpenReport {
            created,
            torn_tail: scan.torn_tail,
            watermark_slot_lost: found.one_slot_lost,
            records: scan.records,
            bytes: shared.read()?.raft.on_disk_size(),
        };
        let record_bytes_max = options.record_bytes_max();
        Ok((Self { shared, flusher: Some(flusher), record_bytes_max }, report))
    }
}

/// The tag of the log, and whether it was made now. Meta learns of a log when its folder and its watermark are durable, so from
/// then on nothing of it may be missing.
fn known_or_made(dir: &NodeDir, name: &str, path: &Path) -> Result<(LogTag, bool), StorageError> {
    if let Some(tag) = dir.meta().logs.get(name) {
        if !path.is_dir() {
            return Err(StorageError::damaged(path, None, "the log's folder is missing"));
        }
        return Ok((*tag, false));
    }
    if !scanner::is_blank(path)? {
        return Err(StorageError::damaged(path, None, "the folder holds a log that the meta file doesn't know"));
    }
    atomic_file::create_dir(path)?;
    let tag = LogTag(node_dir::random(path)?);
    WatermarkFile::create(path, tag)?;
    dir.update(|meta| {
        meta.logs.insert(name.to_owned(), tag);
    })?;
    Ok((tag, true))
}

fn warn_of(path: &Path, scan: &Scan, one_slot_lost: bool) {
    if let Some(tail) = &scan.torn_tail {
        tracing::warn!(
            file = %tail.file.display(), offset = tail.offset, bytes = tail.bytes, records = tail.records,
            "cutting a torn tail off the log: it was never durable, so nobody was told of it"
        );
    }
    if one_slot_lost {
        tracing::warn!(log = %path.display(), "one of two copies of the log's watermark was torn or damaged; using the other");
    }
}

/// Opens raft-log on what was scanned, and checks that it has understood the same.
fn open_raft_log(path: &Path, tag: LogTag, scan: &Scan, options: &DiskLogOptions) -> Result<Core, StorageError> {
    let config = options.raft_log_config(path)?;
    let raft = RaftLog::<WalTypes>::open(config).map_err(StorageError::io("open the log in", path))?;
    let found = (raft.log_state().purged().copied(), raft.log_state().last().copied());
    let scanned = (scan.replay.purged(), scan.replay.last());
    let end = raft.stat().open_chunk.global_end;
    if found != scanned || (scan.end != 0 && end != scan.end) {
        let scan_end = scan.end;
        let what = format!("raft-log reads {found:?} in {end} bytes, the scanner {scanned:?} in {scan_end}");
        return Err(StorageError::damaged(path, None, what));
    }
    let (purged, last) = (position(found.0), position(found.1));
    Ok(Core { raft, path: path.to_owned(), tag, round: scan.replay.round() + 1, end, purged, last })
}

/// Makes all that raft-log wrote while opening durable, and its files private.
fn sync_files(path: &Path) -> Result<(), StorageError> {
    for name in atomic_file::names(path)? {
        let file = path.join(name);
        let sync = || {
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
            fs::File::open(&file)?.sync_all()
        };
        sync().map_err(StorageError::io("make durable and private", &file))?;
    }
    atomic_file::sync_dir(path)
}

impl Shared {
    fn read(&self) -> Result<RwLockReadGuard<'_, Core>, StorageError> {
        self.core.read().map_err(|_| panicked())
    }

    fn write(&self) -> Result<RwLockWriteGuard<'_, Core>, StorageError> {
        self.core.write().map_err(|_| panicked())
    }

    /// Nothing in there panics halfway through a change.
    fn flushing(&self) -> MutexGuard<'_, Flushing> {
        self.flushing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a flush, if there is something to flush and none is in flight.
    fn start_flush(&self) {
        match self.write() {
            Ok(mut core) => self.flushing().start(&mut core, &self.events),
            Err(error) => flusher::fail(self, &error.to_string().into()),
        }
    }
}

fn panicked() -> StorageError {
    StorageError::failed("a panic amid a change of the log")
}

impl Core {
    /// What raft-log says after it wrote.
    fn wrote(&mut self, segment: Segment) {
        self.end = segment.offset + segment.size;
    }

    /// The place of the entry with this index, if it is in the log.
    fn place(&self, index: LogIndex) -> Result<Option<Place>, StorageError> {
        let found = self
            .raft
            .read(index.0, index.0.saturating_add(1))
            .next()
            .transpose()
            .map_err(|error| self.unreadable(error))?;
        Ok(found.map(|(place, _)| place))
    }

    fn unreadable(&self, source: io::Error) -> StorageError {
        match source.kind() {
            ErrorKind::InvalidData | ErrorKind::UnexpectedEof | ErrorKind::NotFound => {
                StorageError::damaged(&self.path, None, format!("an entry can't be read: {source}"))
            }
            _ => StorageError::io("read an entry of the log in", &self.path)(source),
        }
    }

    fn not_contiguous(&self, what: String) -> StorageError {
        StorageError::NotContiguous { last: self.last, what }
    }

    fn check_append(&self, records: &[Record], bytes_max: usize) -> Result<(), StorageError> {
        let mut last = self.last;
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

    /// Drops every entry after `last`, which is in the log or its purged end.
    fn truncate(&mut self, last: Option<Position>) -> Result<(), StorageError> {
        let segment = self.raft.truncate(next(last).0).map_err(write_failed)?;
        self.wrote(segment);
        self.last = last;
        self.round += 1;
        Ok(())
    }
}

fn write_failed(error: io::Error) -> StorageError {
    StorageError::failed(format!("the log couldn't be written: {error}"))
}

impl DiskLog {
    /// Runs a change of the log, unless it has failed; if the change fails midway, so has the log.
    fn change<T>(
        &self,
        change: impl FnOnce(&mut Core, &mut Flushing) -> Result<T, StorageError>,
    ) -> Result<T, StorageError> {
        let result = {
            let mut core = self.shared.write()?;
            let mut flushing = self.shared.flushing();
            flushing.check()?;
            change(&mut core, &mut flushing)
        };
        if let Err(StorageError::Failed { what }) = &result {
            flusher::fail(&self.shared, what);
        }
        result
    }
}

impl Log for DiskLog {
    fn ends(&self) -> LogEnds {
        let core = self.shared.core.read().unwrap_or_else(PoisonError::into_inner);
        LogEnds { purged: core.purged, last: core.last, durable: self.shared.flushing().durable() }
    }

    fn append(&self, records: Vec<Record>, done: Durable) -> Result<(), StorageError> {
        self.change(|core, flushing| {
            core.check_append(&records, self.record_bytes_max)?;
            if let Some(last) = records.last() {
                let (last, tag, round, durable_end) = (last.position, core.tag, core.round, flushing.durable_end());
                let entries = records.into_iter().map(|Record { position, payload: bytes }| {
                    (Place { round, position }, Payload { tag, durable_end, bytes })
                });
                let segment = core.raft.append(entries).map_err(write_failed)?;
                core.wrote(segment);
                core.last = Some(last);
                flushing.written();
            }
            flushing.wait(done, &self.shared.events);
            flushing.start(core, &self.shared.events);
            Ok(())
        })
    }

    fn flush(&self, done: Durable) -> Result<(), StorageError> {
        self.append(Vec::new(), done)
    }

    fn read(&self, from: LogIndex, to: LogIndex, bytes_max: usize) -> Result<Vec<Record>, StorageError> {
        if from >= to {
            return Ok(Vec::new()); // raft-log would panic
        }
        let core = self.shared.read()?;
        let mut records = Vec::new();
        let mut bytes = 0_usize;
        for entry in core.raft.read(from.0, to.0) {
            let (place, payload) = entry.map_err(|error| core.unreadable(error))?;
            let follows = records.last().is_none_or(|last: &Record| place.position.index == last.position.index.next());
            if payload.tag != core.tag || !follows {
                let what = format!("the entry read as {} isn't the one that was written there", place.position);
                return Err(StorageError::damaged(&core.path, None, what));
            }
            bytes = bytes.saturating_add(payload.bytes.len());
            if bytes > bytes_max && !records.is_empty() {
                break;
            }
            records.push(Record { position: place.position, payload: payload.bytes });
        }
        Ok(records)
    }

    fn truncate_after(&self, last: Option<Position>) -> Result<(), StorageError> {
        self.change(|core, flushing| {
            let last = last.or(core.purged);
            if last == core.last {
                return Ok(());
            }
            if let Some(kept) = last.filter(|_| last != core.purged)
                && position(core.place(kept.index)?) != last
            {
                return Err(core.not_contiguous(format!("can't truncate after {kept}, which is not in it")));
            }
            core.truncate(last)?;
            flushing.truncated(last);
            flushing.written();
            Ok(())
        })
    }

    fn purge_through(&self, through: Position) -> Result<(), StorageError> {
        self.change(|core, flushing| {
            if let Some(purged) = core.purged {
                if through.index < purged.index || through == purged {
                    return Ok(());
                }
                if through.index == purged.index || through.epoch < purged.epoch {
                    return Err(core.not_contiguous(format!("can't purge through {through} after {purged}")));
                }
            }
            let held = core.place(through.index)?.filter(|place| place.position == through);
            if held.is_none() && core.last != core.purged {
                // An image installed over a log that doesn't hold its last entry: it is another history's, or too short.
                let kept = core.purged;
                core.truncate(kept)?;
                flushing.truncated(kept);
            }
            let place = held.unwrap_or(Place { round: core.round, position: through });
            let segment = core.raft.purge(place).map_err(write_failed)?;
            core.wrote(segment);
            core.purged = Some(through);
            core.last = core.last.max(Some(through));
            flushing.written();
            flushing.start(core, &self.shared.events); // raft-log removes purged chunks with a flush
            Ok(())
        })
    }
}

impl Drop for DiskLog {
    fn drop(&mut self) {
        let _ = self.shared.events.send(Event::Stop); // fails only if the flusher has ended
        let Some(flusher) = self.flusher.take() else { return };
        // The last handle may be dropped by somebody whom the flusher calls: then it ends by itself.
        if flusher.thread().id() != thread::current().id() && flusher.join().is_err() {
            tracing::error!("the log's flusher panicked");
        }
    }
}

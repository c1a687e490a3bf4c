//! Opening a log: scanned, repaired where that is safe, and only then given to raft-log.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{Arc, RwLock, mpsc},
    thread,
};

use raft_log::RaftLog;

use super::{
    DiskLog, DiskLogOptions, OpenReport, Shared,
    core::Core,
    flusher::{self, Flush},
    replay::position,
    scanner::{self, Scan},
    types::WalTypes,
    watermark::{Watermark, WatermarkFile},
};
use crate::{NodeDir, StorageError, atomic_file, meta::LogTag, node_dir};

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
        let report = OpenReport {
            created,
            watermark_slot_lost: found.one_slot_lost,
            records: scan.records,
            bytes: core.raft.on_disk_size(),
            torn_tail: scan.torn_tail,
        };

        let (events, heard) = mpsc::channel();
        let shared = Arc::new(Shared {
            core: RwLock::new(core),
            flush: Arc::new(Flush::new(watermark, file, options.flush_check.clone(), events)),
            _claim: claim,
        });
        let flusher = thread::Builder::new()
            .name(format!("{name}-flusher"))
            .spawn({
                let shared = shared.clone();
                move || flusher::run(&shared, &heard)
            })
            .map_err(StorageError::io("start the flusher of", &path))?;
        let record_bytes_max = options.record_bytes_max();
        Ok((Self { shared: Some(shared), flusher: Some(flusher), record_bytes_max }, report))
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

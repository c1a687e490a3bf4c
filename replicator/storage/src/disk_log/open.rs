//! Opening a log: scanned, repaired where that is safe, and only then written to.

use std::{path::Path, sync::Arc, thread};

use super::{
    DiskLog, DiskLogOptions, OpenReport,
    preparation::Maker,
    room::Gauge,
    scanner::Scan,
    segment,
    segment_writer::SegmentWriter,
    state::State,
    watermark::{Watermark, WatermarkFile},
    writer::{self, Shared},
};
use crate::{NodeDir, StorageError, atomic_file, meta::LogTag, node_dir};

impl DiskLog {
    /// Opens the log called `name` in the folder, or makes it if the folder never had it. Everything in the log is durable on
    /// return. A torn tail, which nobody was told of, is cut off and reported.
    ///
    /// # Errors
    /// [`StorageError::Damaged`] if anything that was durable is missing or isn't as it was written; [`StorageError::Version`] if another
    /// version of replicator wrote it. Then nothing is changed.
    pub fn open(dir: &NodeDir, name: &str, options: DiskLogOptions) -> Result<(Self, OpenReport), StorageError> {
        let path = dir.path().join(name);
        let claim = dir.claim(name)?;
        let (tag, created) = known_or_made(dir, name, &path)?;
        let (mut watermark, found) = WatermarkFile::open(&path, tag)?;
        let scan = Scan::read(&path, tag, found.watermark)?;
        warn_of(&path, &scan, found.one_slot_lost);
        scan.repair(&path, found.watermark, options.direct)?;
        let gauge = Arc::<Gauge>::default();
        let maker = Maker {
            dir: path.clone(),
            name: name.to_owned(),
            direct: options.direct,
            segment_bytes_max: options.segment_bytes_max as u64,
            gauge: gauge.clone(),
        };
        let (end, ends) = (scan.end, scan.replay.ends);
        let segments = SegmentWriter::resume(maker, tag, scan.segments.last(), scan.ahead, end, ends)?;
        watermark.write(Watermark { end, last: ends.last })?;
        watermark.sync()?;

        let report = OpenReport {
            created,
            watermark_slot_lost: found.one_slot_lost,
            records: scan.records,
            bytes: end - scan.segments.first().map_or(end, |first| first.start),
            torn_tail: scan.torn_tail,
        };
        let state = State::new(tag, ends, scan.replay.index, scan.segments, end);
        let record_bytes_max = options.record_bytes_max();
        let reserve_bytes = options.reserve_bytes;
        let shared = Arc::new(Shared::new(path.clone(), state, options, gauge, claim));
        let writer = thread::Builder::new()
            .name(format!("{name}-writer"))
            .spawn({
                let shared = shared.clone();
                move || writer::run(&shared, segments, watermark)
            })
            .map_err(StorageError::io("start the writer of", &path))?;
        Ok((Self { shared, writer: Some(writer), record_bytes_max, reserve_bytes }, report))
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
    if !segment::files(path)?.is_empty() {
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

//! Looks at a log without opening it: all of its segments, and every damage, not only the first.
//!
//! The scanner decides whether a log opens; this says what is in the files. Where the scanner finds nothing wrong, nothing is reported
//! as damage here, and where it refuses, its reason is among those reported.

use std::path::{Path, PathBuf};

use replicator_types::Position;

use super::{
    record::Change,
    replay::{Ends, Replay},
    scanner::Scan,
    segment::{self, FirstBlock, Header, SEGMENT_HEADER_BYTES},
    tear::TornTail,
    walk::{Step, Walk},
    watermark::{self, Watermark},
    window::Window,
};
use crate::{StorageError, atomic_file, meta::LogTag};

/// What is in the files of a log.
#[derive(Debug)]
pub struct LogReport {
    /// The log's folder.
    pub path: PathBuf,
    /// Its segments' files, in order.
    pub segments: Vec<SegmentReport>,
    /// The last entry that was purged, as the last record that says so, or the last segment's header.
    pub purged: Option<Position>,
    /// The last entry, in the same way.
    pub last: Option<Position>,
    /// The last entry that the watermark says is durable; `None` too if the watermark can't be read, which is then a damage.
    pub durable: Option<Position>,
    /// The byte in the row of all records up to which it says so.
    pub durable_end: u64,
    /// What opening would cut off the end. Nobody was told of it.
    pub torn_tail: Option<TornTail>,
    /// All that isn't as it was written. The log opens only if there is none.
    pub damages: Vec<StorageError>,
}

/// What is in one segment's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentReport {
    /// The file.
    pub path: PathBuf,
    /// Its number.
    pub sequence: u64,
    /// The file's size in bytes.
    pub bytes: u64,
    /// Where its records begin in the row of all records, in bytes; `None` if its header says nothing: it was made ahead, or is damaged.
    pub start: Option<u64>,
    /// The whole records in it, with purged and truncated ones.
    pub records: u64,
    /// The bytes that these take.
    pub record_bytes: u64,
    /// The first entry that was appended in it.
    pub first: Option<Position>,
    /// The last entry that was appended in it.
    pub last: Option<Position>,
}

/// Whether a folder holds a log: its watermark, or a segment.
pub(crate) fn is_log(dir: &Path) -> bool {
    let is_part = |name: &String| name == watermark::WATERMARK_FILE || segment::sequence_of(name).is_some();
    atomic_file::names(dir).is_ok_and(|names| names.iter().any(is_part))
}

/// Looks at the log in `dir`. Without a tag, the one that its first whole segment has.
pub(crate) fn inspect(dir: &Path, tag: Option<LogTag>) -> LogReport {
    let mut report = LogReport {
        path: dir.to_owned(),
        segments: Vec::new(),
        purged: None,
        last: None,
        durable: None,
        durable_end: 0,
        torn_tail: None,
        damages: Vec::new(),
    };
    let files = files(dir, &mut report.damages);
    let Some(tag) = tag.or_else(|| files.iter().find_map(|file| Some(file.header?.tag))) else {
        report.segments.extend(files.iter().map(File::blank));
        return report;
    };
    let known = watermark::read(dir, tag).map(|(_, found)| found.watermark);
    let watermark = known.unwrap_or_else(|error| {
        report.damages.push(error);
        Watermark::default()
    });
    (report.durable, report.durable_end) = (watermark.last, watermark.end);
    let verdict = Scan::read(dir, tag, watermark);
    let mut inspector = Inspector { tag, watermark, report, before: None, refused: verdict.is_err() };
    for i in 0..files.len() {
        let later = files[i + 1..].iter().find_map(|file| file.header);
        inspector.segment(&files[i], later.is_some());
    }
    let mut report = inspector.report;
    match verdict {
        Ok(scan) => {
            report.torn_tail = scan.torn_tail;
            (report.purged, report.last) = (scan.replay.ends.purged, scan.replay.ends.last);
        }
        Err(error) if !report.damages.iter().any(|known| same_place(known, &error)) => report.damages.push(error),
        Err(_) => {}
    }
    report
}

/// A segment's file.
struct File {
    sequence: u64,
    path: PathBuf,
    bytes: u64,
    header: Option<Header>,
}

impl File {
    fn blank(&self) -> SegmentReport {
        SegmentReport {
            path: self.path.clone(),
            sequence: self.sequence,
            bytes: self.bytes,
            start: self.header.map(|header| header.start),
            records: 0,
            record_bytes: 0,
            first: None,
            last: None,
        }
    }
}

/// The files that are named as segments, and can be read at all.
fn files(dir: &Path, damages: &mut Vec<StorageError>) -> Vec<File> {
    let mut found = Vec::new();
    let names = atomic_file::names(dir).unwrap_or_else(|error| {
        damages.push(error);
        Vec::new()
    });
    for name in names {
        let path = dir.join(&name);
        match segment::sequence_of(&name) {
            None => {}
            Some(Err(())) => damages.push(segment::odd_name(&path)),
            Some(Ok(sequence)) => match first_block(&path) {
                Ok((bytes, header)) => found.push(File { sequence, path, bytes, header }),
                Err(error) => damages.push(error),
            },
        }
    }
    found.sort_by_key(|file| file.sequence);
    found
}

fn first_block(path: &Path) -> Result<(u64, Option<Header>), StorageError> {
    let mut window = Window::open(path)?;
    let bytes = window.bytes();
    match FirstBlock::decode(window.read(0, SEGMENT_HEADER_BYTES as usize)?) {
        FirstBlock::Whole(header) => Ok((bytes, Some(header))),
        FirstBlock::Other(version) => Err(segment::other_version(path, version)),
        FirstBlock::None => Ok((bytes, None)),
    }
}

/// What is known while looking at segment after segment.
struct Inspector {
    tag: LogTag,
    watermark: Watermark,
    report: LogReport,
    before: Option<Before>,
    /// The log doesn't open, so what looks like a torn tail may be damage.
    refused: bool,
}

/// The segment before.
struct Before {
    sequence: u64,
    /// The global offset at which its records end, and what they add up to; unknown behind damage.
    end: Option<(u64, Ends)>,
}

impl Inspector {
    fn segment(&mut self, file: &File, later_header: bool) {
        let before = self.before.take();
        if let Some(missing) = before.as_ref().filter(|before| before.sequence + 1 < file.sequence) {
            let (from, to) = (missing.sequence + 1, file.sequence - 1);
            self.damage(&file.path, None, format!("the segments {from} to {to} before it are missing"));
        }
        let end = before.filter(|before| before.sequence + 1 == file.sequence).and_then(|before| before.end);
        let mut segment = file.blank();
        let start = match file.header {
            Some(header) => {
                self.check_header(file, &header, end);
                (header.tag == self.tag).then_some((header.start, Some(header.ends)))
            }
            None => {
                if later_header {
                    let what = "its header can't be read, and the one of a later segment can: so it was durable";
                    self.damage(&file.path, Some(0), what.into());
                }
                // Where its records would begin; what they add up to isn't known any more.
                end.map(|(end, _)| (end, None))
            }
        };
        let known = start.and_then(|(start, ends)| {
            let read = self.records(file, &mut segment, start, ends, later_header);
            read.unwrap_or_else(|error| {
                self.report.damages.push(error);
                None
            })
        });
        self.report.segments.push(segment);
        self.before = Some(Before { sequence: file.sequence, end: known });
    }

    fn check_header(&mut self, file: &File, header: &Header, before: Option<(u64, Ends)>) {
        if header.tag != self.tag {
            self.damage(&file.path, Some(0), "the segment belongs to another log".into());
        }
        if header.sequence != file.sequence {
            self.damage(&file.path, Some(0), format!("it says that it is segment {}", header.sequence));
        }
        if header.capacity != file.bytes {
            let what = format!("the file has {} bytes, and was made with {}", file.bytes, header.capacity);
            self.damage(&file.path, Some(0), what);
        }
        if let Some((end, ends)) = before
            && (header.start, header.ends) != (end, ends)
        {
            let what = format!("begins at {} of the log, and the segment before ends at {end}", header.start);
            self.damage(&file.path, Some(0), what);
        }
    }

    /// Reads all records of a segment. Returns where they end and what they add up to, if there was no gap and all fitted.
    fn records(
        &mut self,
        file: &File,
        segment: &mut SegmentReport,
        start: u64,
        ends: Option<Ends>,
        later_header: bool,
    ) -> Result<Option<(u64, Ends)>, StorageError> {
        let mut walk = Walk::new(Window::open(&file.path)?, self.tag, start);
        let mut replay = ends.map(Replay::begin);
        let mut gaps = Vec::new();
        // What the records behind the first gap say.
        let (mut later_records, mut later_durable_end) = (0, 0);
        while let Some(step) = walk.next()? {
            match step {
                Step::Gap { at, to } => {
                    gaps.push((at, to));
                    replay = None;
                }
                Step::Record { at, offset, bytes, record } => {
                    segment.records += 1;
                    segment.record_bytes += bytes;
                    if !gaps.is_empty() {
                        later_records += 1;
                        later_durable_end = record.durable_end.max(later_durable_end);
                    }
                    self.report.note(segment, record.change);
                    if let Some(Err(what)) = replay.as_mut().map(|replay| replay.apply(&record, offset)) {
                        replay = None;
                        self.damage(&file.path, Some(at), what);
                    }
                }
            }
        }
        let Some(&(torn_at, _)) = gaps.first().filter(|_| self.refused) else {
            return Ok(replay.map(|replay| (walk.offset(walk.at()), replay.ends)));
        };
        // The scanner found something somewhere, and stopped there; this may still be a torn tail.
        let torn_offset = walk.offset(torn_at);
        if !later_header && torn_offset >= self.watermark.end && later_durable_end <= torn_offset {
            let bytes = walk.written_end() - torn_at;
            let tail = TornTail { file: file.path.clone(), offset: torn_at, bytes, records: later_records };
            self.report.torn_tail.get_or_insert(tail);
            return Ok(None);
        }
        for (at, to) in gaps {
            self.damage(&file.path, Some(at), format!("{} bytes from here on can't be read", to - at));
        }
        Ok(replay.map(|replay| (walk.offset(walk.at()), replay.ends)))
    }

    fn damage(&mut self, path: &Path, offset: Option<u64>, what: String) {
        self.report.damages.push(StorageError::damaged(path, offset, what));
    }
}

impl LogReport {
    fn note(&mut self, segment: &mut SegmentReport, change: Change) {
        if let Change::Append(position) = change {
            segment.first.get_or_insert(position);
            segment.last = Some(position);
        }
        let mut ends = Ends { purged: self.purged, last: self.last };
        ends.apply(change);
        (self.purged, self.last) = (ends.purged, ends.last);
    }
}

/// Whether two damages name the same file, and no different places in it.
fn same_place(one: &StorageError, other: &StorageError) -> bool {
    match (one, other) {
        (StorageError::Damaged { path, offset, .. }, StorageError::Damaged { path: path2, offset: offset2, .. }) => {
            path == path2 && (offset == offset2 || offset.is_none() || offset2.is_none())
        }
        _ => false,
    }
}

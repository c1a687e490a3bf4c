//! Puts a damaged log together again: its whole records and what fills its holes, in order, each checked against what is before it.

use std::path::{Path, PathBuf};

use replicator_types::{LogIndex, Position};

use super::{
    super::{
        record::{self, Change},
        replay::Replay,
        segment::SEGMENT_HEADER_BYTES,
        walk::{Step, Walk},
        watermark::Watermark,
        window::Window,
    },
    EntrySource, GivenEntries, Trouble, Withheld,
    fill::{Fill, Place},
    rewrite::Rewritten,
    survey::{Front, Hole, Plan, Survey},
};
use crate::{Repair, StorageError, meta::LogTag, snapshot};

/// A damaged log, and where its images are.
pub(super) struct Mender<'a> {
    pub(super) path: &'a Path,
    pub(super) tag: LogTag,
    pub(super) watermark: Watermark,
    pub(super) images: Option<PathBuf>,
}

impl Mender<'_> {
    /// Finds the way that needs the least, and goes it.
    pub(super) fn mend(&self, source: &mut dyn EntrySource) -> Result<Vec<Repair>, Trouble> {
        let survey = Survey::read(self.path, self.tag, self.watermark, Front::Purged)?;
        if survey.absent.is_none() {
            return self.rebuild_somehow(&survey, source)?.commit(self.path);
        }
        // Either the first segments are lost, or the record that says that they were purged. To have too many entries harms nothing, so that is tried first.
        let lost = Survey::read(self.path, self.tag, self.watermark, Front::Lost);
        match lost.and_then(|lost| self.rebuild_somehow(&lost, source)) {
            // Nobody has them any more, and nothing is there where they were. Such a record fits into a hole, or it doesn't.
            Err(Trouble::Never(_)) if survey.useless.is_empty() => {
                self.rebuild(&survey, None, source)?.commit(self.path)
            }
            rebuilt => rebuilt?.commit(self.path),
        }
    }

    /// Without a peer, if an image has all that was lost; else with one.
    fn rebuild_somehow(&self, survey: &Survey, source: &mut dyn EntrySource) -> Result<Rewritten, Trouble> {
        let mut nobody = Nobody;
        match self.rebuild(survey, None, &mut nobody) {
            Err(Trouble::Never(_)) => {}
            rebuilt => return rebuilt,
        }
        for image in self.images()? {
            match self.rebuild(survey, Some(image), &mut nobody) {
                Err(Trouble::Never(_)) => {}
                rebuilt => return rebuilt,
            }
        }
        self.rebuild(survey, None, source)
    }

    /// The positions of all images that are whole, the newest first.
    fn images(&self) -> Result<Vec<Position>, StorageError> {
        let Some(folder) = self.images.as_ref().filter(|folder| folder.is_dir()) else { return Ok(Vec::new()) };
        let (entries, _) = snapshot::check_folder(folder)?;
        Ok(entries.iter().rev().filter(|entry| entry.manifest.is_ok()).map(|entry| entry.position).collect())
    }

    /// The log as it should be. With an `image`, all entries through it are purged at the log's end.
    fn rebuild(
        &self,
        survey: &Survey,
        image: Option<Position>,
        source: &mut dyn EntrySource,
    ) -> Result<Rewritten, Trouble> {
        let mut log = Log {
            tag: self.tag,
            watermark: self.watermark,
            replay: Replay::begin(survey.ends),
            durable_end: 0,
            cover: survey.purged.max(image),
            absent: survey.absent,
        };
        let mut rewritten = Rewritten::new(survey.useless.clone());
        let mut holes = survey.holes.iter().peekable();
        // The image's own entry must be there, so that the log is known to go on from it.
        let mut seen = self.watermark.last == image;
        for (i, plan) in survey.plans.iter().enumerate() {
            let mut patches: Vec<(u64, Vec<u8>)> = Vec::new();
            let mut start = plan.start;
            let header_ends = log.replay.ends;
            if let Some(header) = plan.header.filter(|header| header.ends != header_ends) {
                return Err(Trouble::Never(format!(
                    "{} begins with {:?}, and before it are {header_ends:?}",
                    plan.path.display(),
                    header.ends
                )));
            }
            let mut steps = Steps::new(plan, self.tag)?;
            while let Some(hole) = holes.next_if(|hole| hole.sequence == plan.sequence) {
                let until = hole.offset.unwrap_or(hole.end);
                steps.each(until, &mut |offset, bytes, record| {
                    log.apply(&record, offset, bytes).map(|()| seen |= log.replay.ends.last == image)
                })?;
                let old = match hole.offset.filter(|_| plan.kept) {
                    Some(offset) => read_old(plan, offset, hole.end)?,
                    None => Vec::new(),
                };
                let place = Place {
                    hole,
                    tag: self.tag,
                    replay: &log.replay,
                    old: &old,
                    durable_end: log.durable_end,
                    cover: log.cover,
                    cut: survey.cuts.iter().filter(|(offset, _)| *offset >= hole.end).map(|(_, last)| *last).min(),
                    named: &survey.named,
                    absent: log.absent,
                };
                let fill = place.fill(source)?;
                log.apply_all(&fill.bytes, fill.offset)?;
                start = hole.offset.map_or(fill.offset, |_| start);
                rewritten.repairs.push(repair(hole, &fill));
                steps.skip_to(hole.end);
                patches.push((fill.offset, fill.bytes));
            }
            steps.each(plan.end, &mut |offset, bytes, record| {
                log.apply(&record, offset, bytes).map(|()| seen |= log.replay.ends.last == image)
            })?;
            let mut end = plan.end;
            if let Some(image) = image.filter(|_| i + 1 == survey.plans.len()) {
                if !seen {
                    return Err(Trouble::Never(format!("its entry {image} is lost too")));
                }
                let mut bytes = Vec::new();
                record::encode(&mut bytes, self.tag, end, log.durable_end, Change::PurgeThrough(image), &[]);
                log.apply_all(&bytes, end)?;
                let room =
                    plan.capacity.map_or(0, |capacity| capacity.saturating_sub(SEGMENT_HEADER_BYTES + (end - start)));
                if room < bytes.len() as u64 {
                    return Err(Trouble::Never("the last segment is full".into()));
                }
                rewritten.repairs.push(Repair::new(
                    &plan.path,
                    None,
                    format!("the log begins after the image of {image}, as entries before that are lost"),
                ));
                end += bytes.len() as u64;
                patches.push((end - bytes.len() as u64, bytes));
            }
            rewritten.plan(self.tag, plan, start, end, header_ends, patches, i + 1 == survey.plans.len());
        }
        if let Some(absent) = log.replay.absent() {
            return Err(Trouble::Never(format!("the log's beginning is missing: {absent}")));
        }
        Ok(rewritten)
    }
}

/// Nobody has anything.
struct Nobody;

impl EntrySource for Nobody {
    fn entries(&mut self, _from: LogIndex, _to: LogIndex, _anchor: Position) -> Result<GivenEntries, Withheld> {
        Err(Withheld::Never("nobody was asked".into()))
    }
}

/// The log as it is put together.
struct Log {
    tag: LogTag,
    watermark: Watermark,
    replay: Replay,
    durable_end: u64,
    cover: Option<Position>,
    absent: Option<Position>,
}

impl Log {
    fn apply(&mut self, record: &record::Decoded<'_>, offset: u64, bytes: u64) -> Result<(), Trouble> {
        let misfit = |what: String| Trouble::Never(format!("at {offset} of the log: {what}"));
        self.replay.apply(record, offset).map_err(misfit)?;
        self.durable_end = record.durable_end;
        if let Change::PurgeThrough(_) = record.change {
            self.absent = self.absent.filter(|_| self.replay.absent().is_some());
        }
        if offset + bytes == self.watermark.end && self.replay.ends.last != self.watermark.last {
            let (found, known) = (self.replay.ends.last, self.watermark.last);
            return Err(Trouble::Never(format!("the last entry would be {found:?}, and {known:?} was durable")));
        }
        Ok(())
    }

    fn apply_all(&mut self, bytes: &[u8], start: u64) -> Result<(), Trouble> {
        let mut at = 0;
        for (taken, _) in record::walk(bytes) {
            let offset = start + at as u64;
            let record =
                record::decode(&bytes[at..at + taken], self.tag, offset).expect("it was encoded for this place");
            self.apply(&record, offset, taken as u64)?;
            at += taken;
        }
        Ok(())
    }
}

/// The whole records of a segment, up to a place each time.
struct Steps {
    walk: Option<Walk>,
    /// Records before this global offset are passed over: another took their place.
    from: u64,
    /// What is known to be next.
    ahead: u64,
}

impl Steps {
    fn new(plan: &Plan, tag: LogTag) -> Result<Self, StorageError> {
        let walk = if plan.kept { Some(Walk::new(Window::open(&plan.path)?, tag, plan.start)) } else { None };
        Ok(Self { walk, from: plan.start, ahead: plan.start })
    }

    fn each(
        &mut self,
        until: u64,
        apply: &mut dyn FnMut(u64, u64, record::Decoded<'_>) -> Result<(), Trouble>,
    ) -> Result<(), Trouble> {
        let Some(walk) = &mut self.walk else { return Ok(()) };
        while self.ahead < until {
            let Some(step) = walk.next()? else { break };
            match step {
                Step::Record { offset, bytes, record, .. } => {
                    if offset >= self.from {
                        apply(offset, bytes, record)?;
                    }
                    self.ahead = offset + bytes;
                }
                Step::Gap { .. } => self.ahead = walk.offset(walk.at()),
            }
        }
        Ok(())
    }

    fn skip_to(&mut self, offset: u64) {
        self.from = offset;
    }
}

fn read_old(plan: &Plan, from: u64, to: u64) -> Result<Vec<u8>, StorageError> {
    let mut window = Window::open(&plan.path)?;
    let at = SEGMENT_HEADER_BYTES + (from - plan.start);
    let bytes = usize::try_from(to - from).unwrap_or(usize::MAX);
    if at >= window.bytes() { Ok(Vec::new()) } else { Ok(window.read(at, bytes)?.to_vec()) }
}

fn repair(hole: &Hole, fill: &Fill) -> Repair {
    let bytes = fill.bytes.len();
    let what = match fill.entries {
        Some((first, last)) => {
            let names = fill.from.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
            format!("{bytes} bytes, with the entries {first} to {last}, which {names} gave")
        }
        None if fill.corrected => {
            format!("{bytes} bytes, of which the record's own checks tell the one that was wrong")
        }
        None => format!("{bytes} bytes, with nothing that this log still needs"),
    };
    Repair::new(&hole.found.0, Some(hole.found.1), what)
}

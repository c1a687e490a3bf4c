//! Mends a damaged log in place: what is whole stays where it is, and what was lost comes from a peer.
//!
//! A log that [`DiskLog::open`] refuses has holes: bytes below its durable end that are no whole records ([`survey`]). Each is filled to its last byte with
//! the entries that were there ([`fill`]), so that all records behind it are at their places again, which their checks are seeded with. Nothing durable is
//! ever taken back: not the last entry, not a truncation, and the node keeps its disk id and its promises.
//!
//! Whole segments are written beside the damaged ones, fsynced and renamed, the last one first ([`rewrite`]). A process that is killed meanwhile leaves some
//! of them mended; the next one goes on. The damaged file is gone when the mended one is in its place.

mod fill;
mod rewrite;
mod survey;

use std::{collections::BTreeSet, path::Path};

use replicator_types::{LogIndex, Position};

use self::{
    fill::Place,
    rewrite::Rewritten,
    survey::{Front, Plan, Survey},
};
use super::{
    DiskLog,
    record::{self, Change},
    replay::Replay,
    scanner::Scan,
    segment::SEGMENT_HEADER_BYTES,
    walk::{Step, Walk},
    watermark::{self, Watermark},
    window::Window,
};
use crate::{NodeDir, Record, Repair, StorageError, meta::LogTag, snapshot};

/// Who may still have the entries that a damaged log has lost: the peers.
pub trait EntrySource {
    /// The entries of `from..to` out of a log that holds `anchor`, at least the first one; what came before them, if that is known there. With `from`
    /// equal to `to`, only that.
    ///
    /// # Errors
    /// If nobody has them, now or ever.
    fn entries(&mut self, from: LogIndex, to: LogIndex, anchor: Position) -> Result<GivenEntries, Withheld>;
}

/// Entries of a peer's log.
#[derive(Debug, Clone)]
pub struct GivenEntries {
    /// Whose, for people.
    pub from: String,
    /// The peer's entry before the first one asked for, perhaps purged; `None` if it isn't known there, or there is none.
    pub before: Option<Position>,
    /// In order, without a gap.
    pub records: Vec<Record>,
}

/// Why nobody gives the entries.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Withheld {
    /// Who may have them doesn't answer.
    #[error("{0}")]
    NotNow(String),
    /// All have answered, and none has them.
    #[error("{0}")]
    Never(String),
}

/// Why a log wasn't mended. Nothing was changed, or what was changed is right.
#[derive(Debug, thiserror::Error)]
pub enum MendError {
    /// It may be later: those who can help don't answer.
    #[error("{damage} Its entries are asked of the peers, which is tried again until it is decided: {why}")]
    NotNow {
        /// What is damaged.
        damage: String,
        /// Who was asked, and what is missing.
        why: String,
    },
    /// It can't be, or a file can't be written. A damage says why.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Why it doesn't go on.
#[derive(Debug)]
enum Trouble {
    NotNow(String),
    Never(String),
    Storage(StorageError),
}

impl From<StorageError> for Trouble {
    fn from(error: StorageError) -> Self {
        Self::Storage(error)
    }
}

impl From<Withheld> for Trouble {
    fn from(withheld: Withheld) -> Self {
        match withheld {
            Withheld::NotNow(why) => Self::NotNow(why),
            Withheld::Never(why) => Self::Never(why),
        }
    }
}

impl DiskLog {
    /// Mends the log called `name`, if it is damaged and can be; durable on return. Then [`Self::open`] takes it. `images` names the folder of the
    /// snapshots whose position stands for all entries up to it.
    ///
    /// Returns what was mended; nothing if the log isn't damaged, or doesn't exist.
    ///
    /// # Errors
    /// [`MendError::NotNow`] if it may succeed later; [`StorageError::Damaged`], with the reason, if it can't be mended.
    pub fn mend(
        dir: &NodeDir,
        name: &str,
        images: Option<&str>,
        source: &mut dyn EntrySource,
    ) -> Result<Vec<Repair>, MendError> {
        let path = dir.path().join(name);
        let _claim = dir.claim(name)?;
        let Some(tag) = dir.meta().logs.get(name).copied().filter(|_| path.is_dir()) else { return Ok(Vec::new()) };
        let watermark = watermark::read(&path, tag)?.1.watermark;
        let damage = match Scan::read(&path, tag, watermark) {
            Ok(_) => return Ok(Vec::new()),
            Err(damage @ StorageError::Damaged { .. }) => damage,
            Err(error) => return Err(error.into()),
        };
        let mender = Mender { path: &path, tag, watermark, images: images.map(|images| dir.path().join(images)) };
        match mender.mend(source) {
            Ok(repairs) => Ok(repairs),
            Err(Trouble::Storage(error)) => Err(error.into()),
            Err(Trouble::NotNow(why)) => Err(MendError::NotNow { damage: place_of(&damage), why }),
            Err(Trouble::Never(why)) => Err(with_reason(damage, &why).into()),
        }
    }
}

/// The damage without what to do about it.
fn place_of(damage: &StorageError) -> String {
    match damage {
        StorageError::Damaged { path, offset, what } => {
            let offset = offset.map_or(String::new(), |offset| format!(", byte {offset}"));
            format!("{}{offset}: {what}.", path.display())
        }
        other => other.to_string(),
    }
}

fn with_reason(damage: StorageError, why: &str) -> StorageError {
    match damage {
        StorageError::Damaged { path, offset, what } => {
            StorageError::Damaged { path, offset, what: format!("{what}; and it can't be mended from a peer: {why}") }
        }
        other => other,
    }
}

struct Mender<'a> {
    path: &'a Path,
    tag: LogTag,
    watermark: Watermark,
    images: Option<std::path::PathBuf>,
}

impl Mender<'_> {
    fn mend(&self, source: &mut dyn EntrySource) -> Result<Vec<Repair>, Trouble> {
        let survey = Survey::read(self.path, self.tag, self.watermark, Front::Purged)?;
        if survey.absent.is_some() {
            // Either the purge record is lost, or the segments are. The bytes of a hole tell: such a record fits in, or it doesn't.
            match self.rebuild(&survey, None, source) {
                Err(Trouble::Never(_)) => {}
                rebuilt => return rebuilt?.commit(self.path),
            }
            let survey = Survey::read(self.path, self.tag, self.watermark, Front::Lost)?;
            return self.rebuild_somehow(&survey, source)?.commit(self.path);
        }
        self.rebuild_somehow(&survey, source)?.commit(self.path)
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
    fn rebuild(&self, survey: &Survey, image: Option<Position>, source: &mut dyn EntrySource) -> Result<Rewritten, Trouble> {
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
                return Err(Trouble::Never(format!("{} begins with {:?}, and before it are {header_ends:?}", plan.path.display(), header.ends)));
            }
            let mut steps = Steps::new(plan, self.tag)?;
            while let Some(hole) = holes.next_if(|hole| hole.sequence == plan.sequence) {
                let until = hole.offset.unwrap_or(hole.end);
                steps.each(until, &mut |offset, bytes, record| log.apply(&record, offset, bytes).map(|()| seen |= log.replay.ends.last == image))?;
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
            steps.each(plan.end, &mut |offset, bytes, record| log.apply(&record, offset, bytes).map(|()| seen |= log.replay.ends.last == image))?;
            let mut end = plan.end;
            if let Some(image) = image.filter(|_| i + 1 == survey.plans.len()) {
                if !seen {
                    return Err(Trouble::Never(format!("its entry {image} is lost too")));
                }
                let mut bytes = Vec::new();
                record::encode(&mut bytes, self.tag, end, log.durable_end, Change::PurgeThrough(image), &[]);
                log.apply_all(&bytes, end)?;
                let room = plan.capacity.map_or(0, |capacity| capacity.saturating_sub(SEGMENT_HEADER_BYTES + (end - start)));
                if room < bytes.len() as u64 {
                    return Err(Trouble::Never("the last segment is full".into()));
                }
                rewritten.repairs.push(Repair::new(&plan.path, None, format!("the log begins after the image of {image}, as entries before that are lost")));
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
            let record = record::decode(&bytes[at..at + taken], self.tag, offset).expect("it was encoded for this place");
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

fn repair(hole: &survey::Hole, fill: &fill::Fill) -> Repair {
    let bytes = fill.bytes.len();
    let from: &BTreeSet<String> = &fill.from;
    let what = match fill.entries {
        Some((first, last)) => {
            let names = from.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
            format!("{bytes} bytes, with the entries {first} to {last}, which {names} gave")
        }
        None => format!("{bytes} bytes, with nothing that this log needs"),
    };
    Repair::new(&hole.found.0, Some(hole.found.1), what)
}

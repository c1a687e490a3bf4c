//! Finds what is lost of a damaged log, and what is known around it.
//!
//! Everything below a durable end is either a whole record or part of a hole. A segment whose start isn't known any more (its header is damaged,
//! and none of its records can be read where the segment before ends) is lost as a whole: the hole goes on to where the next one begins.

use std::path::{Path, PathBuf};

use replicator_types::Position;

use super::{
    super::{
        replay::Ends,
        segment::{Header, SEGMENT_BYTES_MIN, SEGMENT_HEADER_BYTES},
        watermark::Watermark,
    },
    Trouble,
    reading::{After, Found, Read, files},
};
use crate::meta::LogTag;

/// Bytes below the durable end that are no whole records.
#[derive(Debug)]
pub(super) struct Hole {
    /// The segment that is to hold what is put in.
    pub(super) sequence: u64,
    /// The global offset at which it begins; `None`: it ends at `end`, and is as large as it must be.
    pub(super) offset: Option<u64>,
    /// The global offset at which it ends.
    pub(super) end: u64,
    pub(super) after: After,
    /// The purged end that the next header says, if no purge record lies between.
    pub(super) purged: Option<Position>,
    /// What the first whole record behind it says of the durable end.
    pub(super) durable_end: Option<u64>,
    /// Where the damage is, for people.
    pub(super) found: (PathBuf, u64),
}

/// A segment as it should be.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) path: PathBuf,
    pub(super) sequence: u64,
    /// The global offset of its first record.
    pub(super) start: u64,
    /// The global offset at which its records end.
    pub(super) end: u64,
    /// The file's size; `None`: as large as it must be.
    pub(super) capacity: Option<u64>,
    /// Its header, if that is whole.
    pub(super) header: Option<Header>,
    /// Whether any of its records are to be kept.
    pub(super) kept: bool,
    /// Whether the file is not as it should be, whatever the holes are.
    pub(super) wrong: bool,
}

/// What is believed of segments before the first one that is there, where nothing that is left says that they were purged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Front {
    /// They were, and the record that said so is in a hole.
    Purged,
    /// They are lost.
    Lost,
}

/// A damaged log.
#[derive(Debug)]
pub(super) struct Survey {
    /// The segments that hold records, in order.
    pub(super) plans: Vec<Plan>,
    /// In order.
    pub(super) holes: Vec<Hole>,
    /// What the log held where the first segment begins.
    pub(super) ends: Ends,
    /// The greatest position through which a whole record or header says that the log was purged.
    pub(super) purged: Option<Position>,
    /// The last entry of segments that were purged, if the purge record that said so is lost.
    pub(super) absent: Option<Position>,
    /// Positions that purge records and headers name, sorted: an entry that is put in with one of these indexes has that epoch.
    pub(super) named: Vec<Position>,
    /// After what whole records cut the log, by their global offsets.
    pub(super) cuts: Vec<(u64, Option<Position>)>,
    /// Files without anything that can be used.
    pub(super) useless: Vec<PathBuf>,
}

impl Survey {
    /// Reads the log in `dir`. Changes nothing.
    pub(super) fn read(dir: &Path, tag: LogTag, watermark: Watermark, front: Front) -> Result<Self, Trouble> {
        let mut named = Vec::new();
        let files = files(dir, tag)?;
        let mut reads: Vec<Option<Read>> = Vec::new();
        for file in &files {
            let before = reads.last().and_then(Option::as_ref).filter(|read| read.trailing().is_none()).map(Read::end);
            let start = match file.header {
                Some(header) => Some(header.start),
                None if file.sequence == 0 => Some(0),
                None => before,
            };
            let read = start.map(|start| Read::new(file, tag, start, watermark, &mut named)).transpose()?;
            // Where it isn't known for sure that the segment begins there, a record that is whole just there tells.
            reads.push(read.filter(|read| file.header.is_some() || read.records > 0));
        }
        named.extend(
            files
                .iter()
                .filter_map(|file| file.header)
                .flat_map(|header| [header.ends.purged, header.ends.last])
                .flatten(),
        );
        named.sort_unstable();
        named.dedup();
        let headers = || files.iter().filter_map(|file| file.header);
        let born = headers().map(|header| header.start).max().unwrap_or(0);
        let told = reads.iter().flatten().map(|read| read.durable_end).max().unwrap_or(0);
        let durable_end = watermark.end.max(born).max(told);
        // What isn't durable yet may be gone after the next crash, and then what was made up because of it would be seen.
        let purges = reads.iter().flatten().flat_map(|read| &read.purges).filter(|(offset, _)| *offset < durable_end);
        let cuts = reads.iter().flatten().flat_map(|read| &read.cuts).filter(|(offset, _)| *offset < durable_end);
        let cuts = cuts.copied().collect();
        let purged = purges.map(|(_, through)| Some(*through)).chain(headers().map(|header| header.ends.purged)).max();
        let mut survey = Self {
            plans: Vec::new(),
            holes: Vec::new(),
            ends: Ends::default(),
            purged: purged.flatten(),
            absent: None,
            named,
            cuts,
            useless: Vec::new(),
        };
        survey.arrange(&files, &reads, watermark, durable_end, front)?;
        Ok(survey)
    }

    fn arrange(
        &mut self,
        files: &[Found],
        reads: &[Option<Read>],
        watermark: Watermark,
        durable_end: u64,
        front: Front,
    ) -> Result<(), Trouble> {
        let (first, last) = match reads.iter().position(Option::is_some).zip(reads.iter().rposition(Option::is_some)) {
            Some(both) => both,
            // All of it, from its very beginning: no peer has that if it was purged.
            None if (files[0].sequence == 0 || files.iter().all(|file| !file.written)) && watermark.end > 0 => {
                let first = Found::missing(files[0].path.parent().expect("a segment is in a folder"), 0);
                let first = if files[0].sequence == 0 { &files[0] } else { &first };
                let found = (first.path.clone(), 0);
                self.lose(std::slice::from_ref(first), 0, watermark.end, After::Last(watermark.last), None, found);
                self.drop_files(&files[usize::from(files[0].sequence == 0)..]);
                return Ok(());
            }
            None => {
                return Err(Trouble::Never("no segment's header can be read, so where it began isn't known".into()));
            }
        };
        self.front(&files[..first], &files[first], front)?;
        for i in first..last {
            let Some(read) = &reads[i] else { continue };
            let next = (i + 1..=last).find(|next| reads[*next].is_some()).expect("the last one can be read");
            let start = reads[next].as_ref().map_or(0, |read| read.start);
            let end = if next == i + 1 { start } else { read.end() };
            if read.end() > end {
                return Err(Trouble::Never(format!(
                    "{} has records beyond the next segment's start",
                    files[i].path.display()
                )));
            }
            let mut holes = read.holes(end);
            if read.trailing().is_none() && read.end() < end {
                holes.push((read.end(), end, read.looks.len()));
            }
            self.keep(&files[i], read, end, read.trailing().is_some());
            self.add(holes, files, reads, i, watermark)?;
            if next > i + 1 {
                let header = files[next].header.ok_or_else(hopeless)?;
                let found = (files[i + 1].path.clone(), 0);
                self.lose(&files[i + 1..next], end, start, After::Last(header.ends.last), header.ends.purged, found);
            }
        }
        self.last_segment(files, reads, last, watermark, durable_end)
    }

    /// What was before the first segment that can be read.
    fn front(&mut self, lost: &[Found], first: &Found, front: Front) -> Result<(), Trouble> {
        let Some(header) = first.header else {
            return Ok(()); // The first one of all: nothing was before it.
        };
        self.ends = header.ends;
        let absent = header.ends.last.filter(|_| header.ends.last != header.ends.purged);
        let covered = absent.is_none_or(|absent| self.purged.is_some_and(|purged| purged.index >= absent.index));
        if covered || front == Front::Purged {
            self.absent = absent.filter(|_| !covered);
            self.drop_files(lost);
            return Ok(());
        }
        let before =
            Found::missing(first.path.parent().expect("a segment is in a folder"), first.sequence.saturating_sub(1));
        let (after, purged) = (After::Last(header.ends.last), header.ends.purged);
        let found = (before.path.clone(), 0);
        if first.sequence == 0 {
            return Err(hopeless());
        }
        if lost.first().unwrap_or(&before).sequence == 0 {
            self.ends = Ends::default();
            let lost = if lost.is_empty() { std::slice::from_ref(&before) } else { lost };
            self.lose(lost, 0, header.start, after, purged, found);
        } else {
            self.ends = Ends { purged, last: purged };
            self.drop_files(&lost[..lost.len().saturating_sub(1)]);
            self.lose(std::slice::from_ref(&before), 0, header.start, after, purged, found);
            let hole = self.holes.last_mut().ok_or_else(hopeless)?;
            hole.offset = None;
        }
        Ok(())
    }

    /// The last segment that can be read, and what was lost after it.
    fn last_segment(
        &mut self,
        files: &[Found],
        reads: &[Option<Read>],
        i: usize,
        watermark: Watermark,
        durable_end: u64,
    ) -> Result<(), Trouble> {
        let read = reads[i].as_ref().expect("it can be read");
        let (mut end, mut holes) = (read.end(), Vec::new());
        for (from, to, look) in read.holes(watermark.end) {
            if from >= durable_end {
                end = from; // From here on it is a torn tail.
                break;
            }
            if durable_end == watermark.end && watermark.end < to {
                holes.push((from, watermark.end, look));
                end = watermark.end;
                break;
            }
            holes.push((from, to, look));
            end = end.max(to);
        }
        if end < watermark.end {
            holes.push((end, watermark.end, read.looks.len()));
            end = watermark.end;
        }
        let later = &files[i + 1..];
        let capacity = files[i].header.map_or(files[i].bytes, |header| header.capacity);
        let fits = SEGMENT_HEADER_BYTES + (end - read.start) <= capacity && later.iter().all(|file| !file.written);
        match holes.last().copied().filter(|(_, to, _)| *to == end && *to > read.end() && !fits) {
            Some((from, to, _)) => {
                holes.pop();
                self.keep(&files[i], read, from, read.trailing().is_some());
                self.add(holes, files, reads, i, watermark)?;
                let following = files[i].following();
                let target = later.first().unwrap_or(&following);
                let found = (target.path.clone(), 0);
                self.lose(std::slice::from_ref(target), from, to, After::Last(watermark.last), None, found);
                self.drop_files(later.get(1..).unwrap_or_default());
            }
            None => {
                self.keep(&files[i], read, end, false);
                self.add(holes, files, reads, i, watermark)?;
                if later.iter().any(|file| !file.exists) {
                    self.drop_files(later); // Made ahead, and out of order now.
                }
            }
        }
        Ok(())
    }

    fn drop_files(&mut self, files: &[Found]) {
        self.useless.extend(files.iter().filter(|file| file.exists).map(|file| file.path.clone()));
    }

    fn keep(&mut self, file: &Found, read: &Read, end: u64, litter: bool) {
        let capacity = file.header.map_or(file.bytes, |header| header.capacity);
        let usable = capacity >= SEGMENT_BYTES_MIN && capacity.is_multiple_of(SEGMENT_HEADER_BYTES);
        self.plans.push(Plan {
            path: file.path.clone(),
            sequence: file.sequence,
            start: read.start,
            end,
            capacity: usable.then_some(capacity),
            header: file.header,
            kept: true,
            wrong: file.header.is_none() || capacity != file.bytes || litter,
        });
    }

    /// Segments of which nothing can be used, and whose place is from `from` to `to`: the first one of them gets it all.
    fn lose(
        &mut self,
        files: &[Found],
        from: u64,
        to: u64,
        after: After,
        purged: Option<Position>,
        found: (PathBuf, u64),
    ) {
        for (i, file) in files.iter().enumerate() {
            let end = to;
            let start = if i == 0 { from } else { to };
            let usable = file.bytes >= SEGMENT_BYTES_MIN && file.bytes.is_multiple_of(SEGMENT_HEADER_BYTES);
            let large = file.bytes >= SEGMENT_HEADER_BYTES + (end - start);
            self.plans.push(Plan {
                path: file.path.clone(),
                sequence: file.sequence,
                start,
                end,
                capacity: (usable && large).then_some(file.bytes),
                header: None,
                kept: false,
                wrong: true,
            });
        }
        if from < to {
            let sequence = files.first().map_or(0, |file| file.sequence);
            self.holes.push(Hole { sequence, offset: Some(from), end: to, after, purged, durable_end: None, found });
        }
    }

    /// Adds the holes of one segment, each with what follows it. Two of which nothing tells what the log held between them are one.
    fn add(
        &mut self,
        holes: Vec<(u64, u64, usize)>,
        files: &[Found],
        reads: &[Option<Read>],
        i: usize,
        watermark: Watermark,
    ) -> Result<(), Trouble> {
        let read = reads[i].as_ref().expect("it can be read");
        let mut began = None;
        for (n, &(from, to, look)) in holes.iter().enumerate() {
            let from = began.take().unwrap_or(from);
            let rest = read.looks.get(look..).unwrap_or_default();
            let next = read.looks.get(look).and_then(|look| look.after);
            let after = match next {
                _ if to == watermark.end => Some(After::Last(watermark.last)),
                None if n + 1 < holes.len() => {
                    began = Some(from);
                    continue;
                }
                None => reads.get(i + 1).and_then(Option::as_ref).and_then(|read| match files[i + 1].header {
                    Some(header) => Some(After::Last(header.ends.last)),
                    None => read.looks.first().and_then(|look| look.after),
                }),
                known => known,
            };
            let header = files.get(i + 1).and_then(|file| file.header);
            let purged = header.filter(|_| rest.iter().all(|look| !look.purges)).and_then(|header| header.ends.purged);
            self.holes.push(Hole {
                sequence: files[i].sequence,
                offset: Some(from),
                end: to,
                after: after.ok_or_else(hopeless)?,
                purged,
                durable_end: read.looks.get(look).and_then(|look| look.durable_end),
                found: (files[i].path.clone(), SEGMENT_HEADER_BYTES + (from - read.start)),
            });
        }
        Ok(())
    }
}

fn hopeless() -> Trouble {
    Trouble::Never("too much of it is damaged to tell what was where".into())
}

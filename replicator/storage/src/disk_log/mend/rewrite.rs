//! Writes mended segments: whole files beside the damaged ones, fsynced, then renamed.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::{
    super::{
        replay::Ends,
        segment::{Header, SEGMENT_BYTES_MIN, SEGMENT_HEADER_BYTES},
    },
    Trouble,
    survey::Plan,
};
use crate::{Repair, StorageError, atomic_file, meta::LogTag};

const CHUNK_BYTES: usize = 1 << 20;

/// A log as it should be, and what of it must be written.
pub(super) struct Rewritten {
    segments: Vec<Segment>,
    useless: Vec<PathBuf>,
    pub(super) repairs: Vec<Repair>,
}

/// A segment that is written anew.
struct Segment {
    path: PathBuf,
    header: Header,
    /// Where its records end in the file.
    end: u64,
    /// Bytes that aren't as in the file that is there, by their place in it, in order.
    patches: Vec<(u64, Vec<u8>)>,
    /// Whether the other records come from the file that is there.
    kept: bool,
    /// Whether what follows the records stays as well: it may be a torn tail, which opening tells of.
    tail: bool,
}

impl Rewritten {
    pub(super) fn new(useless: Vec<PathBuf>) -> Self {
        Self { segments: Vec::new(), useless, repairs: Vec::new() }
    }

    /// Takes a segment, with what is put into it by global offsets.
    #[expect(clippy::too_many_arguments, reason = "they are a segment, which is known only now")]
    pub(super) fn plan(
        &mut self,
        tag: LogTag,
        plan: &Plan,
        start: u64,
        end: u64,
        ends: Ends,
        patches: Vec<(u64, Vec<u8>)>,
        last: bool,
    ) {
        if patches.is_empty() && !plan.wrong {
            return;
        }
        if patches.is_empty() {
            let what = "the header or the zeros around the records were written again".to_owned();
            self.repairs.push(Repair::new(&plan.path, Some(0), what));
        }
        let byte = |offset: u64| SEGMENT_HEADER_BYTES + (offset - start);
        let needed = byte(end).next_multiple_of(SEGMENT_HEADER_BYTES).max(SEGMENT_BYTES_MIN);
        let capacity = plan.capacity.unwrap_or(needed).max(needed);
        self.segments.push(Segment {
            path: plan.path.clone(),
            header: Header { tag, sequence: plan.sequence, start, capacity, ends },
            end: byte(end),
            patches: patches.into_iter().map(|(offset, bytes)| (byte(offset), bytes)).collect(),
            kept: plan.kept,
            tail: last && plan.kept,
        });
    }

    /// Puts the mended files into their places; durable on return. A crash leaves some of them in place, the last ones: what the first ones need of those
    /// is there then.
    pub(super) fn commit(self, dir: &Path) -> Result<Vec<Repair>, Trouble> {
        for segment in &self.segments {
            segment.write()?;
        }
        for segment in self.segments.iter().rev() {
            fs::rename(segment.unfinished(), &segment.path)
                .map_err(StorageError::io("rename the mended", &segment.path))?;
            atomic_file::sync_dir(dir)?;
        }
        for path in self.useless.iter().rev() {
            fs::remove_file(path).map_err(StorageError::io("remove", path))?;
        }
        atomic_file::sync_dir(dir)?;
        Ok(self.repairs)
    }
}

impl Segment {
    /// Has the name of a segment that is being made: opening the log removes it.
    fn unfinished(&self) -> PathBuf {
        self.path.with_added_extension(atomic_file::TEMPORARY)
    }

    fn write(&self) -> Result<(), StorageError> {
        let path = self.unfinished();
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .map_err(StorageError::io("create", &path))?;
        let source =
            if self.kept { Some(File::open(&self.path).map_err(StorageError::io("open", &self.path))?) } else { None };
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut at = 0;
        while at < self.header.capacity {
            let bytes = usize::try_from(self.header.capacity - at).map_or(CHUNK_BYTES, |rest| rest.min(CHUNK_BYTES));
            let chunk = &mut chunk[..bytes];
            chunk.fill(0);
            if let Some(source) = &source {
                read_what_is_there(source, chunk, at).map_err(StorageError::io("read", &self.path))?;
            }
            if !self.tail {
                let kept = usize::try_from(self.end.saturating_sub(at)).map_or(bytes, |kept| kept.min(bytes));
                chunk[kept..].fill(0);
            }
            overlay(chunk, at, 0, &self.header.encode());
            for (place, patch) in &self.patches {
                overlay(chunk, at, *place, patch);
            }
            file.write_all(chunk).map_err(StorageError::io("write", &path))?;
            at += bytes as u64;
        }
        file.sync_all().map_err(StorageError::io("fsync", &path))
    }
}

fn read_what_is_there(source: &File, chunk: &mut [u8], at: u64) -> std::io::Result<()> {
    let mut filled = 0;
    while filled < chunk.len() {
        match source.read_at(&mut chunk[filled..], at + filled as u64)? {
            0 => break, // The file was cut: zeros.
            read => filled += read,
        }
    }
    Ok(())
}

/// Copies what of `bytes`, which belong at `place` of the file, lies in `chunk`, which begins at `at`.
fn overlay(chunk: &mut [u8], at: u64, place: u64, bytes: &[u8]) {
    let from = place.max(at);
    let to = (place + bytes.len() as u64).min(at + chunk.len() as u64);
    if from < to {
        chunk[(from - at) as usize..(to - at) as usize]
            .copy_from_slice(&bytes[(from - place) as usize..(to - place) as usize]);
    }
}

//! Segments made ahead: filled with zeros to their full size, so that writing into them changes no metadata.
//!
//! A thread of its own does it while the segment before is half full, at about half of the disk's pace, and nobody waits for it unless
//! it is late. A segment gets its name when it is whole on the disk; what has another name holds nothing.

use std::{
    fs, mem,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    thread::{self, JoinHandle},
    time::Instant,
};

use super::{
    block_file::{BlockBuffer, BlockFile, Durable},
    segment::{self, SEGMENT_BYTES_MIN, SEGMENT_HEADER_BYTES},
};
use crate::{StorageError, atomic_file};

/// What the first segment takes at most: a small log is a small file.
const FIRST_BYTES_MAX: u64 = 1 << 20;

const FILL_BYTES: usize = 256 << 10;

/// Where a log's segments are made, and how.
#[derive(Debug, Clone)]
pub(crate) struct Maker {
    pub(crate) dir: PathBuf,
    /// The log's name, for the thread's.
    pub(crate) name: String,
    pub(crate) direct: bool,
    pub(crate) segment_bytes_max: u64,
}

impl Maker {
    /// The size of the segment after one of `before` bytes, or of the first one.
    pub(crate) fn capacity_after(&self, before: Option<u64>) -> u64 {
        let wanted = before.map_or(FIRST_BYTES_MAX, |before| before.saturating_mul(2));
        wanted.min(self.segment_bytes_max).next_multiple_of(SEGMENT_HEADER_BYTES).max(SEGMENT_BYTES_MIN)
    }

    /// Makes a segment; durable on return. Replaces one that was made before, and holds nothing.
    pub(crate) fn make(&self, sequence: u64, capacity: u64, pace: &Pace) -> Result<(), StorageError> {
        let path = segment::path(&self.dir, sequence);
        let unfinished = path.with_added_extension(atomic_file::TEMPORARY);
        let made = self.fill(&unfinished, capacity, pace).and_then(|()| {
            fs::rename(&unfinished, &path).map_err(StorageError::io("rename the new", &path))?;
            atomic_file::sync_dir(&self.dir)
        });
        if made.is_err() {
            // Its room may be what is missing. Whatever stays is removed by the next opening.
            let _ = fs::remove_file(&unfinished);
        }
        made
    }

    fn fill(&self, path: &Path, capacity: u64, pace: &Pace) -> Result<(), StorageError> {
        let mut file = BlockFile::create(path, self.direct, Durable::OnceSynced)?;
        file.reserve(capacity)?;
        let zeros = BlockBuffer::new(FILL_BYTES.min(usize::try_from(capacity).unwrap_or(FILL_BYTES)));
        let mut at = 0;
        while at < capacity {
            let begun = Instant::now();
            let bytes = (capacity - at).min(zeros.len() as u64);
            file.write(&zeros[..bytes as usize], at)?;
            at += bytes;
            match pace.get() {
                Pace::EASY => thread::sleep(begun.elapsed()),
                Pace::STOPPED => return Err(StorageError::failed("the log is closed")),
                _ => {}
            }
        }
        file.sync()
    }
}

/// How fast a segment is made. Changed while it is.
#[derive(Debug)]
pub(crate) struct Pace(AtomicU8);

impl Pace {
    const EASY: u8 = 0;
    const HURRIED: u8 = 1;
    const STOPPED: u8 = 2;

    /// As fast as it goes.
    pub(crate) fn hurried() -> Self {
        Self(AtomicU8::new(Self::HURRIED))
    }

    fn get(&self) -> u8 {
        self.0.load(Ordering::Relaxed)
    }

    fn set(&self, pace: u8) {
        self.0.store(pace, Ordering::Relaxed);
    }
}

/// The segment after the current one.
#[derive(Debug)]
pub(crate) struct Ahead {
    maker: Maker,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Nobody has begun.
    Nothing,
    /// A thread makes it.
    Making { thread: JoinHandle<Result<(), StorageError>>, pace: Arc<Pace>, capacity: u64 },
    /// It is there.
    Ready { capacity: u64 },
    /// It couldn't be made; tried again when it is needed.
    Failed,
}

impl Ahead {
    /// `ready` is the capacity of the segment that is there already.
    pub(crate) fn new(maker: Maker, ready: Option<u64>) -> Self {
        Self { maker, state: ready.map_or(State::Nothing, |capacity| State::Ready { capacity }) }
    }

    /// Begins to make the segment after one of `before` bytes, unless that was begun before.
    pub(crate) fn begin(&mut self, sequence: u64, before: u64) {
        if matches!(&self.state, State::Making { thread, .. } if thread.is_finished()) {
            self.settle();
        }
        if !matches!(self.state, State::Nothing) {
            return;
        }
        let capacity = self.maker.capacity_after(Some(before));
        let pace = Arc::new(Pace(AtomicU8::new(Pace::EASY)));
        let spawned = thread::Builder::new().name(format!("{}-segment", self.maker.name)).spawn({
            let (maker, pace) = (self.maker.clone(), pace.clone());
            move || maker.make(sequence, capacity, &pace)
        });
        self.state = match spawned {
            Ok(thread) => State::Making { thread, pace, capacity },
            Err(error) => {
                tracing::warn!(%error, "can't start the thread that makes the log's next segment");
                State::Failed
            }
        };
    }

    /// Takes the segment, or makes it now; `before` is the size of the one before it. The capacity returned has room for `need` bytes
    /// of records.
    ///
    /// # Errors
    /// If it can't be made: [`StorageError::Failed`], with the room that it takes.
    pub(crate) fn obtain(&mut self, sequence: u64, before: Option<u64>, need: usize) -> Result<u64, StorageError> {
        if let State::Making { pace, .. } = &self.state {
            pace.set(Pace::HURRIED);
        }
        self.settle();
        let need = (need as u64 + SEGMENT_HEADER_BYTES).next_multiple_of(SEGMENT_HEADER_BYTES);
        if let State::Ready { capacity } = mem::replace(&mut self.state, State::Nothing)
            && capacity >= need
        {
            return Ok(capacity);
        }
        let capacity = self.maker.capacity_after(before).max(need);
        self.maker.make(sequence, capacity, &Pace::hurried()).map_err(|error| {
            StorageError::failed(format!(
                "the log needs {capacity} bytes on the disk for its next segment: {error}; free them first"
            ))
        })?;
        Ok(capacity)
    }

    /// Waits for the thread, if there is one.
    fn settle(&mut self) {
        self.state = match mem::replace(&mut self.state, State::Nothing) {
            State::Making { thread, capacity, .. } => match thread.join() {
                Ok(Ok(())) => State::Ready { capacity },
                Ok(Err(error)) => {
                    tracing::warn!(%error, bytes = capacity, "can't make the log's next segment yet; is the disk full?");
                    State::Failed
                }
                Err(_) => {
                    tracing::error!("the thread that makes the log's next segment panicked");
                    State::Failed
                }
            },
            settled => settled,
        };
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        if let State::Making { thread, pace, .. } = mem::replace(&mut self.state, State::Nothing) {
            pace.set(Pace::STOPPED);
            let _ = thread.join();
        }
    }
}

//! Segments made ahead: filled with zeros to their full size, so that writing into them changes no metadata.
//!
//! A thread of its own does it while the segment before is half full, at about half of the disk's pace, and nobody waits for it unless
//! it is late. A segment gets its name when it is whole on the disk; what has another name holds nothing.
//!
//! A full disk is no failure: nothing of the log is half written then. It is tried again, at most once per [`RETRY`]. Any other
//! failure is the log's.

use std::{
    fs, mem,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{
    block_file::{BlockBuffer, BlockFile, Durable},
    room::Gauge,
    segment::{self, SEGMENT_BYTES_MIN, SEGMENT_HEADER_BYTES},
};
use crate::{StorageError, atomic_file, disk_room};

/// What the first segment takes at most: a small log is a small file.
const FIRST_BYTES_MAX: u64 = 1 << 20;

/// How long after a full disk it is looked at again.
pub(crate) const RETRY: Duration = Duration::from_secs(1);

const FILL_BYTES: usize = 256 << 10;

/// Where a log's segments are made, and how.
#[derive(Debug, Clone)]
pub(crate) struct Maker {
    pub(crate) dir: PathBuf,
    /// The log's name, for the thread's.
    pub(crate) name: String,
    pub(crate) direct: bool,
    pub(crate) segment_bytes_max: u64,
    pub(crate) gauge: Arc<Gauge>,
}

impl Maker {
    /// The size of the segment after one of `before` bytes, or of the first one.
    pub(crate) fn capacity_after(&self, before: Option<u64>) -> u64 {
        let wanted = before.map_or(FIRST_BYTES_MAX, |before| before.saturating_mul(2));
        wanted.min(self.segment_bytes_max).next_multiple_of(SEGMENT_HEADER_BYTES).max(SEGMENT_BYTES_MIN)
    }

    /// Makes a segment; durable on return. Replaces one that was made before, and holds nothing.
    ///
    /// # Errors
    /// [`StorageError::Full`] if for want of room; then nothing is left of it.
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
        let made = made.map_err(|error| disk_room::full_or(error, &self.dir, capacity));
        match &made {
            Ok(()) => self.gauge.made(capacity),
            Err(StorageError::Full { .. }) => self.gauge.starve(),
            Err(_) => {}
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
    /// There was no room for it at that time.
    Starved { tried: Instant },
    /// The disk failed.
    Failed(Arc<str>),
}

impl Ahead {
    /// `ready` is the capacity of the segment that is there already.
    pub(crate) fn new(maker: Maker, ready: Option<u64>) -> Self {
        if let Some(capacity) = ready {
            maker.gauge.made(capacity);
        }
        Self { maker, state: ready.map_or(State::Nothing, |capacity| State::Ready { capacity }) }
    }

    /// Whether [`Self::begin`] has more to do some time later.
    pub(crate) fn is_unsettled(&self) -> bool {
        matches!(self.state, State::Making { .. } | State::Starved { .. })
    }

    /// Whether there was no room when a segment was made last.
    pub(crate) fn is_starved(&self) -> bool {
        matches!(self.state, State::Starved { .. })
    }

    /// Begins to make the segment after one of `before` bytes, unless that was begun before, or there was no room for it just now.
    ///
    /// # Errors
    /// If an earlier one couldn't be made, and not for want of room.
    pub(crate) fn begin(&mut self, sequence: u64, before: u64) -> Result<(), StorageError> {
        if matches!(&self.state, State::Making { thread, .. } if thread.is_finished()) {
            self.settle();
        }
        let capacity = self.maker.capacity_after(Some(before));
        match &self.state {
            State::Making { .. } | State::Ready { .. } => return Ok(()),
            State::Failed(what) => return Err(StorageError::failed(what.clone())),
            State::Starved { tried } if tried.elapsed() < RETRY => return Ok(()),
            // Where room can't be reserved, only filling the disk to its last byte would tell, and others need that.
            State::Starved { .. } if disk_room::require(&self.maker.dir, capacity).is_err() => {
                self.state = State::Starved { tried: Instant::now() };
                return Ok(());
            }
            State::Starved { .. } | State::Nothing => {}
        }
        let pace = Arc::new(Pace(AtomicU8::new(Pace::EASY)));
        let spawned = thread::Builder::new().name(format!("{}-segment", self.maker.name)).spawn({
            let (maker, pace) = (self.maker.clone(), pace.clone());
            move || maker.make(sequence, capacity, &pace)
        });
        self.state = match spawned {
            Ok(thread) => State::Making { thread, pace, capacity },
            Err(error) => {
                tracing::warn!(%error, "can't start the thread that makes the log's next segment; it is tried again");
                State::Starved { tried: Instant::now() }
            }
        };
        Ok(())
    }

    /// Takes the segment, or makes it now; `before` is the size of the one before it. The capacity returned has room for `need` bytes
    /// of records. Where there is no room for a segment of the usual size, a smaller one does.
    ///
    /// # Errors
    /// [`StorageError::Full`] if there is no room even for that: nothing has changed, and it may be tried again. Else the log can't go on.
    pub(crate) fn obtain(&mut self, sequence: u64, before: Option<u64>, need: usize) -> Result<u64, StorageError> {
        if let State::Making { pace, .. } = &self.state {
            pace.set(Pace::HURRIED);
        }
        self.settle();
        let need = (need as u64 + SEGMENT_HEADER_BYTES).next_multiple_of(SEGMENT_HEADER_BYTES);
        match mem::replace(&mut self.state, State::Nothing) {
            State::Ready { capacity } => {
                self.maker.gauge.taken();
                if capacity >= need {
                    return Ok(capacity);
                }
            }
            State::Failed(what) => return Err(StorageError::failed(what)),
            _ => {}
        }
        let usual = self.maker.capacity_after(before).max(need);
        let mut capacity = usual;
        let mut made = self.maker.make(sequence, capacity, &Pace::hurried());
        while capacity > need && matches!(made, Err(StorageError::Full { .. })) {
            capacity = (capacity / 4).next_multiple_of(SEGMENT_HEADER_BYTES).max(need);
            made = self.maker.make(sequence, capacity, &Pace::hurried());
        }
        let made = made.map(|()| capacity);
        if made.is_ok() {
            self.maker.gauge.taken();
        }
        if !matches!(made, Ok(capacity) if capacity == usual) {
            self.maker.gauge.starve();
            self.state = State::Starved { tried: Instant::now() };
        }
        made
    }

    /// Waits for the thread, if there is one.
    fn settle(&mut self) {
        self.state = match mem::replace(&mut self.state, State::Nothing) {
            State::Making { thread, capacity, .. } => match thread.join() {
                Ok(Ok(())) => State::Ready { capacity },
                Ok(Err(error @ StorageError::Full { .. })) => {
                    tracing::warn!(%error, "can't make the log's next segment yet; no new entries are taken until it can");
                    State::Starved { tried: Instant::now() }
                }
                Ok(Err(error)) => State::Failed(format!("the log's next segment couldn't be made: {error}").into()),
                Err(_) => State::Failed("the thread that makes the log's next segment panicked".into()),
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

//! The shadow: one copy of the module's memory as it was some calls ago, for rollback and for images.
//!
//! It is kept in chunks of 64 KiB; one that holds only zeros isn't there, so a sparse memory has a sparse shadow.
//!
//! **Frozen** is what the shadow held at one moment, to be read by another thread, chunk after chunk, while the shadow
//! itself goes on. Pages that change and that the reader hasn't passed yet are set aside for it first; those that it has
//! passed are not. So a reader costs at most one more copy of the memory, and of what nobody writes, none. Dropping the
//! frozen state frees what is set aside at once.
//!
//! The reader holds the lock only to take a reference to one chunk, and copies it afterwards: it may be a thread of the least priority, which
//! the system puts aside at any moment for long. A chunk that the writer changes meanwhile is copied first, as one that is set aside. The
//! reader can't get in again before a writer that waits: a writer holds the turnstile as long as it waits, and the reader must pass
//! through that first.

use std::{
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

/// Bytes of a chunk: a page of linear memory, so that a memory is a whole number of them.
pub(crate) const CHUNK_BYTES: usize = crate::limits::PAGE_BYTES;
/// Bytes of a page: what is set aside, what changes, what an image leaves out if it is zero.
pub(crate) const PAGE_BYTES: usize = 4 << 10;

type Bytes = Box<[u8]>;

/// The copy. Belongs to the thread that applies entries.
#[derive(Debug, Default)]
pub(crate) struct Shadow {
    shared: Arc<Shared>,
    /// The shadow of the memory before, if this is another module's: a reader of that one may still live.
    former: Weak<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    turnstile: Mutex<()>,
    chunks: Mutex<Chunks>,
}

#[derive(Debug, Default)]
struct Chunks {
    /// `None`: zeros. A reader has a second reference to one of them, at times.
    chunks: Vec<Option<Arc<[u8]>>>,
    frozen: Option<Held>,
}

/// What a reader needs beside the chunks as they are.
#[derive(Debug)]
struct Held {
    /// Which chunks were there when the shadow was frozen.
    present: Vec<bool>,
    /// The chunk that the reader comes to next.
    next: usize,
    /// Of each of those chunks, the pages that have changed since. Not one map of pages: making that larger would hold up the writer for
    /// milliseconds.
    set_aside: Vec<Option<Box<Aside>>>,
}

/// The pages of a chunk that are set aside.
type Aside = [Option<Bytes>; PAGES];

impl Shadow {
    /// Takes `ranges` of `memory`, which has grown since the last time if it is larger.
    pub(crate) fn take(&self, memory: &[u8], ranges: &[Range<usize>]) {
        let (_turnstile, mut chunks) = self.shared.lock_first();
        chunks.chunks.resize(memory.len() / CHUNK_BYTES, None);
        for range in ranges {
            by_chunk(range, |number, piece| chunks.take(number, piece.start % CHUNK_BYTES, &memory[piece]));
        }
    }

    /// Puts `ranges` back into `memory`.
    pub(crate) fn put_back(&self, memory: &mut [u8], ranges: &[Range<usize>]) {
        let chunks = self.shared.lock();
        for range in ranges {
            by_chunk(range, |number, piece| match &chunks.chunks[number] {
                Some(chunk) => {
                    memory[piece.clone()].copy_from_slice(&chunk[piece.start % CHUNK_BYTES..][..piece.len()])
                }
                None => memory[piece].fill(0),
            });
        }
    }

    /// An empty one, for another memory. Of this one only what its reader still needs is left.
    pub(crate) fn successor(self) -> Self {
        let former = if self.shared.is_frozen() { Arc::downgrade(&self.shared) } else { self.former };
        Self { shared: Arc::default(), former }
    }

    /// What the shadow holds now, for a reader; nothing if there is one already.
    pub(crate) fn freeze(&self) -> Option<FrozenMemory> {
        if self.former_is_frozen() {
            return None;
        }
        let (_turnstile, mut chunks) = self.shared.lock_first();
        if chunks.frozen.is_some() {
            return None;
        }
        let present: Vec<bool> = chunks.chunks.iter().map(Option::is_some).collect();
        let set_aside = present.iter().map(|_| None).collect();
        chunks.frozen = Some(Held { present, next: 0, set_aside });
        Some(FrozenMemory { shared: Arc::clone(&self.shared), bytes: chunks.chunks.len() * CHUNK_BYTES })
    }

    /// Whether there is a reader, of this one or of the one before.
    pub(crate) fn is_frozen(&self) -> bool {
        self.shared.is_frozen() || self.former_is_frozen()
    }

    fn former_is_frozen(&self) -> bool {
        self.former.upgrade().is_some_and(|former| former.is_frozen())
    }
}

impl Shared {
    fn is_frozen(&self) -> bool {
        self.lock().frozen.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Chunks> {
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For the writer: before any reader that isn't in already.
    fn lock_first(&self) -> (MutexGuard<'_, ()>, MutexGuard<'_, Chunks>) {
        let turnstile = self.turnstile.lock().unwrap_or_else(PoisonError::into_inner);
        (turnstile, self.lock())
    }

    /// For the reader: after a writer that waits.
    fn lock_second(&self) -> MutexGuard<'_, Chunks> {
        drop(self.turnstile.lock().unwrap_or_else(PoisonError::into_inner));
        self.lock()
    }
}

impl Chunks {
    /// `bytes` are what chunk `number` holds from `start` on.
    fn take(&mut self, number: usize, start: usize, bytes: &[u8]) {
        match &mut self.chunks[number] {
            Some(chunk) => {
                if let Some(held) = &mut self.frozen {
                    held.set_aside(number, chunk, start..start + bytes.len());
                }
                Arc::make_mut(chunk)[start..][..bytes.len()].copy_from_slice(bytes);
            }
            None if is_zero(bytes) => {}
            missing if bytes.len() == CHUNK_BYTES => *missing = Some(bytes.into()),
            missing => {
                let mut chunk = vec![0; CHUNK_BYTES];
                chunk[start..][..bytes.len()].copy_from_slice(bytes);
                *missing = Some(chunk.into());
            }
        }
    }
}

impl Held {
    /// The reader will still want these bytes of a chunk as they are.
    fn set_aside(&mut self, number: usize, chunk: &[u8], bytes: Range<usize>) {
        if number < self.next || !self.present.get(number).is_some_and(|present| *present) {
            return;
        }
        let aside = self.set_aside[number].get_or_insert_default();
        for page in bytes.start / PAGE_BYTES..bytes.end.div_ceil(PAGE_BYTES) {
            aside[page].get_or_insert_with(|| chunk[page * PAGE_BYTES..][..PAGE_BYTES].into());
        }
    }
}

/// Pages of a chunk.
const PAGES: usize = CHUNK_BYTES / PAGE_BYTES;

/// What the shadow held when it was frozen. Its chunks can be read once, in their order, from any thread.
#[derive(Debug)]
pub(crate) struct FrozenMemory {
    shared: Arc<Shared>,
    bytes: usize,
}

/// A chunk on its way to the reader.
struct Passed {
    number: usize,
    chunk: Arc<[u8]>,
    /// What of its pages was set aside.
    aside: Option<Box<Aside>>,
}

impl FrozenMemory {
    /// The size of the memory.
    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Fills `buffer` with the next chunk that isn't known to be zeros, and returns its number.
    pub(crate) fn next(&mut self, buffer: &mut [u8; CHUNK_BYTES]) -> Option<usize> {
        let Passed { number, chunk, aside } = self.pass()?;
        buffer.copy_from_slice(&chunk);
        for (place, aside) in buffer.chunks_exact_mut(PAGE_BYTES).zip(aside.iter().flat_map(|aside| aside.iter())) {
            if let Some(aside) = aside {
                place.copy_from_slice(aside);
            }
        }
        Some(number)
    }

    /// The next chunk that isn't known to be zeros.
    fn pass(&mut self) -> Option<Passed> {
        let mut chunks = self.shared.lock_second();
        let Chunks { chunks, frozen } = &mut *chunks;
        let held = frozen.as_mut().expect("it stays frozen until this value is dropped");
        let left = held.present.iter().skip(held.next);
        let number = held.next + left.take_while(|present| !**present).count();
        held.next = number + 1;
        if number >= held.present.len() {
            return None;
        }
        let chunk = Arc::clone(chunks[number].as_ref().expect("chunks never go away"));
        let aside = held.set_aside[number].take();
        Some(Passed { number, chunk, aside })
    }
}

impl Drop for FrozenMemory {
    fn drop(&mut self) {
        let held = self.shared.lock_second().frozen.take();
        drop(held); // without the lock: it may be much
    }
}

/// Calls `each` with a range's part in every chunk that it touches, and the chunk's number.
fn by_chunk(range: &Range<usize>, mut each: impl FnMut(usize, Range<usize>)) {
    let mut start = range.start;
    while start < range.end {
        let end = range.end.min((start / CHUNK_BYTES + 1) * CHUNK_BYTES);
        each(start / CHUNK_BYTES, start..end);
        start = end;
    }
}

/// Whether all bytes are zero. Their number is a multiple of 64.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    // By cache lines, which compilers make into a few vector instructions; a byte at a time takes ten times as long.
    bytes.chunks_exact(64).all(|line| line.iter().fold(0, |any, byte| any | byte) == 0)
}

#[cfg(test)]
#[path = "shadow_tests.rs"]
mod tests;

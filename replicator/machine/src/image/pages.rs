//! The memory in an image: runs of pages that aren't zeros.
//!
//! A run is as long as it can be, but never goes past a multiple of 1 MiB of memory, so there is one way to write a memory.

use std::io;

use super::{
    ImageError,
    frames::{FrameReader, FrameWriter, Kind},
};
use crate::shadow::{CHUNK_BYTES, FrozenMemory, PAGE_BYTES, is_zero};

/// Pages of a run, at most.
const RUN_PAGES: usize = 256;
/// Bytes of the first page's number, which comes first in a run.
const NUMBER_BYTES: usize = 4;

/// Writes all pages that aren't zeros; returns how many.
pub(super) fn write(mut memory: FrozenMemory, frames: &mut FrameWriter<'_>) -> io::Result<u64> {
    let (mut count, mut next) = (0, None);
    let mut chunk = Box::new([0; CHUNK_BYTES]);
    while let Some(number) = memory.next(&mut chunk) {
        for (page, bytes) in chunk.chunks_exact(PAGE_BYTES).enumerate() {
            if is_zero(bytes) {
                continue;
            }
            let page = number * (CHUNK_BYTES / PAGE_BYTES) + page;
            if next != Some(page) || page.is_multiple_of(RUN_PAGES) {
                let first = u32::try_from(page).expect("a wasm memory has 2^20 pages at most");
                frames.begin(Kind::Pages)?.extend_from_slice(&first.to_le_bytes());
            }
            frames.payload().extend_from_slice(bytes);
            next = Some(page + 1);
            count += 1;
        }
    }
    frames.end()?;
    Ok(count)
}

/// Reads runs into `memory`, which is all zeros, from a header that was read already to the one of the end, which is
/// returned.
pub(super) fn read(
    frames: &mut FrameReader<'_>,
    mut header: (Kind, usize),
    memory: &mut [u8],
) -> Result<(Kind, usize), ImageError> {
    let mut least = 0;
    while let (Kind::Pages, len) = header {
        let pages = len.saturating_sub(NUMBER_BYTES) / PAGE_BYTES;
        if pages == 0 || pages > RUN_PAGES || len != NUMBER_BYTES + pages * PAGE_BYTES {
            return Err(frames.malformed(format!("a run of pages of {len} bytes")));
        }
        let first = u32::from_le_bytes(frames.array()?) as usize;
        if first < least {
            return Err(frames.malformed(format!("page {first} after page {}", least - 1)));
        }
        if (first > 0 && first == least && !first.is_multiple_of(RUN_PAGES)) || first % RUN_PAGES + pages > RUN_PAGES {
            return Err(frames.malformed(format!("a run of pages that isn't cut where it should be, at page {first}")));
        }
        let run = memory.get_mut(first * PAGE_BYTES..(first + pages) * PAGE_BYTES);
        let run = run.ok_or_else(|| frames.malformed(format!("page {first} and so on, beyond the memory")))?;
        frames.exact(run)?;
        if let Some(zero) = run.chunks_exact(PAGE_BYTES).position(is_zero) {
            return Err(frames.malformed(format!("page {} is there, and zero", first + zero)));
        }
        least = first + pages;
        header = frames.header(Kind::Pages)?;
    }
    Ok(header)
}

//! How much of the disk a node's folder takes, and how much it may take (docs/operations.md).

use std::{fs, io, os::unix::fs::MetadataExt as _, path::Path};

/// A segment of the log, at most, unless a request is larger.
const SEGMENT_BYTES: u64 = 64 << 20;
/// The module, its compiled code, meta, and the log of a chain's configuration group.
const REST_BYTES: u64 = 64 << 20;
/// Bytes of a block as the system counts them.
const BLOCK_BYTES: u64 = 512;

/// What a folder takes of the disk, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) log: u64,
    pub(super) images: u64,
    pub(super) all: u64,
}

impl Usage {
    /// Of a node's folder, now. Files that come or go meanwhile count or don't.
    pub(super) fn of(data_dir: &Path) -> io::Result<Self> {
        let (log, images) = (bytes(&data_dir.join("log"))?, bytes(&data_dir.join("snapshots"))?);
        Ok(Self { log, images, all: bytes(data_dir)? })
    }

    /// The greater of each.
    pub(super) fn max(self, other: Self) -> Self {
        Self { log: self.log.max(other.log), images: self.images.max(other.images), all: self.all.max(other.all) }
    }
}

/// The most that a log takes: what came since the image before the last, while the next one is due and written, which takes no longer than the log
/// takes to grow by `log_bytes`; and the part of its first segment that isn't needed any more, the rest of its last one, and the one
/// made ahead.
pub(super) const fn log_bound(log_bytes: u64) -> u64 {
    3 * log_bytes + 3 * SEGMENT_BYTES
}

/// The most that a node's folder takes: its log, two images and the one that is being written, and the rest.
pub(super) const fn bound(log_bytes: u64, image_bytes: u64) -> u64 {
    log_bound(log_bytes) + 3 * image_bytes + REST_BYTES
}

fn bytes(dir: &Path) -> io::Result<u64> {
    let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let entries = match fs::read_dir(dir) {
        Err(error) if gone(&error) => return Ok(0),
        entries => entries?,
    };
    let mut sum = 0;
    for entry in entries {
        let entry = entry?;
        sum += match entry.metadata() {
            Err(error) if gone(&error) => 0,
            Ok(metadata) if metadata.is_dir() => bytes(&entry.path())?,
            metadata => metadata?.blocks() * BLOCK_BYTES,
        };
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_takes_what_its_files_take() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("log")).unwrap();
        fs::write(dir.path().join("log/0.seg"), vec![1; 1 << 20]).unwrap();
        fs::write(dir.path().join("meta"), b"x").unwrap();
        let usage = Usage::of(dir.path()).unwrap();
        assert!(usage.log >= 1 << 20 && usage.all >= usage.log && usage.images == 0, "{usage:?}");
        assert_eq!(Usage::of(&dir.path().join("missing")).unwrap(), Usage::default());
        let more = Usage { log: 0, images: 5, all: 0 };
        assert_eq!(usage.max(more), Usage { images: 5, ..usage });
    }
}

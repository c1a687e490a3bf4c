//! Receives the data file of another node's snapshot, and goes on where a crash interrupted it.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::Arc,
};

use sha2::{Digest, Sha256};

use super::{Claim, Shared, SnapshotManifest, SnapshotPiece, growing::GrowingFile, reader::DataFile};
use crate::{StorageError, atomic_file, disk_room};

/// The manifest of what is being received.
pub(super) const MANIFEST_FILE: &str = "receiving.manifest";
/// As much of its data file as came.
pub(super) const IMAGE_FILE: &str = "receiving.image";

/// Takes the data file of a snapshot, piece after piece. Dropped before [`Self::finish`], it keeps what came, also over a crash:
/// [`super::SnapshotStore::receive`] with the same manifest goes on there.
#[derive(Debug)]
pub struct SnapshotReceiver {
    store: Arc<Shared>,
    manifest: SnapshotManifest,
    /// What of the data file is here.
    file: GrowingFile,
    sha256: Sha256,
    /// A write failed, so what the file holds is known only after it is read again.
    failed: bool,
    _claim: Claim,
}

impl SnapshotReceiver {
    pub(super) fn begin(store: Arc<Shared>, manifest: SnapshotManifest, claim: Claim) -> Result<Self, StorageError> {
        let (manifest_path, path) = (store.path.join(MANIFEST_FILE), store.path.join(IMAGE_FILE));
        manifest.check_version(&manifest_path)?;
        // A damaged manifest is of something that can't be gone on with.
        let known = SnapshotManifest::read(&manifest_path).ok().flatten();
        if known.as_ref() != Some(&manifest) {
            // The old bytes go first: they must never lie beside a manifest that isn't theirs.
            forget(&store.path)?;
            atomic_file::replace(&manifest_path, &manifest.to_file())
                .map_err(|error| disk_room::full_or(error, &store.path, manifest.data_bytes))?;
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(&path).map_err(StorageError::io("open", &path))?;
        let mut sha256 = Sha256::new();
        let received = whole_part(&path, &file, &mut sha256)?.min(manifest.data_bytes);
        file.set_len(received).map_err(StorageError::io("shorten", &path))?;
        let missing = manifest.data_bytes - received;
        disk_room::require(&store.path, missing.saturating_add(store.options.spare_bytes))?;
        let file = GrowingFile::open(&path, received)?;
        Ok(Self { store, manifest, file, sha256, failed: false, _claim: claim })
    }

    /// What is received.
    #[must_use]
    pub fn manifest(&self) -> &SnapshotManifest {
        &self.manifest
    }

    /// The byte of the data file that is wanted next: 0 at first, its size when all of it is here.
    #[must_use]
    pub fn resume_at(&self) -> u64 {
        self.file.bytes()
    }

    /// Takes the next piece. It isn't durable on return.
    ///
    /// # Errors
    /// [`StorageError::PieceOutOfOrder`] if it begins elsewhere, [`StorageError::PieceDamaged`] if its checksum is wrong; then nothing has
    /// changed. [`StorageError::DamagedSnapshot`] if it goes beyond the file's end. [`StorageError::Full`] or another one if it
    /// can't be written: then drop this, and receive again when that is mended.
    pub fn take(&mut self, piece: &SnapshotPiece) -> Result<(), StorageError> {
        let SnapshotPiece { offset, bytes, .. } = piece;
        let path = self.store.path.join(IMAGE_FILE);
        if self.failed {
            return Err(StorageError::failed(format!("a piece of {} couldn't be written before", path.display())));
        }
        let received = self.file.bytes();
        if *offset != received {
            return Err(StorageError::PieceOutOfOrder { offset: *offset, wanted: received });
        }
        if !piece.is_whole() {
            return Err(StorageError::PieceDamaged { offset: *offset });
        }
        let end = received + bytes.len() as u64;
        if end > self.manifest.data_bytes {
            let what = format!("a piece up to byte {end}, beyond the {} of its manifest", self.manifest.data_bytes);
            return Err(StorageError::damaged_snapshot(path, *offset, what));
        }
        if let Err(error) = self.file.append(bytes) {
            self.failed = true;
            return Err(disk_room::full_or(error, &self.store.path, self.manifest.data_bytes - received));
        }
        self.sha256.update(bytes);
        Ok(())
    }

    /// Installs the snapshot: whole, or not at all. Durable on return. It takes the place of another one at the same position.
    ///
    /// # Errors
    /// [`StorageError::PieceOutOfOrder`] if bytes are missing; what came is kept. [`StorageError::DamagedSnapshot`] if the file isn't the one of the
    /// manifest: then what came is dropped, and receiving begins anew. Others if something can't be written or fsynced.
    pub fn finish(self) -> Result<SnapshotManifest, StorageError> {
        let Self { store, manifest, file, sha256, failed, _claim } = self;
        let path = store.path.join(IMAGE_FILE);
        if failed || file.bytes() != manifest.data_bytes {
            return Err(StorageError::PieceOutOfOrder { offset: manifest.data_bytes, wanted: file.bytes() });
        }
        if <[u8; 32]>::from(sha256.finalize()) != manifest.data_sha256 {
            drop(file);
            forget(&store.path)?;
            return Err(StorageError::damaged_snapshot(
                path,
                None,
                "what was received has another SHA-256 than its manifest says",
            ));
        }
        file.finish().map_err(|error| disk_room::full_or(error, &store.path, manifest.data_bytes))?;
        store.install(&path, &manifest)?;
        forget(&store.path)?;
        Ok(manifest)
    }
}

/// Drops what was received: first the bytes, and then what they are of.
pub(super) fn forget(dir: &Path) -> Result<(), StorageError> {
    for name in [IMAGE_FILE, MANIFEST_FILE] {
        let path = dir.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            removed => {
                removed.map_err(StorageError::io("remove", &path))?;
                atomic_file::sync_dir(dir)?;
            }
        }
    }
    Ok(())
}

/// Where the last whole chunk of the file ends; what comes after it may have been cut by a crash, or never have reached the disk.
fn whole_part(path: &Path, file: &File, sha256: &mut Sha256) -> Result<u64, StorageError> {
    let file = file.try_clone().map_err(StorageError::io("open", path))?;
    let mut stored = Vec::new();
    let read = || {
        let mut data = DataFile::open(path, file)?;
        sha256.update(data.header.encode());
        let mut end = data.at;
        loop {
            let next = data.next_header().and_then(|(bytes, header)| {
                data.payload(&header, &mut stored)?;
                Ok((bytes, header))
            });
            match next {
                Err(StorageError::DamagedSnapshot { .. }) => return Ok(end),
                Err(error) => return Err(error),
                Ok((bytes, header)) => {
                    sha256.update(bytes);
                    sha256.update(&stored);
                    data.pass(&header);
                    end = data.at;
                    if header.is_end() {
                        return Ok(end);
                    }
                }
            }
        }
    };
    match read() {
        // Not even the file's header is whole, or it is of a version that the manifest denies.
        Err(StorageError::DamagedSnapshot { .. } | StorageError::Version { .. }) => Ok(0),
        read => read,
    }
}

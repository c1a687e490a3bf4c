//! The files of a folder of snapshots: which are whole, which are left over, and how one comes and goes.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use replicator_types::Position;

use super::{
    SnapshotManifest, SnapshotReader,
    manifest::{self, Name},
    receiver,
};
use crate::{StorageError, atomic_file};

/// A snapshot, as its manifest says.
#[derive(Debug)]
pub struct SnapshotEntry {
    /// Where its image ends in the log: by the manifest's name, which may be all that can be read.
    pub position: Position,
    /// What it is, or why that can't be read.
    pub manifest: Result<SnapshotManifest, StorageError>,
}

/// The snapshots in `dir`, the oldest first.
pub(crate) fn entries(dir: &Path) -> Result<Vec<SnapshotEntry>, StorageError> {
    let positions = names(dir)?.into_iter().filter_map(|(_, name)| match name {
        Name::Manifest(position) => Some(position),
        _ => None,
    });
    let entry = |position| {
        let manifest = manifest(dir, position).transpose()?; // one that was removed meanwhile is none
        Some(SnapshotEntry { position, manifest })
    };
    Ok(positions.filter_map(entry).collect())
}

/// The manifest of the snapshot at `position`; `None` if there is none.
pub(super) fn manifest(dir: &Path, position: Position) -> Result<Option<SnapshotManifest>, StorageError> {
    let path = manifest::path(dir, position);
    let found = SnapshotManifest::read(&path)?;
    match found.as_ref().map(SnapshotManifest::position) {
        Some(other) if other != position => {
            Err(StorageError::damaged_snapshot(path, None, format!("it is the manifest of the snapshot at {other}")))
        }
        _ => Ok(found),
    }
}

/// Installs the durable data file at `from`. A crash leaves the snapshot that was there before, or this one.
pub(super) fn install(dir: &Path, from: &Path, manifest: &SnapshotManifest) -> Result<(), StorageError> {
    let position = manifest.position();
    let image = dir.join(manifest.image_name());
    fs::rename(from, &image).map_err(StorageError::io("rename the new", &image))?;
    atomic_file::sync_dir(dir)?;
    let written = atomic_file::replace(&manifest::path(dir, position), &manifest.to_file());
    if let Err(error) = written {
        // What it was to replace has another name, unless it is the same content.
        if !matches!(self::manifest(dir, position), Ok(Some(found)) if found.image_name() == manifest.image_name()) {
            let _ = fs::remove_file(&image);
        }
        return Err(error);
    }
    for (path, name) in names(dir)? {
        if name == Name::Image(position) && path != image {
            remove_file(&path)?;
        }
    }
    atomic_file::sync_dir(dir)
}

/// Removes a snapshot: first its manifest, so that none ever stands without its data.
pub(super) fn remove(dir: &Path, position: Position) -> Result<(), StorageError> {
    remove_file(&manifest::path(dir, position))?;
    atomic_file::sync_dir(dir)?;
    for (path, name) in names(dir)? {
        if name == Name::Image(position) {
            remove_file(&path)?;
        }
    }
    atomic_file::sync_dir(dir)
}

/// Removes what a crash left: files that were being written, and data files that no manifest names. What was being received stays.
/// Beside a damaged manifest nothing is removed, as it may have named anything.
pub(super) fn clean(dir: &Path) -> Result<(), StorageError> {
    let receiving = SnapshotManifest::read(&dir.join(receiver::MANIFEST_FILE)).ok().flatten();
    if let Some(receiving) = &receiving
        && manifest(dir, receiving.position()).is_ok_and(|installed| installed.as_ref() == Some(receiving))
        && !dir.join(receiver::IMAGE_FILE).exists()
    {
        receiver::forget(dir)?; // installed, and the process ended before this was done
    }
    for (path, name) in names(dir)? {
        match name {
            Name::Unfinished => remove_file(&path)?,
            Name::Image(position) => {
                let own = |manifest: &SnapshotManifest| dir.join(manifest.image_name()) == path;
                match manifest(dir, position) {
                    Err(StorageError::DamagedSnapshot { .. } | StorageError::Version { .. }) => {}
                    Err(error) => return Err(error),
                    Ok(Some(manifest)) if own(&manifest) => {}
                    // Received to its end, and the process ended before the manifest was written.
                    Ok(_) if receiving.as_ref().is_some_and(own) => {
                        let back = dir.join(receiver::IMAGE_FILE);
                        fs::rename(&path, &back).map_err(StorageError::io("rename", &path))?;
                    }
                    Ok(_) => remove_file(&path)?,
                }
            }
            Name::Foreign => tracing::warn!(file = %path.display(), "not a file of replicator's; left alone"),
            Name::Manifest(_) | Name::Receiving => {}
        }
    }
    atomic_file::sync_dir(dir)
}

/// Reads all that is in `dir` and changes nothing: each snapshot's position with its manifest or its damage, and files that are not ours.
pub(crate) fn check(dir: &Path) -> Result<(Vec<SnapshotEntry>, Vec<PathBuf>), StorageError> {
    let mut checked = entries(dir)?;
    for entry in &mut checked {
        let read = match &entry.manifest {
            Ok(manifest) => SnapshotReader::open(dir, manifest.clone()).and_then(SnapshotReader::read_to_end_checked),
            Err(_) => Ok(()),
        };
        if let Err(error) = read {
            entry.manifest = Err(error);
        }
    }
    let foreign = names(dir)?.into_iter().filter(|(_, name)| *name == Name::Foreign).map(|(path, _)| path);
    Ok((checked, foreign.collect()))
}

fn names(dir: &Path) -> Result<Vec<(PathBuf, Name)>, StorageError> {
    let names = atomic_file::names(dir)?;
    Ok(names.into_iter().map(|name| (dir.join(&name), Name::of(&name))).collect())
}

fn remove_file(path: &Path) -> Result<(), StorageError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(StorageError::io("remove", path)),
    }
}

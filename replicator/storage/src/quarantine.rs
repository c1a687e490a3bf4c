//! A note in the folder that its node's state is not what the other replicas have: it must outlive a restart, as the images beside it may hold
//! that state.

use std::{fs, path::Path};

use replicator_types::codec::Format;
use serde::{Deserialize, Serialize};

use crate::{NodeDir, StorageError, atomic_file, sealed_file};

const FILE: &str = "quarantine";
const MAGIC: [u8; 8] = *b"RPLQUAR\n";

/// What is written.
#[derive(Serialize, Deserialize)]
struct Stored(Vec<u8>);

impl Format for Stored {
    const WHAT: &'static str = "quarantine note";
}

impl NodeDir {
    /// The note, in the node's own encoding; none: its state is as good as is known.
    ///
    /// # Errors
    /// [`StorageError::Damaged`] if there is one that can't be read: that there is one is all that is known then.
    pub fn quarantine(&self) -> Result<Option<Vec<u8>>, StorageError> {
        let path = self.path().join(FILE);
        let Some(bytes) = atomic_file::read(&path)? else { return Ok(None) };
        let Stored(note) = sealed_file::decode(&MAGIC, &path, &bytes, |what| StorageError::damaged(&path, None, what))?;
        Ok(Some(note))
    }

    /// Replaces the note, or removes it; durable on return.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn set_quarantine(&self, note: Option<Vec<u8>>) -> Result<(), StorageError> {
        let path = self.path().join(FILE);
        match note {
            Some(note) => atomic_file::replace(&path, &sealed_file::encode(&MAGIC, &Stored(note))),
            None => remove(&path),
        }
    }
}

fn remove(path: &Path) -> Result<(), StorageError> {
    match fs::remove_file(path) {
        Ok(()) => atomic_file::sync_dir(path.parent().expect("a file in a node's folder has a parent")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(StorageError::io("remove", path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_outlives_its_process_and_goes_when_it_is_removed() {
        let scratch = tempfile::tempdir().expect("a folder");
        let dir = NodeDir::open(scratch.path(), "a").expect("it opens");
        assert_eq!(dir.quarantine().expect("it is read"), None);
        dir.set_quarantine(None).expect("nothing is removed");
        dir.set_quarantine(Some(vec![1, 2, 3])).expect("it is written");
        drop(dir);
        let dir = NodeDir::open(scratch.path(), "a").expect("it opens");
        assert_eq!(dir.quarantine().expect("it is read"), Some(vec![1, 2, 3]));
        let path = scratch.path().join(FILE);
        let mut bytes = fs::read(&path).expect("a file");
        bytes[14] ^= 1;
        fs::write(&path, bytes).expect("a file");
        assert!(matches!(dir.quarantine(), Err(StorageError::Damaged { .. })));
        dir.set_quarantine(None).expect("it is removed");
        assert_eq!(dir.quarantine().expect("it is read"), None);
        // A node that starts afresh sets it aside with everything else.
        dir.set_quarantine(Some(vec![4])).expect("it is written");
        drop(dir);
        NodeDir::set_aside(scratch.path()).expect("it moves");
        let dir = NodeDir::open(scratch.path(), "a").expect("it opens");
        assert_eq!(dir.quarantine().expect("it is read"), None);
    }
}

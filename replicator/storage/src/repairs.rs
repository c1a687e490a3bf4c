//! What was mended in a node's folder, for people: a small file of lines that nothing depends on.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use crate::{NodeDir, StorageError, atomic_file};

/// The file's name in the node's folder.
pub(crate) const REPAIRS_FILE: &str = "repairs";

/// Lines that are kept.
const LINES_MAX: usize = 100;

/// A damage that was mended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repair {
    /// Which file.
    pub path: PathBuf,
    /// The byte in the file at which the damage began, where that is known.
    pub offset: Option<u64>,
    /// What was put there, and whose it is.
    pub what: String,
}

impl Repair {
    /// A repair of `path`.
    pub fn new(path: &Path, offset: Option<u64>, what: impl Into<String>) -> Self {
        Self { path: path.to_owned(), offset, what: what.into() }
    }
}

impl fmt::Display for Repair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some(offset) = self.offset {
            write!(f, ", byte {offset}")?;
        }
        write!(f, ": {}", self.what)
    }
}

impl NodeDir {
    /// Keeps a line about each repair in the folder, the last hundred of them, with the time. They are for people only.
    ///
    /// # Errors
    /// If the file can't be written.
    pub fn note_repairs(&self, repairs: &[Repair]) -> Result<(), StorageError> {
        let _noting = self.noting_repairs();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let path = self.path().join(REPAIRS_FILE);
        let mut lines = read(self.path());
        lines.extend(repairs.iter().map(|repair| format!("{now} {}", repair.to_string().replace('\n', " "))));
        let kept = &lines[lines.len().saturating_sub(LINES_MAX)..];
        atomic_file::replace(&path, (kept.join("\n") + "\n").as_bytes())
    }
}

/// The lines in the folder `dir`, the oldest first: seconds since 1970, and what was mended. None if the file can't be read.
pub(crate) fn read(dir: &Path) -> Vec<String> {
    let text = fs::read(dir.join(REPAIRS_FILE)).unwrap_or_default();
    String::from_utf8_lossy(&text).lines().map(str::to_owned).collect()
}

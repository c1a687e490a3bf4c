//! A session that lives on in a file between calls, with the requests that have no outcome yet.
//!
//! A request is written down before it is sent, and struck out after its outcome was printed. So a call that was interrupted anywhere in
//! between is found by the next one, which sends the same request under the same number, and gets the same outcome.
//!
//! The file is private to its owner, because a session's id is a secret. It is replaced atomically, and locked by a call until that ends.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use bytes::Bytes;
use replicator_client::{LogIndex, SavedSession, Sequence};
use serde::{Deserialize, Serialize};

use super::input::unhex;
use crate::cli::output;

/// The version of the file's format.
const VERSION: u32 = 1;
const POLL: Duration = Duration::from_millis(10);

/// What the file holds, as JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    version: u32,
    /// Who knows it can act in the session.
    session_id: String,
    lineage: String,
    ttl_ms: u64,
    window: u32,
    log_index: u64,
    request_bytes_max: u64,
    /// The number of the first request without an outcome, or of the next one.
    next_sequence: u64,
    /// Requests without an outcome, from `next_sequence` on, in hexadecimal digits.
    unanswered: Vec<String>,
}

/// What was in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) session: SavedSession,
    /// Requests without an outcome, under the numbers from `session.next_sequence` on.
    pub(super) unanswered: Vec<Bytes>,
}

/// A session's file, locked.
#[derive(Debug)]
pub(super) struct SessionFile {
    path: PathBuf,
    /// The file itself; a new one with each save.
    lock: File,
}

impl SessionFile {
    /// Opens the file, and makes an empty one if there is none. Waits for another call that uses it.
    pub(super) async fn open(path: &Path, patience: Duration) -> Result<(Self, Option<Kept>)> {
        let began = Instant::now();
        let name = path.display();
        loop {
            check_kind(path)?;
            let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(path);
            let file = file.with_context(|| format!("can't open {name}"))?;
            match file.try_lock() {
                // Whoever had the lock may have replaced the file since it was opened.
                Ok(()) if is_at(&file, path) => {
                    let path = path.canonicalize().with_context(|| format!("can't find {name}"))?;
                    let kept = read(&path)?;
                    return Ok((Self { path, lock: file }, kept));
                }
                Ok(()) => continue,
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error).with_context(|| format!("can't lock {name}")),
            }
            if began.elapsed() > patience {
                bail!("the session in {name} is in use by another call; wait for that to end, or use another file");
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Replaces what the file holds, durably.
    pub(super) fn save(
        &mut self,
        session: &SavedSession,
        next_sequence: Sequence,
        unanswered: &[&Bytes],
    ) -> Result<()> {
        let content = Content {
            version: VERSION,
            session_id: session.id.to_string(),
            lineage: session.lineage.to_string(),
            ttl_ms: u64::try_from(session.ttl.as_millis()).unwrap_or(u64::MAX),
            window: session.window,
            log_index: session.log_index.0,
            request_bytes_max: session.request_bytes_max,
            next_sequence: next_sequence.0,
            unanswered: unanswered.iter().map(|request| output::hex(request)).collect(),
        };
        let mut content = serde_json::to_vec_pretty(&content)?;
        content.push(b'\n');
        self.replace(&content).with_context(|| format!("can't write {}", self.path.display()))
    }

    fn replace(&mut self, content: &[u8]) -> io::Result<()> {
        // The same name each time, so that killed calls don't leave one each. Only the one that holds the lock writes it.
        let mut name = OsString::from(".");
        name.push(self.path.file_name().unwrap_or_default());
        name.push(".new");
        let temporary = self.path.with_file_name(name);
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {} // Left behind by a killed call.
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        // Locked before it is there, so that nobody comes between.
        file.try_lock()?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, &self.path)?;
        self.lock = file;
        File::open(self.path.parent().unwrap_or(Path::new("/")))?.sync_all()
    }

    /// Removes the file: its session is no longer good.
    pub(super) fn remove(self) -> Result<()> {
        fs::remove_file(&self.path).with_context(|| format!("can't remove {}", self.path.display()))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    let same = || {
        let (held, there) = (file.metadata()?, fs::metadata(path)?);
        io::Result::Ok((held.dev(), held.ino()) == (there.dev(), there.ino()))
    };
    same().unwrap_or(false)
}

/// Refuses what can't be a session's file. A device would be replaced by one, and a pipe waited for.
fn check_kind(path: &Path) -> Result<()> {
    match fs::metadata(path) {
        Ok(there) if there.is_file() => Ok(()),
        Ok(_) => bail!("{} is no regular file, so it can't hold a session; use another file", path.display()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("can't open {}", path.display())),
    }
}

/// What a file holds; none if it is empty.
pub(super) fn read(path: &Path) -> Result<Option<Kept>> {
    check_kind(path)?;
    let name = path.display();
    let bytes = fs::read(path).with_context(|| format!("can't read {name}"))?;
    if bytes.is_empty() {
        return Ok(None);
    }
    let decoded = decode(&bytes);
    decoded.map(Some).map_err(|why| anyhow!("{name} holds no session ({why:#}); use another file, or remove this one"))
}

fn decode(bytes: &[u8]) -> Result<Kept> {
    let content: Content = serde_json::from_slice(bytes)?;
    if content.version != VERSION {
        bail!("its version is {}, this program's is {VERSION}", content.version);
    }
    let session = SavedSession {
        id: content.session_id.parse().context("session_id")?,
        lineage: content.lineage.parse().context("lineage")?,
        next_sequence: Sequence(content.next_sequence),
        ttl: Duration::from_millis(content.ttl_ms),
        window: content.window,
        log_index: LogIndex(content.log_index),
        request_bytes_max: content.request_bytes_max,
    };
    let unanswered = content.unanswered.iter().map(|request| Ok(unhex(request.as_bytes())?.into()));
    Ok(Kept { session, unanswered: unanswered.collect::<Result<_>>()? })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use replicator_client::{Lineage, SessionId};

    use super::*;

    const AT_ONCE: Duration = Duration::ZERO;

    fn session() -> SavedSession {
        SavedSession {
            id: SessionId([7; 16]),
            lineage: Lineage(u64::MAX),
            next_sequence: Sequence(3),
            ttl: Duration::from_secs(60),
            window: 64,
            log_index: LogIndex(9),
            request_bytes_max: 1 << 20,
        }
    }

    #[tokio::test]
    async fn session_and_unanswered_requests_come_back_as_they_were() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("session");
        let (mut file, kept) = SessionFile::open(&path, AT_ONCE).await.unwrap();
        assert_eq!(kept, None);
        let unanswered = vec![Bytes::from_static(b"\xff\0"), Bytes::new()];
        file.save(&session(), Sequence(4), &[]).unwrap();
        file.save(&session(), Sequence(3), &[&unanswered[0], &unanswered[1]]).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(file);
        let (file, kept) = SessionFile::open(&path, AT_ONCE).await.unwrap();
        assert_eq!(kept, Some(Kept { session: session(), unanswered }));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "something is left over");
        file.remove().unwrap();
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn calls_take_turns_also_after_the_file_was_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("session");
        let (mut file, _) = SessionFile::open(&path, AT_ONCE).await.unwrap();
        let waiting = tokio::spawn({
            let path = path.clone();
            async move { SessionFile::open(&path, Duration::from_secs(20)).await }
        });
        for next in 1..20 {
            file.save(&session(), Sequence(next), &[]).unwrap();
            let error = SessionFile::open(&path, AT_ONCE).await.unwrap_err();
            assert!(error.to_string().contains("in use by another call"), "{error:#}");
        }
        drop(file);
        let (_, kept) = waiting.await.unwrap().unwrap();
        assert_eq!(kept.unwrap().session.next_sequence, Sequence(19));
    }

    #[tokio::test]
    async fn what_is_no_regular_file_is_refused_and_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&pipe, &link).unwrap();
        for path in [&pipe, &link, &folder.path().to_owned()] {
            let before = fs::metadata(path).unwrap().file_type();
            for error in [SessionFile::open(path, AT_ONCE).await.unwrap_err(), read(path).unwrap_err()] {
                assert!(error.to_string().contains("is no regular file"), "{error:#}");
            }
            assert_eq!(fs::metadata(path).unwrap().file_type(), before);
        }
    }

    #[tokio::test]
    async fn killed_calls_leave_no_pile_of_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("session");
        let (mut file, _) = SessionFile::open(&path, AT_ONCE).await.unwrap();
        fs::write(folder.path().join(".session.new"), "half").unwrap();
        file.save(&session(), Sequence(3), &[]).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "something is left over");
    }

    #[tokio::test]
    async fn damaged_file_is_told_and_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("session");
        let (mut file, _) = SessionFile::open(&path, AT_ONCE).await.unwrap();
        file.save(&session(), Sequence(3), &[]).unwrap();
        drop(file);
        let whole = fs::read_to_string(&path).unwrap();
        for damage in [&whole[..whole.len() / 2], "hello", &whole.replace("\"version\": 1", "\"version\": 2")] {
            fs::write(&path, damage).unwrap();
            let error = SessionFile::open(&path, AT_ONCE).await.unwrap_err().to_string();
            assert!(error.contains("holds no session") && error.contains("remove this one"), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), *damage);
        }
    }
}

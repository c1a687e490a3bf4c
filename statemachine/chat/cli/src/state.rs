//! Logins kept between commands: one file for each account, private to its owner, replaced atomically.
//!
//! A lock beside each file lets the commands of one account run one after the other: a session's numbers can't be
//! given out twice. A file that can't be read is never guessed at: the answer is to log in again.

use std::{
    env,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use replicator_client::{Cursor, Lineage, LogIndex, SavedSession, Sequence};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::failure::usage;

/// The version of the file's format.
const VERSION: u32 = 1;
/// How long another command is waited for before the user is told.
const PATIENCE: Duration = Duration::from_secs(1);

/// A login.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Login {
    version: u32,
    pub(crate) account: String,
    pub(crate) endpoints: Vec<String>,
    /// Hexadecimal. Who knows it is logged in.
    session_id: String,
    lineage: String,
    next_sequence: u64,
    ttl_ms: u64,
    window: u32,
    log_index: u64,
    /// 0 in a file of an earlier version: not known.
    #[serde(default)]
    request_bytes_max: u64,
    /// Up to where pushed messages have been shown: log index and ordinal.
    cursor: Option<(u64, u32)>,
    /// The greatest message id shown by `read` or `listen`.
    pub(crate) shown_id: u64,
}

impl Login {
    pub(crate) fn new(account: &str, endpoints: Vec<String>, session: &SavedSession) -> Self {
        let mut login = Self {
            version: VERSION,
            account: account.to_owned(),
            endpoints,
            session_id: session.id.to_string(),
            lineage: session.lineage.to_string(),
            next_sequence: 0,
            ttl_ms: u64::try_from(session.ttl.as_millis()).unwrap_or(u64::MAX),
            window: session.window,
            log_index: 0,
            request_bytes_max: session.request_bytes_max,
            cursor: None,
            shown_id: 0,
        };
        login.update(session);
        login
    }

    /// Takes over how far the session has come.
    pub(crate) fn update(&mut self, session: &SavedSession) {
        self.next_sequence = session.next_sequence.0;
        self.log_index = session.log_index.0;
    }

    pub(crate) fn session(&self) -> Result<SavedSession> {
        Ok(SavedSession {
            id: self.session_id.parse().context("session_id")?,
            lineage: self.lineage()?,
            next_sequence: Sequence(self.next_sequence),
            ttl: Duration::from_millis(self.ttl_ms),
            window: self.window,
            log_index: LogIndex(self.log_index),
            request_bytes_max: self.request_bytes_max,
        })
    }

    fn lineage(&self) -> Result<Lineage> {
        self.lineage.parse().context("lineage")
    }

    pub(crate) fn cursor(&self) -> Result<Option<Cursor>> {
        let lineage = self.lineage()?;
        Ok(self.cursor.map(|(log_index, ordinal)| Cursor { lineage, log_index: LogIndex(log_index), ordinal }))
    }

    pub(crate) fn set_cursor(&mut self, cursor: Option<Cursor>) {
        self.cursor = cursor.map(|cursor| (cursor.log_index.0, cursor.ordinal));
    }
}

/// The folder of logins.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    folder: PathBuf,
}

/// Held while a command uses an account's login.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Store {
    /// Opens, and makes if need be, the folder: `given`, or the usual one.
    pub(crate) fn open(given: Option<&Path>) -> Result<Self> {
        let variable = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let folder = match given {
            Some(folder) => folder.to_owned(),
            None => variable("XDG_STATE_HOME")
                .filter(|path| path.is_absolute())
                .or_else(|| Some(variable("HOME")?.join(".local/state")))
                .ok_or_else(|| usage("there is no HOME to keep logins in; give --state-dir FOLDER"))?
                .join("chat"),
        };
        let make = || {
            if let Some(parent) = folder.parent() {
                fs::create_dir_all(parent)?;
            }
            match DirBuilder::new().mode(0o700).create(&folder) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
                other => other,
            }
        };
        make().with_context(|| format!("cannot make the folder {} for logins", folder.display()))?;
        Ok(Self { folder })
    }

    /// The account that the last login was of.
    pub(crate) fn current(&self) -> Option<String> {
        let name = fs::read_to_string(self.folder.join("current")).ok()?;
        Some(name.trim_end_matches('\n').to_owned()).filter(|name| !name.is_empty())
    }

    /// Makes `account` the one that commands without --user are about.
    pub(crate) fn set_current(&self, account: &str) -> Result<()> {
        self.replace("current", format!("{account}\n").as_bytes(), true)
    }

    /// Waits until no other command uses the login of `account`.
    pub(crate) async fn lock(&self, account: &str) -> Result<Lock> {
        let tell = || {
            let _ = writeln!(anstream::stderr(), "waiting for another chat command of {account} to end …");
        };
        self.lock_telling(account, tell).await
    }

    /// [`Store::lock`] that calls `tell` once if it takes long.
    pub(crate) async fn lock_telling(&self, account: &str, tell: impl Fn()) -> Result<Lock> {
        let path = self.folder.join(format!("{}.lock", file_name(account)));
        let open = || OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file = open().with_context(|| format!("cannot open {}", path.display()))?;
        let (mut waited, pause) = (Duration::ZERO, Duration::from_millis(10));
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Lock { _file: file }),
                Err(error) if error == rustix::io::Errno::WOULDBLOCK || error == rustix::io::Errno::INTR => {}
                Err(error) => return Err(error).with_context(|| format!("cannot lock {}", path.display())),
            }
            if waited == PATIENCE {
                tell();
            }
            tokio::time::sleep(pause).await;
            waited += pause;
        }
    }

    /// The login of `account`; `None` if there is none.
    pub(crate) fn load(&self, account: &str) -> Result<Option<Login>> {
        let path = self.path(account);
        let content = match fs::read(&path) {
            Ok(content) => content,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let damaged = |why: String| {
            anyhow!("the saved login in {} is damaged ({why}); run `chat login {account}`", path.display())
        };
        let login: Login = serde_json::from_slice(&content).map_err(|error| damaged(error.to_string()))?;
        if login.version != VERSION {
            bail!(damaged(format!("its version is {}, this program's is {VERSION}", login.version)));
        }
        if login.account != account {
            bail!(damaged(format!("it is of {}", login.account)));
        }
        login.session().map_err(|error| damaged(format!("{error:#}")))?;
        Ok(Some(login))
    }

    /// Replaces the login. `durable`: also against a power cut.
    pub(crate) fn save(&self, login: &Login, durable: bool) -> Result<()> {
        let mut content = serde_json::to_vec_pretty(login).context("a login always encodes")?;
        content.push(b'\n');
        self.replace(&format!("{}.json", file_name(&login.account)), &content, durable)
    }

    /// Forgets the login of `account`.
    pub(crate) fn forget(&self, account: &str) -> Result<()> {
        let path = self.path(account);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    fn path(&self, account: &str) -> PathBuf {
        self.folder.join(format!("{}.json", file_name(account)))
    }

    /// Readers see the old content or the new one, never a part.
    fn replace(&self, name: &str, content: &[u8], durable: bool) -> Result<()> {
        let path = self.folder.join(name);
        let temporary = self.folder.join(format!(".{}.tmp", std::process::id()));
        let write = || -> io::Result<()> {
            // Left behind by a killed process of this number; create_new so that a link isn't followed.
            match fs::remove_file(&temporary) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
            file.write_all(content)?;
            if durable {
                file.sync_all()?;
            }
            fs::rename(&temporary, &path)?;
            if durable {
                File::open(&self.folder)?.sync_all()?;
            }
            Ok(())
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }
}

/// An account's name as a file name: bytes that could mean something to a file system become %XX.
fn file_name(account: &str) -> String {
    let mut name = String::new();
    for (at, byte) in account.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => name.push(char::from(byte)),
            b'.' if at > 0 => name.push('.'),
            _ => name.push_str(&format!("%{byte:02x}")),
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use replicator_client::SessionId;

    use super::*;

    fn login(account: &str) -> Login {
        let session = SavedSession {
            id: SessionId([7; 16]),
            lineage: Lineage(u64::MAX),
            next_sequence: Sequence(3),
            ttl: Duration::from_secs(60),
            window: 64,
            log_index: LogIndex(9),
            request_bytes_max: 1_000,
        };
        Login::new(account, vec!["127.0.0.1:1".into()], &session)
    }

    fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(Some(&folder.path().join("a/b/chat"))).unwrap();
        (folder, store)
    }

    #[test]
    fn a_login_comes_back_as_it_was() {
        let (_folder, store) = store();
        assert_eq!(store.load("alice").unwrap(), None);
        let mut login = login("alice");
        let cursor = Cursor { lineage: Lineage(u64::MAX), log_index: LogIndex(8), ordinal: 2 };
        login.set_cursor(Some(cursor));
        store.save(&login, true).unwrap();
        store.save(&login, false).unwrap();
        let loaded = store.load("alice").unwrap().unwrap();
        assert_eq!(loaded, login);
        assert_eq!(loaded.cursor().unwrap(), Some(cursor));
        assert_eq!(loaded.session().unwrap().lineage, Lineage(u64::MAX));
        store.forget("alice").unwrap();
        store.forget("alice").unwrap();
        assert_eq!(store.load("alice").unwrap(), None);
    }

    #[test]
    fn files_are_private_and_nothing_is_left_over() {
        let (_folder, store) = store();
        store.save(&login("alice"), true).unwrap();
        store.set_current("alice").unwrap();
        assert_eq!(store.current().as_deref(), Some("alice"));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&store.folder), 0o700);
        let mut names = Vec::new();
        for entry in fs::read_dir(&store.folder).unwrap() {
            let path = entry.unwrap().path();
            assert_eq!(mode(&path), 0o600, "{}", path.display());
            names.push(path.file_name().unwrap().to_str().unwrap().to_owned());
        }
        names.sort();
        assert_eq!(names, ["alice.json", "current"]);
    }

    #[test]
    fn a_damaged_file_is_told_and_how_to_mend_it() {
        let (_folder, store) = store();
        store.save(&login("alice"), false).unwrap();
        let path = store.path("alice");
        let whole = fs::read(&path).unwrap();
        let other = String::from_utf8(whole.clone()).unwrap();
        let damages: [Vec<u8>; 6] = [
            Vec::new(),
            whole[..whole.len() / 2].to_vec(),
            b"\xff\xfe".to_vec(),
            other.replace("\"version\": 1", "\"version\": 2").into_bytes(),
            other.replace("alice", "mallory").into_bytes(),
            other.replace("07070707", "0707").into_bytes(),
        ];
        for damage in damages {
            fs::write(&path, &damage).unwrap();
            let error = store.load("alice").unwrap_err().to_string();
            assert!(error.contains("damaged") && error.contains("run `chat login alice`"), "{error}");
        }
    }

    #[test]
    fn any_name_is_a_file_name() {
        assert_eq!(file_name("al-ice_1.b"), "al-ice_1.b");
        assert_eq!(file_name("../x"), "%2e.%2fx");
        assert_eq!(file_name("é%"), "%c3%a9%25");
        assert_ne!(file_name("a%2f"), file_name("a/"));
    }

    #[tokio::test]
    async fn commands_of_one_account_take_turns() {
        let (_folder, store) = store();
        let held = store.lock("alice").await.unwrap();
        store.lock("bob").await.unwrap();
        let second = tokio::time::timeout(Duration::from_millis(30), store.lock("alice")).await;
        assert!(second.is_err(), "two commands held the lock");
        drop(held);
        store.lock("alice").await.unwrap();
    }
}

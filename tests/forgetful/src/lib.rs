//! A disk for tests that forgets what was not fsynced, as real ones do when the power goes.
//!
//! [`Disk`] is a file system in this process's memory, mounted through FUSE, that keeps two versions of everything: what programs read and write, and
//! what would be left after a power loss. An fsync of a file carries its bytes and its size from the first to the second, an fsync of
//! a folder its names; a write through a descriptor that was opened with `O_DSYNC` is its own fsync. That is all that POSIX promises, and less than most file systems give:
//! an fsync of a file doesn't keep its name. A power loss drops the rest, or, [`PowerLoss::torn`], lets some of it survive: sectors of 512 bytes in any order, a
//! size without its bytes, the first so many changes of names.
//!
//! A disk can also lie ([`Disk::lie_about_syncs`]: fsync does nothing and says that it did, so that a test can show what it finds), and fail
//! ([`Disk::fail_sync`]).
//!
//! Mounting needs root and `/dev/fuse`; [`Disk::unavailable`] says what is missing.

mod chance;
mod file;
mod mount;
mod tree;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use fuser::{BackgroundSession, Config, MountOption};

pub use tree::Unsynced;

use crate::{
    chance::Chance,
    mount::{Mounted, Power, Shared},
};

/// Requests that are served at once.
const THREADS: usize = 4;

/// What a power loss leaves of what was not fsynced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerLoss {
    /// Nothing.
    Clean,
    /// What the seed decides.
    Torn(u64),
}

/// A disk that is mounted. Unmounted when it is dropped; then its content is gone.
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
    shared: Arc<Shared>,
    session: Option<BackgroundSession>,
}

impl Disk {
    /// Why no disk can be mounted here; `None` if one can.
    #[must_use]
    pub fn unavailable() -> Option<String> {
        if !rustix::process::geteuid().is_root() {
            return Some("mounting a file system needs root".into());
        }
        let opened = fs::OpenOptions::new().read(true).write(true).open("/dev/fuse");
        opened
            .err()
            .map(|error| format!("this kernel has no FUSE, or this container isn't given it: /dev/fuse: {error}"))
    }

    /// Mounts an empty disk on a folder that exists.
    ///
    /// # Errors
    /// If it can't be mounted.
    pub fn mount(path: &Path) -> io::Result<Self> {
        let mut disk = Self { path: path.canonicalize()?, shared: Arc::default(), session: None };
        disk.attach()?;
        Ok(disk)
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn attach(&mut self) -> io::Result<()> {
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName("forgetful".into()),
            MountOption::DefaultPermissions,
            MountOption::NoDev,
            MountOption::NoSuid,
            MountOption::NoAtime,
        ];
        // Several at once, so that an fsync holds up nobody else.
        config.n_threads = Some(THREADS);
        self.shared.set_power(Power::On);
        self.session = Some(fuser::spawn_mount(Mounted(self.shared.clone()), &self.path, &config)?);
        Ok(())
    }

    /// The power goes: from now on nothing becomes durable, and nobody who asks the disk for something gets an answer. Kill those who use it, and
    /// then call [`Disk::restore_power`]; they can't die before.
    pub fn cut_power(&self) {
        self.shared.set_power(Power::Cut);
    }

    /// Lets those who were killed die: their requests fail now. Nothing becomes durable.
    pub fn let_go(&self) {
        self.shared.set_power(Power::Off);
    }

    /// The power comes back, and what was not fsynced is forgotten. Tells what that was. Call it when nobody uses the disk any more.
    ///
    /// # Errors
    /// If the disk is in use, or can't be mounted again.
    pub fn restore_power(&mut self, loss: PowerLoss) -> io::Result<Unsynced> {
        self.let_go();
        self.detach()?;
        let lost = match loss {
            PowerLoss::Clean => self.shared.tree().forget(None),
            PowerLoss::Torn(seed) => self.shared.tree().forget(Some(&mut Chance::new(seed))),
        };
        self.attach()?;
        Ok(lost)
    }

    /// From now on, or no more: an fsync of a file or a folder whose name ends with `ending` says that all is well, and makes nothing durable.
    pub fn lie_about_syncs(&self, ending: Option<&str>) {
        self.shared.faults(|faults| faults.lies_about = ending.map(ToOwned::to_owned));
    }

    /// The fsync that comes after `after` others, of those of files whose names end with `ending`, fails with EIO. The next ones succeed
    /// again, and what should have been written is not on the disk: so Linux does it.
    pub fn fail_sync(&self, ending: &str, after: u64) {
        self.shared.faults(|faults| faults.failing = Some((ending.to_owned(), after)));
    }

    /// How long each fsync takes from now on; at first no time. Meanwhile the disk serves others, and the power may go: then parts of it are done.
    pub fn set_sync_time(&self, time: Duration) {
        self.shared.faults(|faults| faults.sync_time = time);
    }

    /// How many fsyncs failed so far.
    #[must_use]
    pub fn failed_syncs(&self) -> u64 {
        self.shared.faults(|faults| faults.failed)
    }

    /// How many fsyncs were asked for so far, those by `O_DSYNC` too.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.shared.faults(|faults| faults.syncs)
    }

    fn detach(&mut self) -> io::Result<()> {
        self.session.take().map_or(Ok(()), BackgroundSession::umount_and_join)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Whoever waits for an answer would wait for ever, and could not be killed.
        self.let_go();
        if let Err(error) = self.detach() {
            // Without its process a mount answers nobody.
            let detached = rustix::mount::unmount(&self.path, rustix::mount::UnmountFlags::DETACH);
            eprintln!(
                "{} was in use when it was to be unmounted: {error}; detached: {detached:?}",
                self.path.display()
            );
        }
    }
}

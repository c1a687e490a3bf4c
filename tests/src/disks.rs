//! Nodes on disks of their own: ones that forget what was not fsynced when the power goes, and small ones that can be filled.

use std::{
    env,
    fs::{self, File},
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use forgetful::{Disk, PowerLoss, Unsynced};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::{Cluster, Scenario};

/// How a cluster of three replicas replicates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// By a majority.
    Majority,
    /// A chain with two witnesses, whose primary writes last.
    BackupsFirst,
    /// A chain with two witnesses, whose members write at once.
    Parallel,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Majority, Self::BackupsFirst, Self::Parallel];

    /// Blank nodes, not started, with `settings` as the last lines of their configurations.
    ///
    /// # Errors
    /// If there are no ports or files.
    pub async fn prepare(self, s: &Scenario, settings: &str) -> Result<Cluster> {
        let (witnesses, mode) = match self {
            Self::Majority => (0, "mode = \"majority\"\n"),
            Self::BackupsFirst => (2, "mode = \"chain\"\n[chain]\npersist_order = \"backups-first\"\n"),
            Self::Parallel => (2, "mode = \"chain\"\n[chain]\npersist_order = \"parallel\"\n"),
        };
        s.prepare_with(3, witnesses, &format!("{mode}{settings}")).await
    }
}

/// How long an fsync takes: as long as an SSD's, so that many power losses come upon one that is under way.
const SYNC_TIME: Duration = Duration::from_micros(300);

/// What power losses took, in all.
#[derive(Debug, Clone, Copy, Default)]
pub struct Blackout {
    /// How many there were.
    pub losses: u64,
    /// Of how many of them something was forgotten.
    pub forgot: u64,
    /// What could have been forgotten.
    pub unsynced: Unsynced,
}

impl Blackout {
    fn add(&mut self, unsynced: Unsynced) {
        self.losses += 1;
        self.forgot += u64::from(unsynced != Unsynced::default());
        self.unsynced.blocks += unsynced.blocks;
        self.unsynced.names += unsynced.names;
    }
}

impl Cluster {
    /// Gives each node, none of which may have run yet, a disk of its own that forgets.
    ///
    /// # Errors
    /// If one can't be mounted: [`Disk::unavailable`] says why.
    pub fn on_forgetful_disks(&mut self) -> Result<()> {
        for index in 0..self.len() {
            let path = self[index].data_dir.clone();
            ensure!(self[index].pid().is_none() && !path.exists(), "{} has run already", self[index].name);
            fs::create_dir(&path)?;
            let disk = Disk::mount(&path).with_context(|| format!("can't mount {}", path.display()))?;
            disk.set_sync_time(SYNC_TIME);
            self.disks.push(disk);
        }
        Ok(())
    }

    /// Gives a node, which may not have run yet, a disk of its own of so many bytes.
    ///
    /// # Errors
    /// If this isn't root, or it can't be mounted.
    pub fn on_small_disk(&self, index: usize, bytes: u64) -> Result<SmallDisk> {
        let node = &self[index];
        ensure!(node.pid().is_none() && !node.data_dir.exists(), "{} has run already", node.name);
        let disk = SmallDisk::mount(self.dir().join(format!("disk-of-{}", node.name)), bytes)?;
        let folder = disk.path.join("data");
        fs::create_dir(&folder)?;
        std::os::unix::fs::symlink(folder, &node.data_dir)?;
        Ok(disk)
    }

    /// A node's disk.
    #[must_use]
    pub fn disk(&self, index: usize) -> &Disk {
        &self.disks[index]
    }

    /// These nodes lose their power at the same moment, and their disks forget. Returns when the power is back, and no process runs.
    ///
    /// # Errors
    /// If one of them doesn't run, or its disk can't be mounted again.
    pub fn lose_power(&mut self, indexes: &[usize], loss: PowerLoss, blackout: &mut Blackout) -> Result<()> {
        for &index in indexes {
            self.disks[index].cut_power();
        }
        // Whoever waits for a disk dies once it answers again, with an error that it doesn't live to see.
        let killed = indexes.iter().try_for_each(|&index| self[index].send_kill());
        for &index in indexes {
            self.disks[index].let_go();
        }
        killed?;
        for &index in indexes {
            self[index].kill()?;
            let unsynced = self.disks[index].restore_power(match loss {
                PowerLoss::Clean => PowerLoss::Clean,
                PowerLoss::Torn(seed) => PowerLoss::Torn(seed.wrapping_mul(31).wrapping_add(index as u64)),
            })?;
            blackout.add(unsynced);
        }
        Ok(())
    }

    /// A node that has ended gets its disk back as after a power loss.
    ///
    /// # Errors
    /// If it runs, or its disk can't be mounted again.
    pub fn restore_disk(&mut self, index: usize, loss: PowerLoss) -> Result<Unsynced> {
        ensure!(self[index].pid().is_none(), "{} runs", self[index].name);
        Ok(self.disks[index].restore_power(loss)?)
    }

    /// Copies what is on the disks beside the nodes' logs, as they are gone when the test ends.
    ///
    /// # Errors
    /// If it can't be copied.
    pub fn keep_disks(&self) -> Result<()> {
        for index in 0..self.disks.len() {
            let name = format!("{}-as-it-was", self[index].name);
            copy(&self[index].data_dir, &self.dir().join(name))?;
        }
        Ok(())
    }
}

/// A file system in memory, which needs root. Unmounted when it is dropped, also from under those who use it.
#[derive(Debug)]
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Makes the folder, and mounts the file system there.
    ///
    /// # Errors
    /// If it can't be mounted.
    pub fn mount(path: PathBuf, bytes: u64) -> Result<Self> {
        fs::create_dir(&path)?;
        let options = std::ffi::CString::new(format!("size={bytes},mode=0700"))?;
        mount("tmpfs", &path, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(&*options))
            .with_context(|| format!("can't mount a tmpfs on {}: `make faults` must run as root", path.display()))?;
        Ok(Self { path })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes it as large as this.
    ///
    /// # Errors
    /// If it can't be, or holds more.
    pub fn resize(&self, bytes: u64) -> Result<()> {
        let options = std::ffi::CString::new(format!("size={bytes}"))?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        Ok(rustix::mount::mount_remount(&self.path, flags, &*options)?)
    }

    /// Bytes that are free.
    ///
    /// # Errors
    /// If the kernel doesn't tell.
    pub fn free_bytes(&self) -> Result<u64> {
        let told = rustix::fs::statvfs(&self.path)?;
        Ok(told.f_bavail * told.f_frsize)
    }

    /// Fills it, but for so many bytes.
    ///
    /// # Errors
    /// If it can't be written to.
    pub fn fill(&self, but: u64) -> Result<()> {
        let mut ballast = File::options().create(true).append(true).open(self.ballast())?;
        let zeros = vec![0; 64 << 10];
        loop {
            let now =
                usize::try_from(self.free_bytes()?.saturating_sub(but)).map_or(zeros.len(), |n| n.min(zeros.len()));
            match ballast.write(&zeros[..now]) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Frees what [`SmallDisk::fill`] has taken.
    ///
    /// # Errors
    /// If that isn't there.
    pub fn free(&self) -> Result<()> {
        Ok(fs::remove_file(self.ballast())?)
    }

    fn ballast(&self) -> PathBuf {
        self.path.join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if let Err(error) = unmount(&self.path, UnmountFlags::DETACH) {
            eprintln!("unmount {} by hand: {error}", self.path.display());
        }
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let (entry, to) = (entry?, to.to_owned());
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            copy(&from, &to)?;
        } else {
            fs::copy(&from, &to)?;
        }
    }
    Ok(())
}

/// A number from the environment.
///
/// # Panics
/// If it is set, and no number.
#[must_use]
pub fn number(key: &str, default: u64) -> u64 {
    env::var(key).ok().map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{key}={text:?} is no number")))
}

//! Nodes on disks that forget what was not fsynced when the power goes.

use std::{env, fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use forgetful::{Disk, PowerLoss, Unsynced};

use crate::Cluster;

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

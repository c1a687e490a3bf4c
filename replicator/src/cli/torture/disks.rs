//! A small disk for each node, which can be filled to its last byte: a tmpfs, mounted over the node's folder. Only root may mount one.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use rustix::{
    fs::{FallocateFlags, fallocate, statvfs},
    io::Errno,
    mount::{MountFlags, UnmountFlags, mount, unmount},
};

/// How large a disk is. The log has up to three segments of 64 MiB and refuses new entries when 64 MiB are left; the rest is for images.
const DISK_BYTES: u64 = 384 << 20;
/// What fills a disk: beside the node's data, so that a node whose data was wiped finds its folder empty.
const FILLER: &str = "filler";
/// Where the content goes while the disk under it is taken away, beside the node's folder.
const KEPT: &str = "kept";

/// Mounted disks, one for each node, in order. Dropped, they are unmounted, with all that is on them.
#[derive(Debug)]
pub(super) struct Disks {
    folders: Vec<PathBuf>,
    mounted: usize,
}

impl Disks {
    /// Mounts one over each of these folders, which it makes.
    ///
    /// # Errors
    /// If a folder can't be made or a disk can't be mounted, as without root; then none is left behind.
    pub(super) fn mount(folders: Vec<PathBuf>) -> io::Result<Self> {
        let mut disks = Self { folders, mounted: 0 };
        for folder in &disks.folders {
            fs::create_dir_all(folder)?;
            let options = std::ffi::CString::new(format!("size={DISK_BYTES},mode=0700"))?;
            mount("replicator-torture", folder, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, &*options)?;
            disks.mounted += 1;
        }
        Ok(disks)
    }

    /// Takes all that a node's disk has left, to the last byte. What the node frees afterwards it can use.
    pub(super) fn fill(&self, index: usize) -> anyhow::Result<()> {
        let folder = &self.folders[index];
        fill(folder).with_context(|| format!("can't fill the disk at {}", folder.display()))
    }

    /// Gives it back.
    pub(super) fn free(&self, index: usize) -> anyhow::Result<()> {
        let filler = self.folders[index].join(FILLER);
        fs::remove_file(&filler).with_context(|| format!("can't remove {}", filler.display()))
    }

    /// Unmounts the disks, and leaves what the nodes had on them in the folders: evidence. The nodes must have ended.
    ///
    /// # Errors
    /// If not all of it could be kept. What was kept so far stays; the disks go away all the same.
    pub(super) fn keep(mut self) -> anyhow::Result<()> {
        while let Some(folder) = self.mounted.checked_sub(1).map(|last| self.folders[last].clone()) {
            let kept = folder.with_extension(KEPT);
            let _ = fs::remove_file(folder.join(FILLER)); // it may not be full
            copy(&folder, &kept).with_context(|| format!("can't keep what is in {}", folder.display()))?;
            self.unmount_last();
            fs::remove_dir(&folder).and_then(|()| fs::rename(&kept, &folder)).with_context(|| {
                format!("what was in {} is kept in {}, but can't take its place", folder.display(), kept.display())
            })?;
        }
        Ok(())
    }

    /// Also if somebody still uses it: then it goes away with the last one.
    fn unmount_last(&mut self) {
        self.mounted -= 1;
        let folder = &self.folders[self.mounted];
        if let Err(error) = unmount(folder, UnmountFlags::DETACH) {
            eprintln!("can't unmount {}: {error}; try: umount -l {}", folder.display(), folder.display());
        }
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        while self.mounted > 0 {
            self.unmount_last();
        }
    }
}

fn fill(folder: &Path) -> io::Result<()> {
    let filler = fs::OpenOptions::new().create(true).append(true).open(folder.join(FILLER))?;
    loop {
        let stat = statvfs(folder)?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if free == 0 {
            return Ok(());
        }
        match fallocate(&filler, FallocateFlags::empty(), filler.metadata()?.len(), free) {
            Ok(()) | Err(Errno::NOSPC) => {} // what is left by now, the next time
            Err(error) => return Err(error.into()),
        }
    }
}

/// Copies a folder that nobody writes to.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() { copy(&from, &to)? } else { fs::copy(&from, &to).map(drop)? }
    }
    Ok(())
}

/// Bytes that the files in a folder take on the disk. What goes away meanwhile isn't counted.
pub(super) fn used_bytes(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let used = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => used_bytes(&entry.path()),
        Ok(metadata) => metadata.blocks() * 512, // the unit of st_blocks, whatever the disk's
        Err(_) => 0,
    };
    entries.filter_map(Result::ok).map(used).sum()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_full_disk_takes_no_byte_until_it_is_freed_and_its_content_outlives_it() {
        let folder = tempfile::tempdir().unwrap();
        let folders: Vec<PathBuf> = ["n1", "n2"].iter().map(|name| folder.path().join(name)).collect();
        let disks = match Disks::mount(folders.clone()) {
            Ok(disks) => disks,
            Err(error) => return eprintln!("SKIPPED, nothing was tested: only root can mount a disk: {error}"),
        };
        fs::create_dir(folders[0].join("data")).unwrap();
        let mut file = fs::File::create(folders[0].join("data/log")).unwrap();
        file.write_all(&[7; 5_000]).unwrap();
        disks.fill(0).unwrap();
        file.write_all(&[7; 3_192]).unwrap(); // the rest of a page that it has
        assert_eq!(file.write_all(&[7]).unwrap_err().kind(), io::ErrorKind::StorageFull);
        fs::write(folders[1].join("other"), "has room").unwrap();
        file.set_len(0).unwrap();
        disks.fill(0).unwrap();
        assert_eq!(file.write_all(&[7]).unwrap_err().kind(), io::ErrorKind::StorageFull, "what was freed is taken");
        disks.free(0).unwrap();
        file.write_all(&[8; 9_000]).unwrap();
        assert!((9_000..1 << 20).contains(&used_bytes(&folders[0])), "{}", used_bytes(&folders[0]));
        disks.fill(0).unwrap();
        disks.keep().unwrap();
        assert!(fs::read(folders[0].join("data/log")).unwrap().ends_with(&[8; 9_000]));
        assert_eq!(fs::read_to_string(folders[1].join("other")).unwrap(), "has room");
        assert_eq!(fs::read_dir(&folders[0]).unwrap().count(), 1, "the filler is not kept");
        assert!(!is_mounted(folder.path()));
    }

    #[test]
    fn disks_go_away_with_their_owner() {
        let folder = tempfile::tempdir().unwrap();
        let Ok(disks) = Disks::mount(vec![folder.path().join("n1")]) else { return };
        assert!(is_mounted(folder.path()));
        drop(disks);
        assert!(!is_mounted(folder.path()));
    }

    fn is_mounted(within: &Path) -> bool {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        mounts.contains(&*within.canonicalize().unwrap().to_string_lossy())
    }
}

//! The disk as programs have it: through the kernel. Mounting needs root, so these are run by `make faults`.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use forgetful::{Disk, PowerLoss, Unsynced};
use rustix::fs::OFlags;
use tempfile::TempDir;

fn disk() -> (Disk, TempDir) {
    if let Some(why) = Disk::unavailable() {
        panic!("{why}");
    }
    let dir = tempfile::tempdir().expect("a folder");
    let disk = Disk::mount(dir.path()).expect("a mount");
    (disk, dir)
}

fn lose_power(disk: &mut Disk) -> Unsynced {
    disk.cut_power();
    disk.restore_power(PowerLoss::Clean).expect("nobody uses the disk")
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[test]
#[ignore = "needs root: make faults"]
fn synced_file_survives_and_what_was_written_later_does_not() -> io::Result<()> {
    let (mut disk, _dir) = disk();
    let path = disk.path().join("file");
    let bytes: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    fs::write(&path, &bytes)?;
    File::open(&path)?.sync_data()?;
    sync_folder(disk.path())?;
    fs::write(disk.path().join("other"), "no fsync")?;
    OpenOptions::new().write(true).open(&path)?.write_all_at(&[0xff; 9000], 5_000)?;
    assert_eq!(lose_power(&mut disk), Unsynced { blocks: 3 + 1, names: 1 });
    assert!(fs::read(&path)? == bytes, "the file isn't as it was at its fsync");
    assert_eq!(fs::read_dir(disk.path())?.count(), 1);
    Ok(())
}

#[test]
#[ignore = "needs root: make faults"]
fn renamed_listed_and_removed_files_are_those_of_the_disk() -> io::Result<()> {
    let (mut disk, _dir) = disk();
    let folder = disk.path().join("folder");
    fs::create_dir(&folder)?;
    for number in 0..2_000 {
        fs::write(folder.join(format!("file {number}")), number.to_string())?;
    }
    assert_eq!(fs::read_dir(&folder)?.count(), 2_000);
    fs::rename(folder.join("file 1"), folder.join("file 2"))?;
    assert_eq!(fs::read_to_string(folder.join("file 2"))?, "1");
    fs::remove_dir_all(&folder)?;
    assert_eq!(lose_power(&mut disk).names, 1 + 2_000 + 1 + 1_999 + 1);
    Ok(())
}

/// The log's files are written so: past the cache, each write durable on return.
#[test]
#[ignore = "needs root: make faults"]
fn direct_write_with_dsync_survives_and_one_without_does_not() -> io::Result<()> {
    #[repr(align(4096))]
    struct Aligned([u8; 8192]);
    let (mut disk, _dir) = disk();
    for (name, flags) in [("durable", OFlags::DIRECT | OFlags::DSYNC), ("cached", OFlags::DIRECT)] {
        let path = disk.path().join(name);
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).custom_flags(flags.bits().cast_signed()).open(&path)?;
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 1 << 20)?;
        file.sync_all()?;
        file.write_all_at(&Aligned([7; 8192]).0, 4096)?;
    }
    sync_folder(disk.path())?;
    assert_eq!(lose_power(&mut disk), Unsynced { blocks: 2, names: 0 });
    for (name, byte) in [("durable", 7), ("cached", 0)] {
        let found = fs::read(disk.path().join(name))?;
        assert_eq!(found.len(), 1 << 20, "{name}");
        assert!(found[4096..12_288].iter().all(|found| *found == byte), "{name}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root: make faults"]
fn lie_about_an_fsync_is_found_by_a_power_loss() -> io::Result<()> {
    let (mut disk, _dir) = disk();
    disk.lie_about_syncs(Some(".seg"));
    for name in ["a.seg", "b"] {
        fs::write(disk.path().join(name), "text")?;
        File::open(disk.path().join(name))?.sync_all()?;
    }
    sync_folder(disk.path())?;
    assert_eq!(disk.syncs(), 3);
    assert_eq!(lose_power(&mut disk), Unsynced { blocks: 1, names: 0 });
    assert_eq!(fs::read_to_string(disk.path().join("a.seg"))?, "");
    assert_eq!(fs::read_to_string(disk.path().join("b"))?, "text");
    Ok(())
}

#[test]
#[ignore = "needs root: make faults"]
fn failed_fsync_is_reported_once() -> io::Result<()> {
    let (disk, _dir) = disk();
    let path = disk.path().join("a.seg");
    let file = File::create(&path)?;
    disk.fail_sync(".seg", 1);
    file.write_all_at(b"text", 0)?;
    file.sync_all()?;
    let failed = file.sync_data().expect_err("the second fsync fails");
    assert_eq!(failed.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
    file.sync_all()?;
    assert_eq!(disk.failed_syncs(), 1);
    Ok(())
}

/// A process that waits for the disk while the power is gone can be killed, and nothing that it asked for afterwards is there.
#[test]
#[ignore = "needs root: make faults"]
fn nothing_is_answered_after_the_power_is_cut() -> io::Result<()> {
    let (mut disk, _dir) = disk();
    let mut shell = Command::new("sh")
        .args(["-c", "echo ready; read line; echo text > late; sync late; echo done"])
        .current_dir(disk.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut told = shell.stdout.take().expect("it is piped");
    let mut ready = [0; 6];
    told.read_exact(&mut ready)?;
    disk.cut_power();
    drop(shell.stdin.take()); // which `read` takes for a line's end
    let rest = thread::spawn(move || io::read_to_string(told));
    shell.kill()?;
    disk.let_go();
    shell.wait()?;
    assert_eq!(rest.join().expect("no panic")?, "", "it was answered");
    disk.restore_power(PowerLoss::Torn(1))?;
    assert_eq!(fs::read_dir(disk.path())?.count(), 0);
    Ok(())
}

/// Parts of what is being fsynced when the power goes survive.
#[test]
#[ignore = "needs root: make faults"]
fn power_lost_during_a_direct_write_tears_it() -> io::Result<()> {
    #[repr(align(4096))]
    struct Aligned([u8; 65_536]);
    let mut torn = 0;
    for seed in 0..10 {
        let (mut disk, _dir) = disk();
        let path = disk.path().join("file");
        let flags = OFlags::DIRECT | OFlags::DSYNC;
        let file = OpenOptions::new().write(true).create(true).custom_flags(flags.bits().cast_signed()).open(&path)?;
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 65_536)?;
        file.sync_all()?;
        sync_folder(disk.path())?;
        let syncs = disk.syncs();
        disk.set_sync_time(Duration::from_secs(60));
        let writing = thread::spawn(move || file.write_all_at(&Aligned([7; 65_536]).0, 0));
        while disk.syncs() == syncs {
            thread::yield_now();
        }
        disk.cut_power();
        disk.let_go();
        writing.join().expect("no panic").expect_err("it never ended");
        disk.restore_power(PowerLoss::Torn(seed))?;
        let found = fs::read(&path)?;
        assert_eq!(found.len(), 65_536);
        torn += usize::from(found.contains(&7) && found.contains(&0));
    }
    assert!(torn > 3, "{torn} of 10 were torn");
    Ok(())
}

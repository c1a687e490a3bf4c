//! Disks that fail: an fsync that fails, and disks that are full. Nothing acknowledged is lost, no linearizable read is stale, those that can go on do,
//! and all goes on by itself, or after a start, when the cause has gone.
//!
//! The disks are those of `tests/forgetful`, small ones in memory, and an ext4 image on one of these: all of that needs root, so these are run by `make faults`.

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use replicator_client::proto::StatusResponse;
use replicator_tests::{Cluster, Mode, PowerLoss, Residents, SmallDisk, module, scenario, until, until_within};

/// Small, so that images are taken and removed, and segments of the log come and go, all the time.
const IMAGES: &str = "[images]\nlog_bytes = 65536\n";
/// Answers that a node must give to show that it goes on.
const ADVANCE: u64 = 20;
/// A node's disk: with some room beside what its log keeps as a reserve (64 MiB).
const DISK_BYTES: u64 = 160 << 20;

async fn serve(cluster: &mut Cluster) -> Result<Residents> {
    cluster.start_all().await?;
    cluster.init(&module("counter"), &[]).await?;
    let mut residents = Residents::start(cluster).await?;
    let all: Vec<usize> = cluster.replicas().collect();
    residents.advance(&all, ADVANCE, ADVANCE).await?;
    Ok(residents)
}

fn without(cluster: &Cluster, victim: usize) -> Vec<usize> {
    cluster.replicas().filter(|&index| index != victim).collect()
}

/// All replicas serve again, and have exactly what was acknowledged.
async fn mended(cluster: &Cluster, mut residents: Residents) -> Result<()> {
    cluster.wait_all_serve().await?;
    let all: Vec<usize> = cluster.replicas().collect();
    residents.advance(&all, ADVANCE, ADVANCE).await?;
    residents.settle(cluster).await?;
    cluster.verify().await?;
    Ok(())
}

/// The fsyncs of which files fail: by the endings of their names. Of `meta`, an image's data, and what is fsynced first of all.
const FAILING: [&str; 3] = [".seg", ".new", ""];

#[test]
#[ignore = "needs root: make faults"]
fn failed_fsync_ends_the_process_at_once_and_nothing_acknowledged_is_lost() {
    for mode in Mode::ALL {
        scenario(async |s| {
            s.may_take(3);
            let mut cluster = mode.prepare(s, IMAGES).await?;
            cluster.on_forgetful_disks()?;
            let mut residents = serve(&mut cluster).await?;
            for (turn, ending) in (0_u64..).zip(FAILING).chain((3..).zip(FAILING)) {
                let primary = cluster.wait_primary().await?;
                // The primary and a backup in turn.
                let victim = if turn.is_multiple_of(2) { primary } else { without(&cluster, primary)[0] };
                let what = format!("{mode:?}: an fsync of {ending:?} fails at {}", cluster[victim].name);
                let since = cluster[victim].log_bytes();
                cluster.disk(victim).fail_sync(ending, turn % 3);
                let told = cluster[victim].exits(3, since, &["Input/output error"]).await;
                let told = told.with_context(|| what.clone())?;
                ensure!(cluster.disk(victim).failed_syncs() > 0, "{what}: none has failed");
                ensure!(!told.contains("panicked"), "{what}: {told}");
                let others = without(&cluster, victim);
                residents.advance(&others, ADVANCE, ADVANCE).await.with_context(|| what.clone())?;
                // What the failed fsync was to keep goes with the power, as it does when a dying disk is replaced by its copy.
                cluster.restore_disk(victim, PowerLoss::Clean)?;
                cluster.restart(victim).await.with_context(|| what.clone())?;
            }
            mended(&cluster, residents).await
        });
    }
}

/// Whose disks are full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Full {
    Primary,
    Backup,
    All,
}

fn small_disks(cluster: &Cluster) -> Result<Vec<SmallDisk>> {
    cluster.replicas().map(|index| cluster.on_small_disk(index, DISK_BYTES)).collect()
}

/// Writes on with these disks full. Whether that is acknowledged or refused, reads go on wherever there is room.
async fn write_on(cluster: &Cluster, residents: &mut Residents, full: Full, victim: usize) -> Result<()> {
    let all: Vec<usize> = cluster.replicas().collect();
    let others = without(cluster, victim);
    if full != Full::Backup {
        until("writes are refused for want of room", async || {
            let now = residents.refused_for_room();
            ensure!(now > 10, "{now} were refused; the primary: {:?}", told(cluster, victim).await);
            Ok(())
        })
        .await?;
        let (disk_full, _, detail) = told(cluster, victim).await.context("the primary is silent")?;
        ensure!(disk_full && detail.contains("full"), "{detail}");
        residents.advance(&all, 0, ADVANCE).await.context("reads don't go on")?;
    }
    match full {
        // It hands its part over to one whose disk has room.
        Full::Primary => residents.advance(&others, 5 * ADVANCE, 5 * ADVANCE).await.context("no other took over"),
        Full::All => residents.advance(&all, 0, 10 * ADVANCE).await.context("reads don't go on"),
        Full::Backup => {
            let stuffing = stuff(cluster, others[0]).await?;
            until("the full node's log stands still, or the chain leaves it out", async || {
                let (_, free, detail) = told(cluster, victim).await.context("the backup is silent")?;
                ensure!(
                    detail.contains("waits for room") || detail.contains("not in the chain"),
                    "{free} free: {detail}"
                );
                Ok(())
            })
            .await?;
            stuffing.abort();
            residents.advance(&others, ADVANCE, 5 * ADVANCE).await.context("the others don't go on")
        }
    }
}

/// Fills the log of all: by large requests that the module refuses, one after the other, at this node, until it is aborted.
async fn stuff(cluster: &Cluster, node: usize) -> Result<tokio::task::JoinHandle<()>> {
    let session = cluster.client_of(node)?.open_session(None).await?;
    Ok(tokio::spawn(async move {
        loop {
            drop(session.execute(vec![b'x'; 200 << 10]).await);
        }
    }))
}

async fn told(cluster: &Cluster, index: usize) -> Option<(bool, u64, String)> {
    let status: Option<StatusResponse> = cluster.status(index).await.ok();
    status.map(|status| (status.disk_full, status.disk_free_bytes, status.detail))
}

#[test]
#[ignore = "needs root: make faults"]
fn full_disk_refuses_writes_reads_go_on_and_all_resumes_by_itself() {
    for mode in Mode::ALL {
        for full in [Full::Primary, Full::Backup, Full::All] {
            scenario(async |s| {
                s.may_take(2);
                let mut cluster = mode.prepare(s, IMAGES).await?;
                let disks = small_disks(&cluster)?;
                let mut residents = serve(&mut cluster).await?;
                let primary = cluster.wait_primary().await?;
                let filled = match full {
                    Full::Primary => vec![primary],
                    Full::Backup => vec![without(&cluster, primary)[0]],
                    Full::All => cluster.replicas().collect(),
                };
                for &index in &filled {
                    disks[index].fill(0)?;
                }
                let before = residents.acknowledged();
                let what = || format!("{mode:?}, full: {full:?}");
                write_on(&cluster, &mut residents, full, filled[0]).await.with_context(what)?;
                let meanwhile = residents.acknowledged() - before;
                for &index in &filled {
                    ensure!(cluster[index].pid().is_some(), "{}: {} has ended", what(), cluster[index].name);
                    disks[index].free()?;
                }
                let freed = Instant::now();
                let all: Vec<usize> = cluster.replicas().collect();
                residents.advance(&all, ADVANCE, ADVANCE).await.with_context(what)?;
                println!(
                    "{}: {meanwhile} acknowledged and {} refused meanwhile, all go on {:.1} s after there is room",
                    what(),
                    residents.refused_for_room(),
                    freed.elapsed().as_secs_f64()
                );
                let done = mended(&cluster, residents).await.with_context(what);
                drop(cluster);
                drop(disks);
                done
            });
        }
    }
}

/// A node that is started on a full disk says so, or serves; and serves once there is room.
#[test]
#[ignore = "needs root: make faults"]
fn start_on_a_full_disk_serves_once_there_is_room() {
    for mode in [Mode::Majority, Mode::Parallel] {
        scenario(async |s| {
            let mut cluster = mode.prepare(s, IMAGES).await?;
            let disks = small_disks(&cluster)?;
            let mut residents = serve(&mut cluster).await?;
            for left in [0, 4 << 10, 100 << 10, 2 << 20] {
                cluster.kill(&[1])?;
                disks[1].fill(left)?;
                residents.advance(&[0, 2], ADVANCE, ADVANCE).await?;
                let since = cluster[1].log_bytes();
                cluster[1].start(&[])?;
                let told = until("it ends, or answers", async || {
                    if let Ok(status) = cluster.status(1).await {
                        return Ok(format!("{:?} {}", status.state(), status.detail));
                    }
                    let told = cluster[1].told(since)?;
                    ensure!(told.contains("full") || told.contains("no room on the disk"), "{told}");
                    Ok(told)
                })
                .await
                .with_context(|| format!("{mode:?}, {left} bytes left"))?;
                println!("{mode:?}, {left} bytes left: {}", told.lines().last().unwrap_or_default());
                residents.advance(&[0, 2], ADVANCE, ADVANCE).await?;
                disks[1].free()?;
                if cluster[1].has_ended()? {
                    cluster[1].start(&[])?;
                }
                cluster.wait_serves(1).await.with_context(|| format!("{mode:?}, {left} bytes were left"))?;
            }
            let done = mended(&cluster, residents).await;
            drop(cluster);
            drop(disks);
            done
        });
    }
}

/// A node without a folder takes the whole state onto a disk that has no room for it, and completes when it has.
#[test]
#[ignore = "needs root: make faults"]
fn transfer_onto_a_full_disk_completes_once_there_is_room() {
    for mode in [Mode::Majority, Mode::Parallel] {
        scenario(async |s| {
            let mut cluster = mode.prepare(s, IMAGES).await?;
            let disks = small_disks(&cluster)?;
            let mut residents = serve(&mut cluster).await?;
            cluster.wait_status(0, "drops what is in images", |status| status.purged_log_index > 0).await?;
            cluster.kill(&[2])?;
            let folder = fs::canonicalize(&cluster[2].data_dir)?;
            for entry in fs::read_dir(&folder)? {
                let path = entry?.path();
                if path.is_dir() { fs::remove_dir_all(path)? } else { fs::remove_file(path)? }
            }
            // Enough for a new log, and not for an image beside the reserve.
            disks[2].fill(24 << 20)?;
            cluster[2].start(&[])?;
            cluster.wait_answers(2).await?;
            residents.advance(&[0, 1], 5 * ADVANCE, 5 * ADVANCE).await?;
            // In majority mode it is the primary that hears of it.
            let refused = until_within(Duration::from_secs(15), "the image finds no room", async || {
                let logs: Result<String> = cluster.replicas().map(|index| cluster[index].told(0)).collect();
                ensure!(logs?.contains("no room on the disk"), "nobody says so");
                Ok(())
            });
            let refused = refused.await;
            ensure!(refused.is_ok() || mode == Mode::Majority, "{refused:?}");
            residents.advance(&[0, 1], ADVANCE, ADVANCE).await?;
            println!("{mode:?}, {refused:?}: {:?}", told(&cluster, 2).await);
            ensure!(!cluster[2].has_ended()?, "it has ended: {}", cluster[2].told(0)?);
            disks[2].free()?;
            let done = mended(&cluster, residents).await;
            drop(cluster);
            drop(disks);
            done
        });
    }
}

/// A file system on a device that runs out of room below it: ext4 learns of it when it writes back, and reports it with an fsync, once.
struct Ext4 {
    device: SmallDisk,
    path: std::path::PathBuf,
}

/// The image's size; its device has far less.
const EXT4_BYTES: u64 = 512 << 20;

impl Ext4 {
    fn mount(dir: &std::path::Path, device_bytes: u64) -> Result<Self> {
        let device = SmallDisk::mount(dir.join("device"), device_bytes)?;
        let image = device.path().join("image");
        fs::File::create(&image)?.set_len(EXT4_BYTES)?;
        command("mkfs.ext4", &["-q", "-F", &image.display().to_string()])?;
        let path = dir.join("ext4");
        fs::create_dir(&path)?;
        let disk = Self { device, path };
        disk.attach()?;
        Ok(disk)
    }

    fn attach(&self) -> Result<()> {
        let image = self.device.path().join("image");
        command("mount", &["-o", "loop", &image.display().to_string(), &self.path.display().to_string()])
    }

    /// Unmounted, with room below it, repaired and mounted again.
    fn mend(&self, device_bytes: u64) -> Result<()> {
        command("umount", &[&self.path.display().to_string()])?;
        self.device.resize(device_bytes)?;
        let image = self.device.path().join("image").display().to_string();
        // 1: it has repaired something.
        let ended = Command::new("e2fsck").args(["-f", "-y", &image]).output()?;
        ensure!(ended.status.code().is_some_and(|code| code < 4), "e2fsck: {ended:?}");
        self.attach()
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        let _ = command("umount", &["-l", &self.path.display().to_string()]);
    }
}

fn command(program: &str, args: &[&str]) -> Result<()> {
    let ended = Command::new(program).args(args).output().with_context(|| format!("can't run {program}"))?;
    ensure!(ended.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&ended.stderr));
    Ok(())
}

#[test]
#[ignore = "needs root: make faults"]
fn ext4_that_loses_its_device_loses_nothing_acknowledged() {
    for mode in [Mode::Majority, Mode::Parallel] {
        scenario(async |s| {
            let mut cluster = mode.prepare(s, IMAGES).await?;
            let disk = Ext4::mount(cluster.dir(), 40 << 20)?;
            let folder = disk.path.join("data");
            fs::create_dir(&folder)?;
            std::os::unix::fs::symlink(folder, &cluster[1].data_dir)?;
            let mut residents = serve(&mut cluster).await?;
            disk.device.fill(0)?;
            let since = cluster[1].log_bytes();
            until("the node ends, or says that its disk is full", async || {
                if cluster[1].has_ended()? {
                    return Ok(());
                }
                ensure!(cluster[1].told(since)?.contains("full"), "{:?}", told(&cluster, 1).await);
                Ok(())
            })
            .await?;
            residents.advance(&[0, 2], 5 * ADVANCE, 5 * ADVANCE).await?;
            let said = cluster[1].told(since)?;
            println!("{mode:?}: {}", said.lines().last().unwrap_or_default());
            if !cluster[1].has_ended()? {
                cluster.kill(&[1])?;
            }
            disk.mend(300 << 20)?;
            cluster.restart(1).await?;
            let done = mended(&cluster, residents).await;
            drop(cluster);
            drop(disk);
            done
        });
    }
}

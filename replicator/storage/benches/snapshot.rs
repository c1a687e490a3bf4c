//! MB/s of images written and read: pages of text-like memory, random pages, and both, beside the same bytes written as they are and
//! fsynced. `REPLICATOR_BENCH_DIR` says on which disk.

use std::{
    env,
    fs::File,
    io::{Read, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use replicator_storage::{NodeDir, SnapshotInfo, SnapshotOptions, SnapshotStore};
use replicator_types::{ClusterId, Lineage, ModuleHash, Position};

const IMAGE_BYTES: usize = 512 << 20;
const PAGE_BYTES: usize = 4096;
const ROUNDS: u64 = 3;

fn main() {
    let place = env::var_os("REPLICATOR_BENCH_DIR").map_or_else(env::temp_dir, PathBuf::from);
    for random_percent in [0, 30, 50, 100] {
        let image = memory(random_percent);
        let scratch = tempfile::tempdir_in(&place).expect("the disk takes a folder");
        let dir = NodeDir::open(scratch.path(), "bench").expect("a new folder opens");
        let store = dir.snapshots("snapshots", SnapshotOptions::default()).expect("a new store opens");
        for round in 0..ROUNDS {
            let plain = write_plain(&scratch.path().join("plain"), &image);
            let cpu = cpu_time();
            let (written, ratio) = write(&store, round, &image);
            let cpu = cpu_time() - cpu;
            let position = Position::new(1, round);
            let begun = Instant::now();
            let mut read = Vec::with_capacity(IMAGE_BYTES);
            let mut reader = store.open_image(position).expect("it is there");
            reader.read_to_end(&mut read).expect("it is whole");
            let read_for = begun.elapsed();
            assert!(read == image, "what was written is read");
            store.remove(position).expect("it goes");
            println!(
                "{random_percent:>3} % random: plain {:>5.0} MB/s, snapshot {:>5.0} MB/s, {:>5.0} per CPU second ({ratio:.2} times smaller), read {:>5.0} MB/s",
                rate(plain),
                rate(written),
                rate(cpu),
                rate(read_for)
            );
        }
    }
}

/// As `dd bs=1M conv=fsync` does.
fn write_plain(path: &Path, image: &[u8]) -> Duration {
    let begun = Instant::now();
    let mut file = File::create(path).expect("a file can be made");
    for part in image.chunks(1 << 20) {
        file.write_all(part).expect("there is room");
    }
    file.sync_all().expect("the disk works");
    begun.elapsed()
}

fn write(store: &SnapshotStore, index: u64, image: &[u8]) -> (Duration, f64) {
    let info = SnapshotInfo {
        position: Position::new(1, index),
        lineage: Lineage(1),
        cluster: ClusterId([1; 16]),
        module: ModuleHash([1; 32]),
        engine: "bench".into(),
        digest: 1,
        extra: Vec::new(),
        created_us: 0,
    };
    let begun = Instant::now();
    let mut writer = store.begin(info, image.len() as u64).expect("there is room");
    for part in image.chunks(64 << 10) {
        writer.write_all(part).expect("there is room");
    }
    let manifest = writer.finish().expect("the disk works");
    (begun.elapsed(), manifest.image_bytes as f64 / manifest.data_bytes as f64)
}

/// What this process has used of the cores.
fn cpu_time() -> Duration {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(used.tv_sec.cast_unsigned(), u32::try_from(used.tv_nsec).expect("below a second"))
}

fn rate(took: Duration) -> f64 {
    IMAGE_BYTES as f64 / 1e6 / took.as_secs_f64()
}

/// Memory whose pages hold random bytes, so many in a hundred, and else words and numbers.
fn memory(random_percent: u64) -> Vec<u8> {
    const WORDS: [&[u8]; 8] = [b"hello ", b"session ", b"user ", b"message ", b"room ", b"the ", b"outcome ", b"bob "];
    let mut state = 88_172_645_463_325_252_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut image = Vec::with_capacity(IMAGE_BYTES + PAGE_BYTES);
    while image.len() < IMAGE_BYTES {
        let end = image.len() + PAGE_BYTES;
        let is_random = random() % 100 < random_percent;
        while image.len() < end {
            match (is_random, random()) {
                (true, number) => image.extend_from_slice(&number.to_le_bytes()),
                (false, number) if number % 8 == 0 => image.extend_from_slice(&(number as u32 % 100_000).to_le_bytes()),
                (false, number) => image.extend_from_slice(WORDS[(number >> 8) as usize % WORDS.len()]),
            }
        }
        image.truncate(end);
    }
    image.truncate(IMAGE_BYTES);
    image
}

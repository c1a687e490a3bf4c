//! The tracker over mappings of its own.

use std::{io::Read, os::unix::process::CommandExt, process::Command, ptr, slice};

use rustix::{
    fs::{MemfdFlags, ftruncate, memfd_create},
    mm::{MapFlags, MprotectFlags, ProtFlags, mmap, mprotect, munmap},
};

use super::*;

const PAGE: usize = 4 << 10;
const CAPACITY: usize = 1 << 30;

/// A shared mapping as the live memory has one.
struct Live(usize);

impl Live {
    fn new() -> Self {
        let file = memfd_create("written-tests", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, CAPACITY as u64).unwrap();
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: a new mapping.
        let base = unsafe { mmap(ptr::null_mut(), CAPACITY, ProtFlags::empty(), flags, &file, 0) };
        Self(base.unwrap().expose_provenance())
    }

    fn bytes(&mut self, size: usize) -> &mut [u8] {
        let base: *mut u8 = ptr::with_exposed_provenance_mut(self.0);
        // SAFETY: it is mapped, accessible from then on, and borrowed with `self`.
        unsafe {
            mprotect(base.cast(), size, MprotectFlags::READ | MprotectFlags::WRITE).unwrap();
            slice::from_raw_parts_mut(base, size)
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours.
        unsafe { munmap(ptr::with_exposed_provenance_mut(self.0), CAPACITY) }.unwrap();
    }
}

/// The first page and the one after the last, of each range.
fn pages(tracker: &mut WriteTracker, protect: bool) -> Vec<(usize, usize)> {
    let mut ranges = Vec::new();
    tracker.written(protect, &mut ranges).unwrap();
    ranges.iter().map(|range| (range.start / PAGE, range.end / PAGE)).collect()
}

fn pipe_into(buffer: &mut [u8]) {
    let mut zeros = std::fs::File::open("/dev/zero").unwrap();
    zeros.read_exact(buffer).unwrap();
}

/// Whether this user of this system can track writes at all.
fn tracks() -> bool {
    let live = Live::new();
    WriteTracker::new(live.0, CAPACITY).is_some()
}

#[test]
fn written_pages_are_found_until_they_are_protected_again() {
    let mut live = Live::new();
    let size = 4_096 * PAGE;
    live.bytes(size)[5 * PAGE..9 * PAGE].fill(1);
    let Some(mut tracker) = WriteTracker::new(live.0, CAPACITY) else { return }; // an older system
    assert!(pages(&mut tracker, true).is_empty(), "nothing is tracked yet");
    tracker.extend_to(size).unwrap();
    assert!(pages(&mut tracker, false).is_empty());

    let bytes = live.bytes(size);
    assert!(bytes.iter().map(|byte| usize::from(*byte)).sum::<usize>() > 0);
    assert!(pages(&mut tracker, false).is_empty(), "reading is no writing, not even where there was no page");

    let bytes = live.bytes(size);
    bytes[6 * PAGE + 9] = 2;
    bytes[4_095 * PAGE] = 2;
    bytes[0] = 0;
    pipe_into(&mut bytes[100 * PAGE + 5..][..PAGE]); // the kernel's own writes count
    let expected = [(0, 1), (6, 7), (100, 102), (4_095, 4_096)];
    assert_eq!(pages(&mut tracker, false), expected);
    assert_eq!(pages(&mut tracker, true), expected);
    assert!(pages(&mut tracker, true).is_empty());

    live.bytes(size)[6 * PAGE] = 3;
    tracker.protect_again(slice::from_ref(&(6 * PAGE..7 * PAGE))).unwrap();
    assert!(pages(&mut tracker, false).is_empty());
    live.bytes(size)[6 * PAGE] = 4;
    assert_eq!(pages(&mut tracker, false), [(6, 7)]);
}

#[test]
fn a_memory_that_grows_is_tracked_once_that_is_asked_for() {
    let mut live = Live::new();
    live.bytes(16 * PAGE).fill(1);
    let Some(mut tracker) = WriteTracker::new(live.0, CAPACITY) else { return }; // an older system
    tracker.extend_to(16 * PAGE).unwrap();
    live.bytes(32 * PAGE)[20 * PAGE] = 1;
    assert!(pages(&mut tracker, true).is_empty());
    tracker.extend_to(32 * PAGE).unwrap();
    assert_eq!(tracker.bytes(), 32 * PAGE);
    live.bytes(32 * PAGE)[15 * PAGE..17 * PAGE].fill(2);
    assert_eq!(pages(&mut tracker, true), [(15, 17)]);
}

#[test]
fn more_ranges_than_one_scan_finds_are_found() {
    let mut live = Live::new();
    let size = 5 * REGIONS * PAGE;
    live.bytes(size).fill(1);
    let Some(mut tracker) = WriteTracker::new(live.0, CAPACITY) else { return }; // an older system
    tracker.extend_to(size).unwrap();
    let scattered: Vec<_> = (0..5 * REGIONS).step_by(2).map(|page| (page, page + 1)).collect();
    scattered.iter().for_each(|(page, _)| live.bytes(size)[page * PAGE] = 2);
    assert_eq!(pages(&mut tracker, false), scattered);
    let ranges: Vec<_> = scattered.iter().map(|(start, end)| start * PAGE..end * PAGE).collect();
    tracker.protect_again(&ranges).unwrap();
    assert!(pages(&mut tracker, true).is_empty());
}

#[test]
fn without_tracking_there_is_no_tracker() {
    let live = Live::new();
    without_tracking(|| assert!(WriteTracker::new(live.0, CAPACITY).is_none()));
    assert_eq!(WriteTracker::new(live.0, CAPACITY).is_some(), tracks());
}

/// Set in the process that the next test starts.
const EXPECTED: &str = "REPLICATOR_TEST_TRACKS";

#[test]
fn a_user_without_rights_can_track_as_well_as_root() {
    if let Some(expected) = std::env::var_os(EXPECTED) {
        assert!(!rustix::process::geteuid().is_root());
        assert_eq!(expected.to_str(), Some(if tracks() { "yes" } else { "no" }));
        return;
    }
    if !rustix::process::geteuid().is_root() {
        return; // all tests here are that test then
    }
    const NOBODY: u32 = 65_534;
    let name = std::thread::current().name().map(str::to_owned).unwrap();
    let mut other = Command::new(std::env::current_exe().unwrap());
    other.args(["--exact", &name, "--nocapture"]).env(EXPECTED, if tracks() { "yes" } else { "no" });
    let output = match other.uid(NOBODY).gid(NOBODY).output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            eprintln!("not tried: nobody may not run this program: {error}");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&output.stderr));
}

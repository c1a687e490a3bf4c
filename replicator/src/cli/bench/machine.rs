//! What the measurement ran on, and the CPU time of processes: from /proc.

use std::{fs, path::Path};

use serde_json::{Value, json};

/// File systems that keep nothing on a disk, where fdatasync costs nothing.
const MEMORY_FILE_SYSTEMS: [&str; 3] = ["tmpfs", "ramfs", "overlay"];

/// The machine, and the disk under the nodes' folders.
#[derive(Debug, Clone)]
pub(super) struct Machine {
    cpu: String,
    cores: usize,
    kernel: String,
    /// None: the nodes are elsewhere.
    file_system: Option<String>,
}

impl Machine {
    /// Looks at this machine, and at the file system that holds `data`.
    pub(super) fn here(data: Option<&Path>) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, m)| m));
        Self {
            cpu: model.unwrap_or("unknown CPU").trim().to_owned(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            file_system: data.and_then(|data| file_system(&read("/proc/self/mountinfo"), data)),
        }
    }

    /// A warning, if fdatasync promises nothing in the nodes' folders.
    pub(super) fn memory_only(&self) -> Option<String> {
        let name = self.file_system.as_deref().filter(|name| MEMORY_FILE_SYSTEMS.contains(name))?;
        Some(format!(
            "the nodes' folders are on {name}, where fdatasync may reach no disk; give --data-dir a folder on a disk"
        ))
    }

    pub(super) fn json(&self) -> Value {
        json!({ "cpu": self.cpu, "cores": self.cores, "kernel": self.kernel, "file_system": self.file_system })
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, {} cores, Linux {}", self.cpu, self.cores, self.kernel)?;
        self.file_system.as_ref().map_or(Ok(()), |name| write!(f, ", data on {name}"))
    }
}

/// The type of the file system that is mounted nearest above `path`, which is absolute.
fn file_system(mountinfo: &str, path: &Path) -> Option<String> {
    let mounts = mountinfo.lines().filter_map(|line| {
        // ID PARENT MAJOR:MINOR ROOT MOUNT-POINT OPTIONS … - TYPE SOURCE …
        let (place, kind) = line.split_once(" - ")?;
        Some((place.split(' ').nth(4)?, kind.split(' ').next()?))
    });
    let above = mounts.filter(|(place, _)| path.starts_with(place));
    above.max_by_key(|(place, _)| place.len()).map(|(_, kind)| kind.to_owned())
}

/// CPU seconds that these processes have used, in user and kernel mode. None if one can't be told.
pub(super) fn cpu_seconds(pids: &[u32]) -> Option<f64> {
    let ticks = pids.iter().map(|pid| cpu_ticks(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?));
    let ticks: u64 = ticks.sum::<Option<u64>>()?;
    Some(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// utime + stime, fields 14 and 15. The name before them, in parentheses, may hold anything.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let mut after_name = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut next = || after_name.next()?.parse::<u64>().ok();
    Some(next()? + next()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_read_behind_a_hostile_name() {
        let stat = "42 (a ) b) S 1 2 3 4 5 6 7 8 9 10 700 35 0 0 20 0 9 0";
        assert_eq!(cpu_ticks(stat), Some(735));
        assert_eq!(cpu_ticks("42 (short) S 1"), None);
        assert!(cpu_seconds(&[std::process::id()]).is_some());
        assert_eq!(cpu_seconds(&[u32::MAX]), None);
    }

    #[test]
    fn the_nearest_mount_tells_the_file_system() {
        let mounts = "22 1 254:0 / / rw - ext4 /dev/vda rw\n30 22 0:26 / /tmp rw shared:5 - tmpfs tmpfs rw\n";
        assert_eq!(file_system(mounts, Path::new("/tmp/x")).as_deref(), Some("tmpfs"));
        assert_eq!(file_system(mounts, Path::new("/tmpfolder")).as_deref(), Some("ext4"));
    }
}

//! What the machine itself does, to compare with: bytes written to a file with an fsync, and a file copied over a TCP connection of this
//! machine.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};

/// What is read and written at once.
const STEP_BYTES: usize = 1 << 20;
const FILE: &str = "plain";

/// Writes so many bytes to a new file in `dir` and fsyncs it. Returns how long that took.
pub(super) fn write(dir: &Path, bytes: u64) -> anyhow::Result<Duration> {
    let mut step = vec![0; STEP_BYTES];
    getrandom::fill(&mut step).map_err(|error| anyhow!("no random bytes: {error}"))?;
    let path = dir.join(FILE);
    let began = Instant::now();
    let write = || {
        let mut file = File::create(&path)?;
        let mut left = bytes;
        while left > 0 {
            let now = usize::try_from(left).unwrap_or(STEP_BYTES).min(STEP_BYTES);
            file.write_all(&step[..now])?;
            left -= now as u64;
        }
        file.sync_all()?;
        Ok::<_, io::Error>(began.elapsed())
    };
    let took = write();
    let _ = fs::remove_file(&path);
    took.with_context(|| format!("can't write to {}", path.display()))
}

/// Copies a file over a TCP connection into a new file in `dir`, and fsyncs that. Returns how long that took, and the bytes.
pub(super) fn copy(from: &Path, dir: &Path) -> anyhow::Result<(Duration, u64)> {
    let path = dir.join(FILE);
    let copy = || {
        let mut source = File::open(from)?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let began = Instant::now();
        let bytes = thread::scope(|scope| {
            let sender = scope
                .spawn(move || -> io::Result<()> { pass(&mut source, &mut TcpStream::connect(address)?).map(drop) });
            let (mut incoming, _) = listener.accept()?;
            let mut file = File::create(&path)?;
            let bytes = pass(&mut incoming, &mut file)?;
            file.sync_all()?;
            sender.join().map_err(|_| io::Error::other("the sender panicked"))??;
            Ok::<_, io::Error>(bytes)
        })?;
        Ok::<_, io::Error>((began.elapsed(), bytes))
    };
    let copied = copy();
    let _ = fs::remove_file(&path);
    copied.with_context(|| format!("can't copy {}", from.display()))
}

fn pass(from: &mut impl io::Read, to: &mut impl io::Write) -> io::Result<u64> {
    let (mut step, mut bytes) = (vec![0; STEP_BYTES], 0);
    loop {
        match from.read(&mut step)? {
            0 => return Ok(bytes),
            read => {
                to.write_all(&step[..read])?;
                bytes += read as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_bytes_are_copied_and_nothing_is_left_behind() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let file = from.path().join("file");
        fs::write(&file, vec![7; 3 * STEP_BYTES + 5]).unwrap();
        let (_, bytes) = copy(&file, to.path()).unwrap();
        assert_eq!(bytes, 3 * STEP_BYTES as u64 + 5);
        write(to.path(), bytes).unwrap();
        assert_eq!(fs::read_dir(to.path()).unwrap().count(), 0);
        let error = copy(&from.path().join("missing"), to.path()).unwrap_err().to_string();
        assert!(error.contains("missing"), "{error}");
    }
}

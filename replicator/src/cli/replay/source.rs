//! What is replayed: a stopped node's folder, a saved snapshot, or a fixture.

use std::{
    fs::File,
    io::{Read as _, Seek as _},
    path::Path,
    thread,
};

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};
use replicator_machine::APPLY_STACK_BYTES_MIN;
use replicator_offline::{Fixture, FixtureError, Folder, History, OfflineError, Saved};
use replicator_storage::SavedSnapshot;
use replicator_types::LogIndex;

use crate::{
    cli::{
        Failure, log,
        output::{self, Format},
    },
    node::stopped::{self, StoppedError},
};

/// The largest fixture that is read: it is in memory as a whole.
const FIXTURE_BYTES_MAX: u64 = 4 << 30;

/// What is replayed.
pub(in crate::cli) enum Source {
    Folder(Box<Folder>),
    Saved(Box<Saved>),
    Fixture(Box<Fixture>),
}

impl Source {
    /// Opens what is at `path`, and changes nothing.
    pub(in crate::cli) fn open(path: &Path) -> Result<Self, Failure> {
        if path.is_dir() {
            return Self::folder(path);
        }
        let mut file = File::open(path).with_context(|| format!("can't read {}", path.display()))?;
        let mut start = [0; 8];
        let read = file.read(&mut start).with_context(|| format!("can't read {}", path.display()))?;
        if !Fixture::is_one(&start[..read]) {
            let saved = SavedSnapshot::open(path).and_then(Saved::new).map_err(log::unreadable)?;
            return Ok(Self::Saved(Box::new(saved)));
        }
        let bytes = file.metadata().map_or(u64::MAX, |meta| meta.len());
        if bytes > FIXTURE_BYTES_MAX {
            let why = format!("{} has {}, more than any fixture", path.display(), output::bytes(bytes));
            return Err(Failure::Usage(why));
        }
        let mut all = Vec::new();
        file.rewind()
            .and_then(|()| file.read_to_end(&mut all))
            .with_context(|| format!("can't read {}", path.display()))?;
        let fixture = Fixture::read(all.into()).map_err(|error| of_fixture(path, error))?;
        Ok(Self::Fixture(Box::new(fixture)))
    }

    /// Opens a stopped node's folder.
    pub(in crate::cli) fn folder(path: &Path) -> Result<Self, Failure> {
        let folder = stopped::open(path).map_err(|error| match error {
            StoppedError::Storage(error) => log::unreadable(error),
            error if error.is_damage() => Failure::Damage(error.into()),
            error => Failure::Failed(error.into()),
        })?;
        Ok(Self::Folder(Box::new(folder)))
    }

    pub(in crate::cli) fn history(&self) -> &dyn History {
        match self {
            Self::Folder(folder) => &**folder,
            Self::Saved(saved) => &**saved,
            Self::Fixture(fixture) => &**fixture,
        }
    }

    /// Says what was found amiss, and left out.
    pub(in crate::cli) fn tell_notes(&self, format: Format) {
        if let Self::Folder(folder) = self {
            folder.notes().iter().for_each(|note| output::note(format, note));
        }
    }
}

fn of_fixture(path: &Path, error: FixtureError) -> Failure {
    let damage = error.is_damage();
    let error = anyhow::Error::new(error).context(path.display().to_string());
    if damage { Failure::Damage(error) } else { Failure::Failed(error) }
}

/// A history that can't be run: damage, or asked for wrongly.
pub(in crate::cli) fn unusable(error: OfflineError) -> Failure {
    match error {
        error @ (OfflineError::Unreachable { .. } | OfflineError::Beyond { .. }) => Failure::Usage(error.to_string()),
        error if error.is_damage() => Failure::Damage(error.into()),
        error => Failure::Failed(error.into()),
    }
}

/// Runs `work` on a thread with the stack that a machine needs.
pub(in crate::cli) fn on_machine_thread<T: Send>(
    work: impl FnOnce() -> Result<T, Failure> + Send,
) -> Result<T, Failure> {
    thread::scope(|scope| {
        let builder = thread::Builder::new().name("machine".into()).stack_size(2 * APPLY_STACK_BYTES_MIN);
        let machine = builder.spawn_scoped(scope, work).context("can't start a thread for the machine")?;
        machine.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A bar over entries on standard error, if that is a terminal.
pub(in crate::cli) fn bar(what: &'static str, from: LogIndex, until: LogIndex) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} entries {per_sec}");
    let bar = ProgressBar::new((until.0 + 1).saturating_sub(from.0)).with_prefix(what);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

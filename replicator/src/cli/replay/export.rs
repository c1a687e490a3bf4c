//! `replicator replay --export`: the run in a file, while it is replayed.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{BufWriter, Read as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use bytes::Bytes;
use replicator_machine::{Command, Entry};
use replicator_offline::{Beginning, FixtureHead, FixtureWriter, OfflineError, Replay};
use replicator_types::{LogIndex, ModuleHash};

use super::source::{bar, unusable};
use crate::cli::Failure;

/// Applies the entries up to `until`, and writes them and what came of them into `file`: whole, or not at all.
pub(super) fn run(replay: &mut Replay<'_>, until: LogIndex, file: &Path, force: bool) -> Result<Duration, Failure> {
    if !force && file.symlink_metadata().is_ok() {
        let file = file.display();
        return Err(Failure::Usage(format!("{file} exists already; name another file, or replace it with --force")));
    }
    let unfinished = Unfinished(file.with_added_extension("new"));
    let out = File::create(&unfinished.0).with_context(|| format!("can't write {}", unfinished.0.display()))?;
    let mut writer = begin(replay, BufWriter::new(out))?;
    let from = match replay.beginning() {
        Beginning::Genesis => LogIndex(0),
        Beginning::Image(at) => at.index.next(),
    };
    let bar = bar("exporting", from, until);
    let began = Instant::now();
    let mut progress = |at: LogIndex| bar.set_position(at.0 - from.0);
    // Those that were refused too: why is to be found again.
    let mut activated = BTreeSet::new();
    let run = replay.run::<OfflineError>(until, &mut progress, |position, applied| {
        if let Some((Entry { command: Command::Activate { module, .. }, .. }, _)) = applied {
            activated.insert(*module);
        }
        Ok(writer.add(position, applied)?)
    });
    run.map_err(unusable)?;
    bar.finish_and_clear();
    let took = began.elapsed();
    let modules = modules(replay, from, activated)?;
    let written = writer.finish(replay.machine(), &modules).map_err(|error| unusable(error.into()))?;
    let written = written.into_inner().map_err(std::io::IntoInnerError::into_error);
    written.and_then(|out| out.sync_all()).with_context(|| format!("can't write {}", file.display()))?;
    fs::rename(&unfinished.0, file).with_context(|| format!("can't write {}", file.display()))?;
    Ok(took)
}

fn begin(replay: &mut Replay<'_>, out: BufWriter<File>) -> Result<FixtureWriter<BufWriter<File>>, Failure> {
    let (image, bytes) = match replay.beginning() {
        Beginning::Genesis => (None, None),
        Beginning::Image(at) => {
            let mut bytes = Vec::new();
            let mut image = replay.history().image(at).map_err(unusable)?;
            image.read_to_end(&mut bytes).with_context(|| format!("can't read the image at {at}"))?;
            (Some(at), Some(bytes))
        }
    };
    let head = FixtureHead { program: env!("CARGO_PKG_VERSION").to_owned(), image };
    FixtureWriter::begin(out, &head, bytes.as_deref()).map_err(|error| unusable(error.into()))
}

/// The bytes of the modules that are needed from the entry at `from` on: the one that runs there, and those that were to be activated since.
fn modules(replay: &mut Replay<'_>, from: LogIndex, activated: BTreeSet<ModuleHash>) -> Result<Vec<Bytes>, Failure> {
    let (source, history) = (replay.modules(), replay.history());
    let begun_with = replay.machine().modules().iter().rfind(|span| span.from.index < from.max(LogIndex(1)));
    let needed: BTreeSet<_> = begun_with.map(|span| span.module).into_iter().chain(activated).collect();
    // One that no node ever had was never activated either, and the run would have stopped there.
    let bytes = needed.into_iter().map(|hash| source.module(&hash).ok_or_else(|| history.no_module(hash)));
    bytes.collect::<Result<_, _>>().map_err(unusable)
}

/// A file that is being written, and is removed if it isn't finished.
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0); // After a success it has another name.
    }
}

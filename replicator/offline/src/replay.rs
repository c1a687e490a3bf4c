//! A machine that is brought to an index: from genesis or an image, by the log.

use std::sync::Arc;

use replicator_machine::{Applied, Entry, Halt, ImageError, Machine, ModuleSource};
use replicator_types::{LogIndex, Position, codec};

use crate::{History, OfflineError, Tally};

/// Entries that are read at once, about.
const READ_BYTES_MAX: usize = 4 << 20;

/// Called after each batch, with the index of the next entry.
pub type Progress<'a> = &'a mut dyn FnMut(LogIndex);

/// What a machine began with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beginning {
    /// Nothing: the log has everything.
    Genesis,
    /// The image of this position.
    Image(Position),
}

/// A machine, and the history that it goes through.
pub struct Replay<'h> {
    history: &'h dyn History,
    modules: Arc<dyn ModuleSource>,
    machine: Machine,
    beginning: Beginning,
    /// The next entry.
    next: LogIndex,
    tally: Tally,
    notes: Vec<String>,
}

impl<'h> Replay<'h> {
    /// A machine from the newest whole image at or below `until`, or from the log's beginning, with modules of `modules`. An image that is damaged
    /// is passed over, with a note.
    ///
    /// # Errors
    /// [`OfflineError::Unreachable`] if there is no such image and the log begins later; [`OfflineError::Beyond`] if the history ends before;
    /// [`OfflineError::Empty`] if it has nothing; [`OfflineError::NoModule`], [`OfflineError::Image`] or [`OfflineError::Storage`] if an image
    /// that is whole can't be used.
    pub fn begin(
        history: &'h dyn History,
        until: LogIndex,
        modules: Arc<dyn ModuleSource>,
    ) -> Result<Self, OfflineError> {
        let last = history.last().ok_or(OfflineError::Empty)?.index;
        if until > last {
            return Err(OfflineError::Beyond { wanted: until, last });
        }
        let mut notes = Vec::new();
        let images = history.images();
        for position in images.iter().rev().copied().filter(|image| image.index <= until) {
            match Self::from_image(history, position, Arc::clone(&modules)) {
                Ok(machine) => {
                    let (beginning, next) = (Beginning::Image(position), position.index.next());
                    return Ok(Self { history, modules, machine, beginning, next, tally: Tally::default(), notes });
                }
                Err(error) if error.is_damage() => notes.push(format!("{error}; going on without it")),
                Err(error) => return Err(error),
            }
        }
        if let Some(purged) = history.purged() {
            let first_image = images.first().map(|image| image.index);
            return Err(OfflineError::Unreachable { wanted: until, purged: purged.index, first_image });
        }
        let (machine, beginning) = (Machine::new(Arc::clone(&modules)), Beginning::Genesis);
        let (next, tally) = (LogIndex(0), Tally::default());
        Ok(Self { history, modules, machine, beginning, next, tally, notes })
    }

    fn from_image(
        history: &dyn History,
        position: Position,
        modules: Arc<dyn ModuleSource>,
    ) -> Result<Machine, OfflineError> {
        let mut image = history.image(position)?;
        let machine = Machine::from_image(&mut *image, modules).map_err(|source| match source {
            ImageError::Refused(Halt::ModuleMissing(hash)) => history.no_module(hash),
            source => OfflineError::Image { position, source },
        })?;
        // The file's seal is known to be right only at its end.
        match std::io::copy(&mut image, &mut std::io::sink()) {
            Ok(0) => Ok(machine),
            Ok(more) => {
                let what = format!("{more} bytes follow its end");
                Err(OfflineError::Image { position, source: ImageError::Malformed { offset: 0, what } })
            }
            Err(source) => Err(OfflineError::Image { position, source: ImageError::Read { offset: 0, source } }),
        }
    }

    /// What the machine began with.
    #[must_use]
    pub const fn beginning(&self) -> Beginning {
        self.beginning
    }

    /// The next entry to be applied.
    #[must_use]
    pub const fn next(&self) -> LogIndex {
        self.next
    }

    /// The machine, as far as it has come.
    pub const fn machine(&mut self) -> &mut Machine {
        &mut self.machine
    }

    /// What was applied since the beginning.
    #[must_use]
    pub const fn tally(&self) -> &Tally {
        &self.tally
    }

    /// What was found amiss, and passed over.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The history.
    #[must_use]
    pub const fn history(&self) -> &'h dyn History {
        self.history
    }

    /// Where the modules come from.
    #[must_use]
    pub fn modules(&self) -> Arc<dyn ModuleSource> {
        Arc::clone(&self.modules)
    }

    /// The machine alone.
    #[must_use]
    pub fn into_machine(self) -> Machine {
        self.machine
    }

    /// Applies all entries up to `until`, and calls `each` after each.
    ///
    /// # Errors
    /// If an entry is missing, can't be read or can't be applied, or what `each` says.
    pub fn run<E: From<OfflineError>>(
        &mut self,
        until: LogIndex,
        progress: Progress<'_>,
        mut each: impl FnMut(Position, Option<(&Entry, &Applied)>) -> Result<(), E>,
    ) -> Result<(), E> {
        let Self { history, machine, next, tally, .. } = self;
        for_each_entry(*history, *next, until, progress, |position, entry| {
            let Some(entry) = entry else {
                machine.skip(position);
                tally.add_own();
                *next = position.index.next();
                return each(position, None);
            };
            let applied = machine.apply(position, &entry).map_err(|source| match source {
                Halt::ModuleMissing(hash) => history.no_module(hash),
                source => OfflineError::Halt { position, source },
            })?;
            tally.add(&entry, &applied);
            *next = position.index.next();
            each(position, Some((&entry, &applied)))
        })
    }

    /// Applies all entries up to `until`.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_to(&mut self, until: LogIndex, progress: Progress<'_>) -> Result<(), OfflineError> {
        self.run(until, progress, |_, _| Ok(()))
    }
}

/// Reads the entries from `from` through `until`, and calls `each` with every one; none is the strategy's own.
///
/// # Errors
/// If one is missing or can't be read, or what `each` says.
pub fn for_each_entry<E: From<OfflineError>>(
    history: &dyn History,
    from: LogIndex,
    until: LogIndex,
    progress: Progress<'_>,
    mut each: impl FnMut(Position, Option<Entry>) -> Result<(), E>,
) -> Result<(), E> {
    let mut next = from;
    while next <= until {
        let batch = history.entries(next, until.next(), READ_BYTES_MAX)?;
        if batch.is_empty() {
            return Err(OfflineError::Missing(next).into());
        }
        for logged in batch {
            let position = logged.position;
            if position.index != next {
                return Err(OfflineError::Missing(next).into());
            }
            next = next.next();
            let decoded = logged.entry.map(|entry| codec::decode::<Entry>(&entry)).transpose();
            each(position, decoded.map_err(|source| OfflineError::Entry { position, source })?)?;
        }
        progress(next);
    }
    Ok(())
}

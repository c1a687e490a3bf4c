//! Whether a module may take the active one's place, and why not.

use replicator_types::ModuleHash;
use serde::{Deserialize, Serialize};

use crate::{
    load::{LoadError, ModuleInfo},
    outcome::Trap,
};

/// Why the active module goes on as if nothing had been. A function of both modules' bytes, the state and the logged limits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ActivationRefusal {
    /// Another module is active than the order expects: somebody else was quicker, or what was looked at is old.
    #[error(
        "module {active} is active, and not {expected} as the order expects; see what runs now, and activate again"
    )]
    Unexpected {
        /// The one that is active.
        active: ModuleHash,
        /// The one that was expected.
        expected: ModuleHash,
    },
    /// There is nothing to do.
    #[error("module {module} is active already")]
    AlreadyActive {
        /// The module.
        module: ModuleHash,
    },
    /// The bytes are no module that can run here.
    #[error("the module is refused: {reason}")]
    Load {
        /// What [`LoadError`] says. The running digest leaves it out: parts of it are words of libraries.
        reason: String,
    },
    /// It is another application.
    #[error("it is a module of the app {given:?}, the cluster runs {active:?}; activate a module of {active:?}")]
    OtherApp {
        /// The active module's application.
        active: String,
        /// The new one's.
        given: String,
    },
    /// It doesn't read what the active module writes.
    #[error(
        "it reads snapshots of the schemas {accepts_from}, and the active module writes schema {schema}; let it accept and restore \
         {schema}, or activate a module between the two first"
    )]
    Schema {
        /// The schema that the active module writes.
        schema: String,
        /// Those that the new module reads, with commas between them.
        accepts_from: String,
    },
    /// The active module's snapshot came to no end.
    #[error(
        "the active module trapped in rsm_snapshot, after {bytes} bytes: {trap}; its state can't be taken over: mend what makes it trap \
         by requests first"
    )]
    SnapshotTrapped {
        /// Bytes of the chunks before.
        bytes: u64,
        /// The trap.
        trap: Trap,
    },
    /// The active module's snapshot burned all its fuel.
    #[error(
        "the active module's snapshot burned the {fuel} units of fuel that snapshot_fuel allows, and 64 for each of its {bytes} bytes; make the state \
         smaller by requests first"
    )]
    SnapshotOutOfFuel {
        /// Bytes of the chunks before.
        bytes: u64,
        /// The limit.
        fuel: u64,
    },
    /// The active module's snapshot is longer than its memory could be.
    #[error(
        "the active module's snapshot has more than {max} bytes, as much as memory_pages allows; does it ever end?"
    )]
    SnapshotTooLong {
        /// The limit.
        max: u64,
    },
    /// The new module trapped or refused before it got any state.
    #[error("the new module failed in {call}, before it got any state: {reason}; fix it, and upload it again")]
    Begin {
        /// The export.
        call: String,
        /// The trap, or what the module says.
        reason: String,
    },
    /// The new module trapped while it took the state.
    #[error("the new module trapped in rsm_restore, after {bytes} bytes: {trap}; fix it, and upload it again")]
    RestoreTrapped {
        /// Bytes of the chunks before the one with which it trapped.
        bytes: u64,
        /// The trap.
        trap: Trap,
    },
    /// The new module said no to the state.
    #[error("the new module refused the state in rsm_restore, after {bytes} bytes, with code {code}: {reason}")]
    RestoreRefused {
        /// Bytes of the chunks before the one that it refused.
        bytes: u64,
        /// What `rsm_restore` answered.
        code: u32,
        /// What its panic buffer says.
        reason: String,
    },
    /// The new module burned all the fuel that a restore has.
    #[error(
        "the new module burned the {fuel} units of fuel that restore_fuel allows, and 64 for each byte that it had, after {bytes} bytes of the state; make its restore \
         cheaper, or the state smaller"
    )]
    RestoreOutOfFuel {
        /// Bytes of the chunks before.
        bytes: u64,
        /// The limit.
        fuel: u64,
    },
    /// The new module needs more memory for the state than a module may have.
    #[error(
        "the new module trapped after {bytes} bytes of the state, as it needs more than the {pages} pages of memory that memory_pages \
         allows; make it need less, or the state smaller"
    )]
    OutOfMemory {
        /// Bytes of the chunks before.
        bytes: u64,
        /// The limit.
        pages: u32,
    },
    /// The order has come before, and was decided then.
    #[error("this is a copy of an order that was decided before; nothing was done")]
    Repeated,
}

impl From<LoadError> for ActivationRefusal {
    fn from(error: LoadError) -> Self {
        Self::Load { reason: error.to_string() }
    }
}

impl ModuleInfo {
    /// Whether this module can take the place of `active`, as far as their descriptions say: it is of the same app, and reads the schema
    /// that the other one writes.
    ///
    /// # Errors
    /// [`ActivationRefusal::OtherApp`] or [`ActivationRefusal::Schema`].
    pub fn can_replace(&self, active: &Self) -> Result<(), ActivationRefusal> {
        let word = |info: &Self, key| info.word(key).unwrap_or_default().to_owned();
        let (given, app) = (word(self, "app"), word(active, "app"));
        if given != app {
            return Err(ActivationRefusal::OtherApp { active: app, given });
        }
        let (schema, accepts_from) = (word(active, "schema"), word(self, "accepts_from"));
        if !accepts_from.split(',').any(|accepted| accepted == schema) {
            return Err(ActivationRefusal::Schema { schema, accepts_from });
        }
        Ok(())
    }

    /// The schema of the snapshots that this module writes.
    pub(crate) fn schema(&self) -> u32 {
        let schema = self.word("schema").and_then(|number| number.parse().ok());
        schema.expect("the description was checked")
    }
}

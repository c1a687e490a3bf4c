//! A module tried out beside the log: what the machine would be if it were active, and the application's logical state, for those who compare.

use replicator_types::ModuleHash;

use super::{Machine, load};
use crate::{activation::ActivationRefusal, halt::Halt};

impl Machine {
    /// The application's logical state, as the active module writes it (`rsm_snapshot`). The module runs in a fork: nothing changes.
    ///
    /// The inner error is the module's: it came to no end.
    ///
    /// # Errors
    /// If this node can't go on.
    ///
    /// # Panics
    /// Before the genesis entry.
    pub fn logical_state(&mut self) -> Result<Result<Vec<u8>, ActivationRefusal>, Halt> {
        let state = self.state.as_mut().expect("a history that has begun has a state");
        state.application.logical_state()
    }

    /// Puts `module` into the active one's place as an activation would, but without an entry of the log: at the applied position, whatever
    /// the log says. Sessions, pushes, time and digest go on. Returns the bytes of the logical state that it took over.
    ///
    /// For comparisons only: from here on the machine isn't the cluster's any more. The active module itself may be given, which makes it
    /// take over its own state. The inner error is why it would be refused; then nothing has changed.
    ///
    /// # Errors
    /// If this node can't go on.
    ///
    /// # Panics
    /// Before the genesis entry.
    pub fn try_module(&mut self, module: ModuleHash) -> Result<Result<u64, ActivationRefusal>, Halt> {
        let at = self.applied.unwrap_or_default();
        let state = self.state.as_mut().expect("a history that has begun has a state");
        let prepared = match load(module, self.modules.as_ref()) {
            Ok(prepared) => prepared,
            Err(Halt::ModuleRefused(error)) => return Ok(Err(error.into())),
            Err(halt) => return Err(halt),
        };
        let fits = prepared.info.fits(&state.genesis.limits).map_err(ActivationRefusal::from);
        if let Err(refusal) = fits.and_then(|()| prepared.info.can_replace(state.application.info())) {
            return Ok(Err(refusal));
        }
        let taken = state.application.activate(prepared, &state.genesis.app_config)?;
        if taken.is_ok() && state.history.active() != module {
            state.history.activated(at, module);
        }
        Ok(taken)
    }
}

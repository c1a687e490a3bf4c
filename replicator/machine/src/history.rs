//! Which module ran from where, and which engine is in force.

use replicator_types::{ModuleHash, Position, Seed};
use serde::{Deserialize, Serialize};

use crate::{activation::ActivationRefusal, entry::Genesis};

/// Spans that are kept: more swaps than the log behind the images of any node holds. Then the oldest but the first is forgotten.
const SPANS_MAX: usize = 1_024;
/// Bytes of an engine's fingerprint, at most: a history must fit the head of an image.
pub(crate) const ENGINE_BYTES_MAX: usize = 1 << 10;

/// Orders of activation that are remembered, so that a copy of one, which was proposed again while nobody knew what had become of it, does nothing: many
/// more than an operator gives in the time in which a copy may still come.
const ORDERS_MAX: usize = 64;

/// From where on a module ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleSpan {
    /// The entry that activated it: those after it are its own. The first module is there from the beginning, [`Position::default`].
    pub from: Position,
    /// The module.
    pub module: ModuleHash,
}

/// What swaps and upgrades have made of what the genesis entry says.
///
/// Invariant: there is a first span, from the beginning; spans ascend, and no two neighbours have the same module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct History {
    modules: Vec<ModuleSpan>,
    engine: String,
    /// The seeds of the last orders of activation, whatever came of them.
    orders: Vec<Seed>,
}

impl History {
    pub(crate) fn begin(genesis: &Genesis) -> Self {
        let first = ModuleSpan { from: Position::default(), module: genesis.module };
        Self { modules: vec![first], engine: genesis.engine.clone(), orders: Vec::new() }
    }

    /// Checks what an image says: is it a history that began with `genesis` and got to `position`?
    pub(crate) fn check(&self, genesis: &Genesis, position: Position) -> Result<(), &'static str> {
        let first = ModuleSpan { from: Position::default(), module: genesis.module };
        if self.modules.first() != Some(&first) || self.modules.len() > SPANS_MAX {
            return Err("modules that don't begin with that of the genesis, or too many");
        }
        let forgotten = self.modules.len() == SPANS_MAX;
        let follows = |pair: &[ModuleSpan]| {
            pair[0].from.index < pair[1].from.index
                && pair[0].from.epoch <= pair[1].from.epoch
                && (pair[0].module != pair[1].module || (forgotten && pair[0] == first))
        };
        let last = self.modules.last().map_or(first.from, |span| span.from);
        if !self.modules.windows(2).all(follows) || last.index > position.index || last.epoch > position.epoch {
            return Err("modules that can't have followed one another");
        }
        if self.orders.len() > ORDERS_MAX {
            return Err("too many orders of activation");
        }
        if self.engine.len() > ENGINE_BYTES_MAX.max(genesis.engine.len()) {
            return Err("an engine with a long name");
        }
        Ok(())
    }

    pub(crate) fn modules(&self) -> &[ModuleSpan] {
        &self.modules
    }

    /// The module that runs.
    pub(crate) fn active(&self) -> ModuleHash {
        self.modules.last().expect("there is a first one").module
    }

    /// The module that ran before that one.
    pub(crate) fn previous(&self) -> Option<ModuleHash> {
        self.modules.iter().nth_back(1).map(|span| span.module)
    }

    /// Whether `module` may be activated by the entry of this seed, which expects `expected`, as far as that says.
    pub(crate) fn may_activate(
        &self,
        order: Seed,
        module: ModuleHash,
        expected: ModuleHash,
    ) -> Result<(), ActivationRefusal> {
        if self.orders.contains(&order) {
            return Err(ActivationRefusal::Repeated);
        }
        match self.active() {
            active if active == module => Err(ActivationRefusal::AlreadyActive { module }),
            active if active != expected => Err(ActivationRefusal::Unexpected { active, expected }),
            _ => Ok(()),
        }
    }

    /// The entry of this seed has been decided.
    pub(crate) fn decided(&mut self, order: Seed) {
        if !self.orders.contains(&order) {
            if self.orders.len() == ORDERS_MAX {
                self.orders.remove(0);
            }
            self.orders.push(order);
        }
    }

    /// `module` runs from `from` on.
    pub(crate) fn activated(&mut self, from: Position, module: ModuleHash) {
        if self.modules.len() == SPANS_MAX {
            self.modules.remove(1);
        }
        self.modules.push(ModuleSpan { from, module });
    }

    /// The engine in force.
    pub(crate) fn engine(&self) -> &str {
        &self.engine
    }

    /// An upgrade; returns whether it was one. One that comes twice, as an entry that was proposed again may, is none.
    pub(crate) fn upgrade(&mut self, from: &str, to: &str) -> bool {
        let good = self.engine == from && from != to && !to.is_empty() && to.len() <= ENGINE_BYTES_MAX;
        if good {
            to.clone_into(&mut self.engine);
        }
        good
    }

    /// All of it in numbers, for a hash; equal for equal histories.
    pub(crate) fn hash(&self) -> u64 {
        xxhash_rust::xxh3::xxh3_64(&replicator_types::codec::encode(self))
    }
}

impl replicator_types::codec::Format for History {
    const WHAT: &'static str = "history of modules";
}

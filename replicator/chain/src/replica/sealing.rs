//! Leaving an epoch: the promise, and logs made equal for an attempt (safety rules 6 to 8).

use replicator_types::{DiskId, Position};

use super::{Effect, LogView, Replica, State, fetching::Fetching};
use crate::{Configuration, Message, Promise};

/// Who has promised its epoch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Sealed {
    /// The coordinator that waits for `Sealed`.
    asker: Option<DiskId>,
    pub(super) equalise: Option<Equalise>,
}

/// Where the log shall end for the promised attempt. One attempt has one target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Equalise {
    by: DiskId,
    pub(super) target: Option<Position>,
    pub(super) source: DiskId,
    answered: bool,
}

impl Replica {
    /// `Seal`, from a coordinator that was granted `attempt` to leave `configuration`.
    pub(super) fn seal(
        &mut self,
        from: DiskId,
        configuration: Configuration,
        attempt: u64,
        log: &dyn LogView,
        effects: &mut Vec<Effect>,
    ) {
        if configuration.epoch < self.epoch().max(self.logged_epoch()) {
            return self.tell_configuration(from, effects);
        }
        let promise = Promise { epoch: configuration.epoch, attempt };
        if promise < self.promise || !Configuration::is_chain(&configuration.chain) {
            return;
        }
        let new = promise > self.promise;
        self.promise = promise; // First: a configuration that it brings is entered sealed.
        self.take(configuration, log, effects);
        if self.damaged {
            return;
        }
        if new {
            effects.push(Effect::StorePromise(promise));
        }
        // Not new, and not sealed: promised in an earlier life.
        if new || !matches!(self.state, State::Sealed(_)) {
            self.become_sealed(effects);
        }
        if let State::Sealed(sealed) = &mut self.state {
            sealed.asker = Some(from);
        }
        self.answer_attempt(effects);
    }

    fn become_sealed(&mut self, effects: &mut Vec<Effect>) {
        if let State::Active(active) = std::mem::replace(&mut self.state, State::Sealed(Sealed::default())) {
            active.end_epoch(effects);
        }
        self.fetching = Fetching::default();
    }

    /// `Equalise`, from the coordinator of the attempt that this replica promised.
    pub(super) fn equalise(
        &mut self,
        from: DiskId,
        promise: Promise,
        target: Option<Position>,
        source: DiskId,
        log: &dyn LogView,
        effects: &mut Vec<Effect>,
    ) {
        let State::Sealed(sealed) = &mut self.state else { return };
        if promise != self.promise {
            return;
        }
        match &mut sealed.equalise {
            Some(equalise) if equalise.target != target => return,
            Some(equalise) => {
                equalise.by = from;
                equalise.source = source;
                equalise.answered = false;
            }
            none => {
                *none = Some(Equalise { by: from, target, source, answered: false });
                sealed.asker = None;
                self.fetching = Fetching::default(); // A learner's question would bring what the target may not have.
            }
        }
        self.fetch(false, log, effects);
        self.answer_attempt(effects);
    }

    /// Answers what the attempt's coordinator asked, once the promise and the log are durable.
    pub(super) fn answer_attempt(&mut self, effects: &mut Vec<Effect>) {
        let State::Sealed(sealed) = &mut self.state else { return };
        if self.promise_stored != self.promise || !self.ends.settled() {
            return;
        }
        let (promise, life, last) = (self.promise, self.life, self.ends.last);
        match &mut sealed.equalise {
            Some(equalise) => {
                if equalise.target == last && !equalise.answered {
                    equalise.answered = true;
                    effects.push(Effect::Send { to: equalise.by, message: Message::Equal { promise, life, last } });
                }
            }
            None => {
                if let Some(to) = sealed.asker.take() {
                    effects.push(Effect::Send { to, message: Message::Sealed { promise, life, last } });
                }
            }
        }
    }
}

//! A replica: one disk's part in the chain, as docs/chain.md specifies it.
//!
//! [`Replica::step`] takes what has happened and says what shall be done; nothing else changes it. Its caller carries out all effects of
//! a step, in their order, before the next one, so the log is always as this replica believes it to be. Messages are fire and forget:
//! whatever waits for an answer asks again at the next tick.
//!
//! What it keeps: entries of one epoch come from its primary alone and in order; nothing is acknowledged before it is durable here and at all
//! behind; a promise stops all that. Numbers in the asserts are those of the safety rules' invariants.

mod active;
mod configuring;
mod ends;
mod fetching;
mod interface;
mod reads;
mod sealing;
mod successor;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use bytes::Bytes;
use replicator_types::{DiskId, Epoch, Position};

pub use self::interface::{Effect, Event, LogView, PersistOrder, Refusal, Role, Standing};
use self::{
    active::{Acknowledgement, Active, Around},
    ends::Ends,
    fetching::{Answer, Fetching},
    sealing::Sealed,
    successor::Front,
};
use crate::{Configuration, Life, Message, Promise, Timing};

/// One disk's part in the chain. See docs/chain.md, "A replica".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replica {
    life: Life,
    order: PersistOrder,
    timing: Timing,
    promise: Promise,
    promise_stored: Promise,
    configuration: Option<Configuration>,
    /// Unknown until the group's record has told it: until then a primary takes no writes.
    least_chain: Option<u32>,
    ends: Ends,
    state: State,
    fetching: Fetching,
    /// Tells this life's questions from those of earlier ones, and from one another.
    question_number: u64,
    coordinator: Option<DiskId>,
    /// Who was told of a newer configuration, or asked for one, since the last tick: once is enough.
    informed: BTreeSet<DiskId>,
    damaged: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Idle,
    Active(Box<Active>),
    Sealed(Sealed),
    Learner,
}

impl Replica {
    /// A replica whose log ends at `last`, durably, and which promised `promise` in this life or an earlier one.
    #[must_use]
    pub fn new(life: Life, promise: Promise, order: PersistOrder, timing: Timing, last: Option<Position>) -> Self {
        Self {
            life,
            order,
            timing,
            promise,
            promise_stored: promise,
            configuration: None,
            least_chain: None,
            ends: Ends { last, durable: last, commit: None, truncating: false },
            state: State::Idle,
            fetching: Fetching::default(),
            question_number: life.incarnation.0 << 32,
            coordinator: None,
            informed: BTreeSet::new(),
            damaged: false,
        }
    }

    /// The same, whose machine goes on from an image of `position`, which the log holds: all up to there is committed.
    ///
    /// # Panics
    /// If the log ends before it.
    #[must_use]
    pub fn with_image(mut self, position: Option<Position>) -> Self {
        self.ends.commit_to(position);
        self
    }

    /// What `event` makes of the replica, and what it asks for, appended to `effects`. `log` is the log as all earlier effects left it.
    ///
    /// # Panics
    /// If an invariant doesn't hold, with the values: by a bug here, in the driver or in another member. The node must stop.
    pub fn step(&mut self, event: Event, log: &dyn LogView, effects: &mut Vec<Effect>) {
        if self.damaged {
            return;
        }
        match event {
            Event::Tick => self.tick(log, effects),
            Event::Configured { configuration, least_chain } => {
                self.least_chain = Some(least_chain);
                self.take(configuration, log, effects);
            }
            Event::Received { from, message } => self.received(from, message, log, effects),
            Event::Connected(disk) => {
                self.active(log, effects, |active, around| active.connected(disk, around));
            }
            Event::Proposed { entries, number } => self.proposed(entries, number, log, effects),
            Event::ReadAsked { number } => self.read_asked(number, log, effects),
            Event::LogDurable(position) => self.log_durable(position, log, effects),
            Event::PromiseStored(promise) => {
                self.promise_stored = self.promise_stored.max(promise);
                self.answer_attempt(effects);
            }
            Event::Coordinator(coordinator) => {
                self.coordinator = coordinator;
                self.beat(effects);
            }
            Event::ImageHere(position) => self.image_here(position, log, effects),
        }
        if matches!(self.state, State::Active(_)) {
            let epoch = self.epoch();
            assert!(self.promise.epoch < epoch, "active in epoch {epoch} after promising {:?} (3)", self.promise);
        }
    }

    /// How it stands.
    #[must_use]
    pub fn standing(&self) -> Standing {
        let active = match &self.state {
            State::Active(active) => Some(active),
            State::Idle | State::Sealed(_) | State::Learner => None,
        };
        Standing {
            role: self.role(),
            epoch: self.epoch(),
            chain: self.configuration.as_ref().map(|configuration| configuration.chain.clone()).unwrap_or_default(),
            promise: self.promise_stored,
            last: self.ends.last,
            durable: self.ends.durable,
            commit: self.ends.commit,
            held: active.map_or(0, |active| active.held()),
            link: active.and_then(|active| Some(active.successor()?.link())),
            fetching: self.fetching.standing(),
        }
    }

    fn role(&self) -> Role {
        match &self.state {
            State::Idle => Role::Idle,
            State::Sealed(_) => Role::Sealed,
            State::Learner => Role::Learner,
            State::Active(active) if active.is_primary() => Role::Primary,
            State::Active(active) if active.successor().is_none() => Role::Tail,
            State::Active(_) => Role::Middle,
        }
    }

    /// The newest epoch known; 0: none.
    fn epoch(&self) -> Epoch {
        self.configuration.as_ref().map_or(Epoch(0), |configuration| configuration.epoch)
    }

    /// Does `what`, if this is an active member.
    fn active<T>(
        &mut self,
        log: &dyn LogView,
        effects: &mut Vec<Effect>,
        what: impl FnOnce(&mut Active, &mut Around<'_>) -> T,
    ) -> Option<T> {
        let State::Active(active) = &mut self.state else { return None };
        Some(what(active, &mut Around { ends: &mut self.ends, log, effects }))
    }

    fn received(&mut self, from: DiskId, message: Message, log: &dyn LogView, effects: &mut Vec<Effect>) {
        if !self.is_of_this_epoch(from, &message, effects) {
            return;
        }
        match message {
            Message::Append { previous, entries, commit, barrier, .. } => {
                let front = Front { commit, barrier };
                self.active(log, effects, |active, around| active.append(from, previous, entries, front, around));
            }
            Message::Acknowledged { received, durable, barrier, gap, .. } => {
                let told = Acknowledgement { received, durable, barrier, gap };
                self.active(log, effects, |active, around| active.acknowledged(from, told, around));
            }
            Message::Seal { configuration, attempt } => self.seal(from, configuration, attempt, log, effects),
            Message::Equalise { promise, target, source } => self.equalise(from, promise, target, source, log, effects),
            Message::Fetch { attempt, last, number, .. } => self.serve(from, attempt, last, number, log, effects),
            Message::Fetched { number, previous, entries, commit, .. } => {
                self.fetched(from, number, Answer { previous, entries, commit }, log, effects);
            }
            Message::Purged { number, through, .. } => self.source_has_purged(from, number, through, effects),
            Message::Configured { configuration } => self.take(configuration, log, effects),
            Message::Sealed { .. } | Message::Equal { .. } | Message::Beat { .. } => {} // The coordinator's.
        }
    }

    fn proposed(&mut self, entries: Vec<Bytes>, number: u64, log: &dyn LogView, effects: &mut Vec<Effect>) {
        assert!(!entries.is_empty(), "proposal {number} has no entries");
        let length = self.configuration.as_ref().map_or(0, |configuration| configuration.chain.len());
        let long_enough = self.least_chain.is_some_and(|least| length >= least as usize);
        let at = effects.len();
        let taken = match &self.state {
            State::Active(active) if !active.is_primary() => Err(Refusal::NotPrimary),
            State::Active(_) if !long_enough => Err(Refusal::ChainTooShort),
            _ => self
                .active(log, effects, |active, around| active.propose(entries, around).ok_or(Refusal::Full))
                .unwrap_or(Err(Refusal::NotPrimary)),
        };
        let answer = match taken {
            Ok(last) => Effect::Accepted { number, last },
            Err(reason) => Effect::Refused { number, reason },
        };
        effects.insert(at, answer); // Before what becomes of it.
    }

    fn read_asked(&mut self, number: u64, log: &dyn LogView, effects: &mut Vec<Effect>) {
        let told = self.active(log, effects, |active, around| active.is_primary() && active.ask_read(number, around));
        if told != Some(true) {
            effects.push(Effect::ReadRefused { number });
        }
    }

    fn log_durable(&mut self, position: Option<Position>, log: &dyn LogView, effects: &mut Vec<Effect>) {
        self.ends.flushed(position);
        match &self.state {
            State::Idle => {}
            State::Active(_) => {
                self.active(log, effects, Active::advance);
            }
            State::Sealed(_) | State::Learner => {
                self.answer_attempt(effects);
                self.fetched_is_durable(log, effects);
            }
        }
    }

    fn tick(&mut self, log: &dyn LogView, effects: &mut Vec<Effect>) {
        self.informed.clear();
        self.active(log, effects, Active::tick);
        self.fetching.tick();
        self.fetch(true, log, effects);
        self.beat(effects);
    }

    /// Tells the coordinator how this replica stands.
    fn beat(&self, effects: &mut Vec<Effect>) {
        if let Some(to) = self.coordinator {
            effects.push(Effect::Send { to, message: self.beat_message() });
        }
    }

    fn beat_message(&self) -> Message {
        let link = match &self.state {
            State::Active(active) => active.successor().map(successor::Successor::link),
            State::Idle | State::Sealed(_) | State::Learner => None,
        };
        Message::Beat {
            life: self.life,
            epoch: self.epoch(),
            promise: self.promise_stored,
            last: self.ends.last,
            commit: self.ends.commit,
            link,
        }
    }
}

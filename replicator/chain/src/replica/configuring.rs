//! Epochs: which messages are of this one, and how a replica gets into the next.

use std::cmp::Ordering;

use replicator_types::{DiskId, Epoch};

use super::{
    Effect, LogView, Replica, State,
    active::{Active, Around},
    ends::holds,
    fetching::Fetching,
    sealing::Sealed,
};
use crate::{Configuration, Message};

/// Disks that are told of a newer configuration, or asked for one, in one tick; more than any cluster has.
const INFORMED_MAX: usize = 256;

impl Replica {
    /// Drops what is of another epoch (5): who is behind is told the newest configuration, and who is ahead is asked for it.
    pub(super) fn is_of_this_epoch(&mut self, from: DiskId, message: &Message, effects: &mut Vec<Effect>) -> bool {
        let epoch = match message {
            Message::Append { epoch, .. }
            | Message::Acknowledged { epoch, .. }
            | Message::Fetch { epoch, .. }
            | Message::Fetched { epoch, .. }
            | Message::Purged { epoch, .. }
            | Message::Beat { epoch, .. } => *epoch,
            Message::Equalise { promise, .. } => promise.epoch,
            // These bring their configuration, or are the coordinator's, which knows the record.
            Message::Seal { .. } | Message::Configured { .. } | Message::Sealed { .. } | Message::Equal { .. } => {
                return true;
            }
        };
        match epoch.cmp(&self.epoch()) {
            Ordering::Equal => return true,
            Ordering::Less => self.tell_configuration(from, effects),
            // A beat of an older epoch is answered with the configuration, by a replica as by a coordinator.
            Ordering::Greater if self.inform(from) => {
                effects.push(Effect::Send { to: from, message: self.beat_message() });
            }
            Ordering::Greater => {}
        }
        false
    }

    /// Tells `to` the newest configuration, at most once in a tick.
    pub(super) fn tell_configuration(&mut self, to: DiskId, effects: &mut Vec<Effect>) {
        if let Some(configuration) = self.configuration.clone()
            && self.inform(to)
        {
            effects.push(Effect::Send { to, message: Message::Configured { configuration } });
        }
    }

    /// The epoch of the log's last entry: a restart forgets the configuration, but not that this disk has acknowledged in a later one. A late
    /// `Seal` and `Equalise` of an epoch that the disk has promised, and left, would cut that off.
    pub(super) fn logged_epoch(&self) -> Epoch {
        self.ends.last.map_or(Epoch(0), |last| last.epoch)
    }

    fn inform(&mut self, disk: DiskId) -> bool {
        disk != self.life.disk && self.informed.len() < INFORMED_MAX && self.informed.insert(disk)
    }

    /// Takes a configuration that the group has committed, if it is newer than what is known.
    pub(super) fn take(&mut self, configuration: Configuration, log: &dyn LogView, effects: &mut Vec<Effect>) {
        let past = configuration.epoch <= self.epoch() || configuration.epoch < self.logged_epoch();
        if past || !Configuration::is_chain(&configuration.chain) {
            return;
        }
        if let Some(damage) = self.damage(&configuration, log) {
            self.damaged = true;
            effects.push(Effect::Damaged(damage));
            return;
        }
        let Configuration { epoch, start, .. } = configuration;
        let member = configuration.contains(self.life);
        if let State::Active(active) = std::mem::replace(&mut self.state, State::Idle) {
            active.end_epoch(effects);
        }
        self.fetching = Fetching::default();
        self.configuration = Some(configuration.clone());
        let mut around = Around { ends: &mut self.ends, log, effects };
        if start <= around.ends.durable && holds(log, start) {
            around.commit_to(start); // The compare-and-set has committed the start (7), and equal positions have equal beginnings (5).
        }
        if !member {
            self.state = State::Learner;
            effects.push(Effect::Left(configuration));
            self.fetch(false, log, effects);
            return;
        }
        around.effects.push(Effect::Entered(configuration.clone()));
        assert!(around.ends.settled(), "epoch {epoch} begins at {start:?}, which isn't durable here (8)");
        if self.promise.epoch >= epoch {
            self.state = State::Sealed(Sealed::default());
            return;
        }
        let active = Active::enter(&configuration, self.life, self.order, self.timing, &mut around);
        self.state = State::Active(Box::new(active));
    }

    /// What is wrong with this disk, if it can't have confirmed what `configuration` says of it.
    fn damage(&self, configuration: &Configuration, log: &dyn LogView) -> Option<String> {
        let named = configuration.life_of(self.life.disk)?;
        let Configuration { epoch, start, .. } = configuration;
        let (life, last) = (self.life, self.ends.last);
        let remedy = "move the data folder away, so that this node returns with a new disk and learns from the others";
        if named.incarnation > life.incarnation {
            return Some(format!("epoch {epoch} names {named}, and this is {life}: an old copy of the disk; {remedy}"));
        }
        let found = start.and_then(|start| log.position(start.index));
        let other = found.is_some() && found != *start;
        // In the life that was named, nothing can have followed the start; in a later one, only what the epoch appended.
        let moved = if named == life { last != *start } else { !configuration.explains(last) };
        let (start, last) = (show(*start), show(last));
        match (moved || other, *epoch == Epoch(1) && named == life) {
            (false, _) => None,
            (true, true) => Some(format!("epoch 1 begins with empty logs, and this one ends at {last}; {remedy}")),
            (true, false) => Some(format!(
                "epoch {epoch} begins at {start}, which this disk confirmed, and its log ends at {last}: it has lost entries; {remedy}"
            )),
        }
    }
}

fn show(position: Option<replicator_types::Position>) -> String {
    position.map_or_else(|| "the beginning".to_owned(), |position| position.to_string())
}

//! Getting entries from another log, and giving them: learners from the chain, participants of an attempt from who has its target.
//!
//! Where a source's log doesn't reach back far enough, a learner goes on from an image. Nobody else needs one: what is purged is committed, so
//! every member of the epoch holds it.

use replicator_types::{DiskId, Position};

use super::{
    Effect, LogView, Replica, State,
    active::Around,
    ends::{continues, holds, last_not_above, next_index},
};
use crate::{LogEntry, Message};

/// What is being fetched. One question is under way at a time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Fetching {
    question: Option<Question>,
    /// How long the source, or one before it, hasn't answered.
    silent_ticks: u32,
    /// How far the source goes, as far as is known.
    goal: Option<Position>,
    /// Up to here this log is committed, as a source told.
    known: Option<Position>,
    /// The log changes: once that is durable, it goes on. More may have been committed by then.
    flowing: bool,
    /// An image was asked for.
    imaging: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Question {
    source: DiskId,
    number: u64,
    attempt: Option<u64>,
    /// Where both logs may meet; this log holds it.
    guess: Option<Position>,
}

/// What a `Fetched` brings.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) previous: Option<Position>,
    pub(super) entries: Vec<LogEntry>,
    pub(super) commit: Option<Position>,
}

/// What a replica fetches for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// To end at the attempt's target.
    Target(Option<Position>),
    /// To have what is committed.
    Committed {
        /// It has told its end for an attempt, and must still have that.
        only_append: bool,
    },
}

impl Fetching {
    pub(super) fn standing(&self) -> Option<(DiskId, Option<Position>)> {
        self.question.as_ref().map(|question| (question.source, self.goal))
    }

    pub(super) fn tick(&mut self) {
        if self.question.is_some() {
            self.silent_ticks = self.silent_ticks.saturating_add(1);
        }
    }

    /// The source goes as far as `goal`; the next question is for it too.
    fn answered(&mut self, goal: Option<Position>, suspect_ticks: u32) {
        self.silent_ticks -= self.silent_ticks % suspect_ticks.max(1);
        self.goal = goal;
    }
}

impl Replica {
    /// What for, and from whom. A disk of the chain in a later life is eligible: sealed, it fetches for its attempt alone.
    fn purpose(&self) -> Option<(Purpose, DiskId)> {
        let configuration = self.configuration.as_ref()?;
        let eligible = configuration.life_of(self.life.disk).is_some();
        match &self.state {
            State::Learner => {}
            State::Sealed(sealed) => match &sealed.equalise {
                Some(equalise) => return Some((Purpose::Target(equalise.target), equalise.source)),
                None if eligible => return None,
                None => {}
            },
            State::Idle | State::Active(_) => return None,
        }
        let only_append = eligible || self.promise.epoch >= configuration.epoch;
        let sources: Vec<DiskId> = configuration.chain.iter().rev().map(|life| life.disk).collect();
        let others = sources.into_iter().filter(|disk| *disk != self.life.disk).collect::<Vec<_>>();
        let turn = self.fetching.silent_ticks / self.timing.suspect_ticks.max(1);
        let source = *others.get((turn as usize).checked_rem(others.len())?)?;
        Some((Purpose::Committed { only_append }, source))
    }

    /// Gets nearer to what this replica fetches, by a truncation or a question. Asks again what was asked, if `again`.
    pub(super) fn fetch(&mut self, again: bool, log: &dyn LogView, effects: &mut Vec<Effect>) {
        let Some((purpose, source)) = self.purpose() else { return };
        if let Purpose::Target(target) = purpose {
            if target == self.ends.last {
                return;
            }
            if target <= self.ends.last && holds(log, target) {
                return self.truncate(target, purpose, effects);
            }
        }
        if self.ends.truncating || self.fetching.imaging || source == self.life.disk {
            return;
        }
        match &self.fetching.question {
            Some(question) if question.source == source && !again => {}
            Some(question) if question.source == source => self.send_question(effects),
            _ => self.ask(source, self.ends.last, effects),
        }
    }

    fn ask(&mut self, source: DiskId, guess: Option<Position>, effects: &mut Vec<Effect>) {
        let attempt =
            matches!(&self.state, State::Sealed(sealed) if sealed.equalise.is_some()).then_some(self.promise.attempt);
        self.question_number += 1;
        self.fetching.question = Some(Question { source, number: self.question_number, attempt, guess });
        self.send_question(effects);
    }

    fn send_question(&self, effects: &mut Vec<Effect>) {
        if let Some(Question { source, number, attempt, guess }) = self.fetching.question {
            let message = Message::Fetch { epoch: self.epoch(), attempt, last: guess, number };
            effects.push(Effect::Send { to: source, message });
        }
    }

    /// Drops what the source doesn't have. Not yet, if something is still on its way to the disk: that is tried again when it is there.
    fn truncate(&mut self, position: Option<Position>, purpose: Purpose, effects: &mut Vec<Effect>) {
        self.fetching.flowing = true;
        if self.ends.settled() && purpose != (Purpose::Committed { only_append: true }) {
            self.fetching.question = None;
            self.ends.truncate(position);
            effects.push(Effect::TruncateLog(position));
        }
    }

    /// `Fetched`, the answer to the question under way; any other is late.
    pub(super) fn fetched(
        &mut self,
        from: DiskId,
        number: u64,
        answer: Answer,
        log: &dyn LogView,
        effects: &mut Vec<Effect>,
    ) {
        let Some((purpose, _)) = self.purpose() else { return };
        let Answer { previous, entries, commit } = answer;
        let asked = |question: &mut Question| question.source == from && question.number == number;
        if !continues(previous, &entries, self.epoch()) {
            return;
        }
        let Some(question) = self.fetching.question.take_if(asked) else { return };
        self.fetching.answered(commit, self.timing.suspect_ticks);
        if previous != question.guess {
            self.search(from, previous, question.guess, purpose, log, effects);
        } else if previous != self.ends.last {
            self.truncate(previous, purpose, effects); // Here both logs meet.
        } else {
            self.take_fetched(purpose, entries, commit, log, effects);
        }
    }

    /// The source doesn't have what was asked for, and names an earlier position of its log.
    fn search(
        &mut self,
        source: DiskId,
        named: Option<Position>,
        guess: Option<Position>,
        purpose: Purpose,
        log: &dyn LogView,
        effects: &mut Vec<Effect>,
    ) {
        let index = |position: Option<Position>| position.map(|position| position.index);
        if named > guess || index(named) > index(guess) {
            return; // Not an answer of one that obeys the protocol; asked again at the next tick.
        }
        if holds(log, named) {
            self.truncate(named, purpose, effects);
        } else {
            self.ask(source, last_not_above(log, named), effects);
        }
    }

    /// Entries that follow this log's end.
    fn take_fetched(
        &mut self,
        purpose: Purpose,
        mut entries: Vec<LogEntry>,
        commit: Option<Position>,
        log: &dyn LogView,
        effects: &mut Vec<Effect>,
    ) {
        if let Purpose::Target(target) = purpose {
            entries.retain(|entry| Some(entry.position.index) <= target.map(|target| target.index));
            let reached =
                entries.last().is_some_and(|end| Some(end.position.index) == target.map(|target| target.index));
            if reached && entries.last().map(|end| end.position) != target {
                return; // The source doesn't have the target: the coordinator will name another, or leave this one out.
            }
        }
        self.fetching.flowing = !entries.is_empty();
        if !entries.is_empty() {
            self.ends.append(&entries);
            effects.push(Effect::AppendLog(entries));
        }
        if let Purpose::Committed { .. } = purpose {
            self.fetching.known = commit.min(self.ends.last); // On the same log, as the source has this one's end.
        }
        self.commit_known(log, effects);
        let behind = match purpose {
            Purpose::Target(target) => self.ends.last != target,
            Purpose::Committed { .. } => self.ends.last < commit,
        };
        let unflushed = next_index(self.ends.last).0 - next_index(self.ends.durable).0;
        if self.fetching.flowing && behind && unflushed < self.timing.window_entries_max as u64 {
            self.fetch(false, log, effects);
        }
    }

    fn commit_known(&mut self, log: &dyn LogView, effects: &mut Vec<Effect>) {
        let position = self.fetching.known.min(self.ends.durable);
        Around { ends: &mut self.ends, log, effects }.commit_to(position);
    }

    /// The log has reported: what waited for that goes on, at the pace of the disk.
    pub(super) fn fetched_is_durable(&mut self, log: &dyn LogView, effects: &mut Vec<Effect>) {
        self.commit_known(log, effects);
        let attempt = matches!(&self.state, State::Sealed(sealed) if sealed.equalise.is_some());
        if std::mem::take(&mut self.fetching.flowing) || attempt {
            self.fetch(false, log, effects);
        }
    }

    /// `Purged`, the answer to the question under way.
    pub(super) fn source_has_purged(
        &mut self,
        from: DiskId,
        number: u64,
        through: Position,
        effects: &mut Vec<Effect>,
    ) {
        let asked = |question: &mut Question| question.source == from && question.number == number;
        if self.fetching.question.take_if(asked).is_none() {
            return;
        }
        self.fetching.answered(Some(through), self.timing.suspect_ticks);
        if self.may_enter(through) {
            self.fetching.imaging = true;
            effects.push(Effect::GetImage { from, at_least: through });
        }
    }

    /// Who may count has everything that is purged; and nothing that is committed here is given up.
    fn may_enter(&self, image: Position) -> bool {
        let learns = matches!(self.purpose(), Some((Purpose::Committed { only_append: false }, _)));
        learns && self.ends.settled() && self.ends.commit < Some(image) && image.epoch <= self.epoch()
    }

    pub(super) fn image_here(&mut self, position: Option<Position>, log: &dyn LogView, effects: &mut Vec<Effect>) {
        self.fetching.imaging = false;
        match position.filter(|position| self.may_enter(*position)) {
            Some(image) => {
                self.fetching.flowing = true;
                self.ends.enter(image, log.position(image.index) == Some(image));
                effects.push(Effect::EnterImage(image));
            }
            // The next source, if there is one, at the next tick.
            None => self.fetching.silent_ticks = self.fetching.silent_ticks.saturating_add(self.timing.suspect_ticks),
        }
    }

    /// `Fetch`: gives what follows `last`, if this log has that; else names where both may meet.
    pub(super) fn serve(
        &mut self,
        from: DiskId,
        attempt: Option<u64>,
        last: Option<Position>,
        number: u64,
        log: &dyn LogView,
        effects: &mut Vec<Effect>,
    ) {
        let epoch = self.epoch();
        let end = match (&self.state, attempt) {
            (State::Active(_), None) => self.ends.commit,
            (State::Sealed(_), Some(attempt)) if (epoch, attempt) == (self.promise.epoch, self.promise.attempt) => {
                self.ends.last
            }
            _ => return,
        };
        let previous = if holds(log, last) { last } else { last_not_above(log, last) };
        if let Some(through) = log.purged().filter(|through| previous < Some(*through)) {
            return effects.push(Effect::Send { to: from, message: Message::Purged { epoch, number, through } });
        }
        let (next, to) = (next_index(last), next_index(end));
        let entries =
            if previous == last && next < to { log.read(next, to, self.timing.message_bytes_max) } else { Vec::new() };
        let message = Message::Fetched { epoch, number, previous, entries, commit: self.ends.commit };
        effects.push(Effect::Send { to: from, message });
    }
}

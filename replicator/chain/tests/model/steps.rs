//! The transitions: who may do what in a state, and what comes of it.

use std::sync::atomic::AtomicU32;

use crate::{
    Bounds,
    rules::Rule,
    state::{Entry, Life, State},
};

/// One step of somebody. Disks are slots, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// The group grants the next attempt to leave the current epoch.
    Grant,
    /// `Seal` arrives.
    Seal { disk: usize, epoch: u8, attempt: u8 },
    /// The attempt's coordinator has waited long enough for answers.
    ChooseTarget { attempt: u8 },
    /// `Equalise`, and what is fetched for it, arrive: the log comes one step nearer to the target.
    Equalise { disk: usize, epoch: u8, attempt: u8 },
    /// The attempt's compare-and-set reaches the group.
    Configure { attempt: u8 },
    /// `Configured` arrives.
    Learn { disk: usize, epoch: u8 },
    /// A client asks the primary of an epoch to append.
    Propose { epoch: u8 },
    /// `Append` arrives, or the primary appends what it held.
    Append { disk: usize, entry: Entry },
    /// The log is fsynced, and acknowledged.
    Persist { disk: usize },
    /// The primary has all acknowledgements of one more entry, and tells the client.
    Commit { epoch: u8 },
    /// A learner fetches.
    Fetch { disk: usize, source: usize },
    /// A client asks the primary of an epoch to read.
    Ask { epoch: u8 },
    /// A second read shares the barrier that is under way.
    Share,
    /// The barrier arrives.
    Pass { disk: usize },
    /// The primary hears of all that it waits for, and answers the read.
    Answer,
    /// The process ends and starts again; what wasn't fsynced is there, or isn't.
    Restart { disk: usize, kept: bool },
    /// The folder is empty at the next start.
    Wipe { disk: usize },
    /// The folder is copied.
    Copy { disk: usize },
    /// The copy is put back in its place.
    PutBack,
}

/// Invariants that are seen only in a step; a bit of [`State::broken`] each.
pub(crate) const UNCONFIRMED: u16 = 1;
pub(crate) const SEALED_ACKNOWLEDGED: u16 = 3;
pub(crate) const PROMISE_DECREASED: u16 = 4;
pub(crate) const COMMITTED_TRUNCATED: u16 = 7;
pub(crate) const ENTERED_ELSEWHERE: u16 = 8;
pub(crate) const STALE_READ: u16 = 9;
pub(crate) const LOST_DISK_COUNTED: u16 = 11;

/// The model of docs/chain.md, or of all of it but one rule.
pub(crate) struct Protocol {
    pub(crate) bounds: Bounds,
    pub(crate) without: Option<Rule>,
    pub(crate) found: AtomicU32,
}

impl Protocol {
    pub(crate) fn holds(&self, rule: Rule) -> bool {
        self.without != Some(rule)
    }

    /// The founded chain, empty, each member knowing of it; the other disks are learners.
    pub(crate) fn founded(&self) -> State {
        let mut state = State { epoch: 1, ..State::default() };
        for slot in 0..self.bounds.disks {
            state.disks[slot].known = 1;
            state.epochs[0].chain[slot] = (slot < self.bounds.chain).then(Life::default);
        }
        state
    }

    pub(crate) fn steps(&self, s: &State, steps: &mut Vec<Step>) {
        let bounds = &self.bounds;
        if s.steps.0 == bounds.depth {
            return;
        }
        steps.push(Step::Grant);
        for attempt in 1..=s.at(s.epoch).granted {
            steps.push(Step::ChooseTarget { attempt });
            steps.push(Step::Configure { attempt });
        }
        for epoch in 1..=s.epoch {
            steps.push(Step::Propose { epoch });
            steps.push(Step::Commit { epoch });
            for disk in 0..bounds.disks {
                steps.push(Step::Learn { disk, epoch });
                for attempt in 1..=s.at(epoch).granted {
                    steps.push(Step::Seal { disk, epoch, attempt });
                    steps.push(Step::Equalise { disk, epoch, attempt });
                }
            }
        }
        for disk in 0..bounds.disks {
            steps.extend(s.entries_sent().map(|entry| Step::Append { disk, entry }));
            steps.push(Step::Persist { disk });
            steps.extend((0..bounds.disks).map(|source| Step::Fetch { disk, source }));
            if s.restarts < bounds.restarts {
                steps.push(Step::Restart { disk, kept: false });
                steps.push(Step::Restart { disk, kept: true });
            }
            if s.wipes < bounds.wipes {
                steps.push(Step::Wipe { disk });
            }
            if s.copies < bounds.copies && s.copy.is_none() {
                steps.push(Step::Copy { disk });
            }
        }
        if s.copy.is_some() {
            steps.push(Step::PutBack);
        }
        match s.read {
            None if bounds.reads => steps.extend((1..=s.epoch).map(|epoch| Step::Ask { epoch })),
            Some(read) if !read.answered => {
                steps.extend((0..bounds.disks).map(|disk| Step::Pass { disk }));
                steps.push(Step::Share);
                steps.push(Step::Answer);
            }
            _ => (),
        }
    }

    /// None: not possible here, or nothing changes.
    pub(crate) fn step(&self, before: &State, step: Step) -> Option<State> {
        let mut after = *before;
        after.steps.0 += 1;
        match step {
            Step::Grant => self.grant(&mut after),
            Step::Seal { disk, epoch, attempt } => self.seal(&mut after, disk, (epoch, attempt)),
            Step::ChooseTarget { attempt } => self.choose_target(&mut after, attempt),
            Step::Equalise { disk, epoch, attempt } => self.equalise(&mut after, disk, (epoch, attempt)),
            Step::Configure { attempt } => self.configure(&mut after, attempt),
            Step::Learn { disk, epoch } => self.learn(&mut after, disk, epoch),
            Step::Propose { epoch } => self.propose(&mut after, epoch),
            Step::Append { disk, entry } => self.append(&mut after, disk, entry),
            Step::Persist { disk } => self.persist(&mut after, disk),
            Step::Commit { epoch } => self.commit(&mut after, epoch),
            Step::Fetch { disk, source } => self.fetch(&mut after, disk, source),
            Step::Ask { epoch } => self.ask(&mut after, epoch),
            Step::Share => self.share(&mut after),
            Step::Pass { disk } => self.pass(&mut after, disk),
            Step::Answer => self.answer(&mut after),
            Step::Restart { disk, kept } => self.restart(&mut after, disk, kept),
            Step::Wipe { disk } => self.wipe(&mut after, disk),
            Step::Copy { disk } => self.copy(&mut after, disk),
            Step::PutBack => self.put_back(&mut after),
        }?;
        for slot in 0..self.bounds.disks {
            Self::watch(before, &mut after, slot, step);
        }
        (after != *before).then_some(after)
    }

    /// Invariants 3 and 4, whatever the step.
    fn watch(before: &State, after: &mut State, slot: usize, step: Step) {
        let (was, is) = (before.disks[slot], after.disks[slot]);
        let same = was.life.disk == is.life.disk && step != Step::PutBack;
        if same && is.promise < was.promise {
            after.broken |= 1 << PROMISE_DECREASED;
        }
        let acknowledged = (1..=after.epoch)
            .any(|e| e <= was.promise.0 && after.at(e).acknowledged[slot] > before.at(e).acknowledged[slot]);
        let passed = after.read.is_some_and(|read| {
            read.epoch <= was.promise.0 && read.passed[slot] && before.read.is_none_or(|before| !before.passed[slot])
        });
        if acknowledged || passed {
            after.broken |= 1 << SEALED_ACKNOWLEDGED;
        }
    }

    /// Named, in this life, by the newest configuration that it knows, without a promise for that epoch.
    pub(crate) fn active(&self, s: &State, slot: usize) -> bool {
        let disk = &s.disks[slot];
        disk.promise.0 < disk.known && self.named(s, slot)
    }

    pub(crate) fn named(&self, s: &State, slot: usize) -> bool {
        let disk = &s.disks[slot];
        disk.known > 0
            && s.at(disk.known).chain[slot].is_some_and(|named| {
                named.disk == disk.life.disk && (named.life == disk.life.life || !self.holds(Rule::NobodyResumes))
            })
    }

    /// The slot of the epoch's primary, if it is active there.
    pub(crate) fn primary(&self, s: &State, epoch: u8) -> Option<usize> {
        let slot = s.at(epoch).primary().expect("no chain is empty");
        (s.disks[slot].known == epoch && self.active(s, slot)).then_some(slot)
    }
}

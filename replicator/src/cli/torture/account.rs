//! The account of a run: what was sent, answered, read and pushed, and what of it can't have happened in a cluster that keeps its promises.
//!
//! It decides nothing while the run goes on; it notes, and at the end it is compared with what the cluster holds.

use std::collections::BTreeMap;

use super::numbers::Numbers;
use crate::cli::journal::Runs;

/// Defects of one kind that are told in words; the others are only counted.
const TOLD_MAX: u64 = 5;

/// Where and how a request was executed, as its answer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ack {
    pub(super) log_index: u64,
    /// The module's count of executions.
    pub(super) execution: u64,
    /// The replica's running digest after the entry.
    pub(super) digest: u64,
}

/// What is known of one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Number {
    /// Sent, and nothing is known yet, or will be.
    Sent,
    /// Refused, in words that promise that it had no effect.
    Refused,
    Acknowledged(Ack),
}

/// A pushed event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pushed {
    /// Its place: log index and ordinal.
    pub(super) cursor: (u64, u32),
    pub(super) number: u64,
}

#[derive(Debug, Default)]
struct Writer {
    /// By number: a writer sends 0, 1, 2, ….
    numbers: Vec<Number>,
    acknowledged: u64,
    /// What a read that begins now must see: acknowledged numbers, and those that earlier reads have seen.
    known: Numbers,
    /// What the subscriber has been given, in order.
    pushed: Vec<Pushed>,
    /// Where the subscriber stands in `pushed`: behind its end after it has gone back.
    heard: usize,
}

/// A read that has begun.
#[derive(Debug)]
pub(super) struct Read {
    writer: usize,
    must_see: Numbers,
}

/// What did not hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) acknowledged: u64,
    /// Acknowledged, and not there at the end.
    pub(super) lost: u64,
    /// Executed or pushed more than once, or acknowledged with two different executions.
    pub(super) doubled: u64,
    /// Sent, without an answer that tells what became of them. Not a defect: they may be there or not.
    pub(super) unknown: u64,
    /// Linearizable reads that did not see what they had to.
    pub(super) stale: u64,
    pub(super) reads: u64,
    pub(super) pushes: u64,
    /// Executed, and never pushed to the subscriber.
    pub(super) missing: u64,
    /// There, or pushed, though never sent, or refused as without effect.
    pub(super) phantom: u64,
    /// Answers or pushes whose places in the log contradict the order in which they must have happened, or each other.
    pub(super) disordered: u64,
    /// Sessions that were told to have expired: none of a run lives that long.
    pub(super) expired: u64,
    /// Copies of requests that a node refused because the primary's disk is full. Not a defect: they were sent again.
    pub(super) refused: u64,
}

impl Tally {
    pub(super) fn is_clean(&self) -> bool {
        let Self { lost, doubled, stale, missing, phantom, disordered, expired, .. } = self;
        [lost, doubled, stale, missing, phantom, disordered, expired].into_iter().all(|count| *count == 0)
    }
}

/// What can't happen in a cluster that keeps its promises. See [`Tally`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Lost,
    Doubled,
    Stale,
    Missing,
    Phantom,
    Disordered,
    Expired,
}

/// The account.
#[derive(Debug)]
pub(super) struct Account {
    writers: Vec<Writer>,
    /// How many reads of each reader were answered, by its name.
    readers: BTreeMap<String, u64>,
    tally: Tally,
    told: Vec<String>,
}

impl Account {
    pub(super) fn new(writers: usize) -> Self {
        let writers = (0..writers).map(|_| Writer::default()).collect();
        Self { writers, readers: BTreeMap::new(), tally: Tally::default(), told: Vec::new() }
    }

    /// Counts defects of a kind, and tells the first ones.
    fn defects(&mut self, kind: Kind, count: u64, what: impl FnOnce() -> String) {
        let counted = match kind {
            Kind::Lost => &mut self.tally.lost,
            Kind::Doubled => &mut self.tally.doubled,
            Kind::Stale => &mut self.tally.stale,
            Kind::Missing => &mut self.tally.missing,
            Kind::Phantom => &mut self.tally.phantom,
            Kind::Disordered => &mut self.tally.disordered,
            Kind::Expired => &mut self.tally.expired,
        };
        if count > 0 && *counted < TOLD_MAX {
            self.told.push(what());
        }
        *counted += count;
    }

    fn defect(&mut self, kind: Kind, what: impl FnOnce() -> String) {
        self.defects(kind, 1, what);
    }

    /// The number of the writer's next request, which counts as sent from now on.
    pub(super) fn sent(&mut self, writer: usize) -> u64 {
        let numbers = &mut self.writers[writer].numbers;
        numbers.push(Number::Sent);
        numbers.len() as u64 - 1
    }

    /// A number's answer has come. The second and later ones must say the same as the first.
    pub(super) fn acknowledged(&mut self, writer: usize, number: u64, ack: Ack) {
        let entry = &mut self.writers[writer];
        match entry.numbers.get(at(number)).copied() {
            Some(Number::Sent) => {
                entry.numbers[at(number)] = Number::Acknowledged(ack);
                entry.acknowledged += 1;
                entry.known.insert(number);
            }
            Some(Number::Acknowledged(first)) if first == ack => {}
            Some(other) => {
                self.defect(Kind::Doubled, || {
                    format!("writer {writer}'s request {number} was {other:?}, and then answered {ack:?}")
                });
            }
            None => {
                self.defect(Kind::Phantom, || {
                    format!("writer {writer} was answered for number {number}, which it never sent")
                });
            }
        }
    }

    /// A number was refused as without effect.
    pub(super) fn refused(&mut self, writer: usize, number: u64) {
        if let Some(entry @ Number::Sent) = self.writers[writer].numbers.get_mut(at(number)) {
            *entry = Number::Refused;
        }
    }

    /// A copy of a request was refused for want of room on the primary's disk, and will be sent again.
    pub(super) fn no_room(&mut self) {
        self.tally.refused += 1;
    }

    /// A writer was told that its session has expired.
    pub(super) fn expired(&mut self, writer: usize, number: u64) {
        self.defect(Kind::Expired, || format!("writer {writer}'s session was told to have expired at number {number}"));
    }

    /// Somebody reads, and must be answered now and then: reads without answers prove nothing.
    pub(super) fn reader(&mut self, name: &str) {
        self.readers.insert(name.to_owned(), 0);
    }

    /// A read of this reader was answered where it was asked.
    pub(super) fn reader_was_answered(&mut self, name: &str) {
        *self.readers.entry(name.to_owned()).or_default() += 1;
    }

    /// How many reads of each reader were answered.
    pub(super) fn answered_reads(&self) -> BTreeMap<String, u64> {
        self.readers.clone()
    }

    /// A linearizable read of the writer begins.
    pub(super) fn read_begins(&self, writer: usize) -> Read {
        Read { writer, must_see: self.writers[writer].known.clone() }
    }

    /// It was answered, by `node`.
    pub(super) fn read_ends(&mut self, read: Read, node: &str, log_index: u64, seen: &Runs) {
        self.tally.reads += 1;
        let Read { writer, must_see } = read;
        let seen = Numbers::of_runs(seen.runs.iter().copied());
        if let Some(number) = must_see.first_not_in(&seen) {
            self.defect(Kind::Stale, || {
                format!("stale read: {node} did not show writer {writer}'s number {number} at log index {log_index}")
            });
        }
        self.writers[writer].known.extend(&seen);
    }

    /// The subscriber was given an event. Whether it has gone back is known from [`Account::goes_back`].
    pub(super) fn pushed(&mut self, writer: usize, push: Pushed) {
        let entry = &mut self.writers[writer];
        let (heard, last) = (entry.heard, entry.pushed.last().copied());
        entry.heard += 1;
        match entry.pushed.get(heard).copied() {
            Some(before) if before == push => {}
            Some(before) => {
                self.defect(Kind::Disordered, || {
                    format!("writer {writer}'s subscriber went back, and got {push:?} instead of {before:?}")
                });
            }
            None => {
                entry.pushed.push(push);
                if last.is_some_and(|last| last.cursor >= push.cursor) {
                    self.defect(Kind::Disordered, || {
                        format!("writer {writer}'s subscriber got {push:?} after {last:?}")
                    });
                }
            }
        }
    }

    /// The subscriber goes back by up to `events`, and will be given those after that place again. None: from the beginning.
    pub(super) fn goes_back(&mut self, writer: usize, events: usize) -> Option<(u64, u32)> {
        let entry = &mut self.writers[writer];
        entry.heard = entry.heard.saturating_sub(events);
        entry.heard.checked_sub(1).map(|last| entry.pushed[last].cursor)
    }

    /// How many of each writer's requests are acknowledged.
    pub(super) fn progress(&self) -> Vec<u64> {
        self.writers.iter().map(|writer| writer.acknowledged).collect()
    }

    /// Whether the subscribers have been given all that the cluster has executed.
    pub(super) fn all_heard(&self, held: &[Runs]) -> bool {
        self.writers.iter().zip(held).all(|(writer, held)| {
            let executed = held.doubled + held.runs.iter().map(|(_, count)| count).sum::<u64>();
            writer.heard as u64 >= executed
        })
    }

    /// Compares with what the cluster holds at the end: for each writer, its runs.
    pub(super) fn close(mut self, held: &[Runs]) -> (Tally, Vec<String>) {
        let mut by_log_index: BTreeMap<u64, (u64, usize, u64)> = BTreeMap::new();
        for (index, held) in held.iter().enumerate() {
            let writer = std::mem::take(&mut self.writers[index]);
            self.tally.acknowledged += writer.acknowledged;
            self.defects(Kind::Doubled, held.doubled, || {
                format!("the module executed {} of writer {index}'s requests again", held.doubled)
            });
            let executed = Numbers::of_runs(held.runs.iter().copied());
            let mut before = None;
            for (number, state) in (0..).zip(&writer.numbers) {
                let there = executed.contains(number);
                match state {
                    Number::Sent => self.tally.unknown += 1,
                    Number::Refused if there => {
                        self.defect(Kind::Phantom, || {
                            format!("writer {index}'s number {number} was refused, and is there")
                        });
                    }
                    Number::Refused => {}
                    Number::Acknowledged(ack) => {
                        if !there {
                            self.defect(Kind::Lost, || {
                                format!("writer {index}'s number {number} was acknowledged at {ack:?}, and is lost")
                            });
                        }
                        if before.is_some_and(|before| before >= ack.log_index) {
                            self.defect(Kind::Disordered, || {
                                format!("writer {index}'s number {number} is at {ack:?}, before an earlier one")
                            });
                        }
                        before = Some(ack.log_index);
                        if let Some(other) = by_log_index.insert(ack.log_index, (ack.execution, index, number)) {
                            self.defect(Kind::Doubled, || {
                                format!(
                                    "log index {} was told for {other:?} and for writer {index}'s number {number}",
                                    ack.log_index
                                )
                            });
                        }
                    }
                }
            }
            let phantoms = executed.iter().filter(|number| at(*number) >= writer.numbers.len()).count() as u64;
            self.defects(Kind::Phantom, phantoms, || {
                format!("{phantoms} of writer {index}'s numbers are there and were never sent")
            });
            self.check_pushes(index, &writer, &executed, held.doubled);
        }
        // The module counts its executions in the order of the log.
        let mut before = 0;
        for (log_index, (execution, writer, number)) in by_log_index {
            if execution <= before {
                self.defect(Kind::Disordered, || {
                    format!("execution {execution} (writer {writer}'s number {number}) is at {log_index}, behind execution {before}")
                });
            }
            before = before.max(execution);
        }
        (self.tally, self.told)
    }

    /// `doubled`: executions again, each of which pushed again, and is counted already.
    fn check_pushes(&mut self, index: usize, writer: &Writer, executed: &Numbers, doubled: u64) {
        self.tally.pushes += writer.pushed.len() as u64;
        let mut heard = Numbers::default();
        let mut again = Vec::new();
        for push in &writer.pushed {
            if heard.contains(push.number) {
                again.push(push);
            }
            heard.insert(push.number);
            let acknowledged = writer.numbers.get(at(push.number));
            if let Some(Number::Acknowledged(ack)) = acknowledged
                && ack.log_index != push.cursor.0
            {
                self.defect(Kind::Disordered, || {
                    format!("writer {index}'s push {push:?} is not where it was acknowledged: {ack:?}")
                });
            }
            if !executed.contains(push.number) {
                self.defect(Kind::Phantom, || {
                    format!("writer {index}'s push {push:?} is of a number that is not there")
                });
            }
        }
        let unexplained = (again.len() as u64).saturating_sub(doubled);
        self.defects(Kind::Doubled, unexplained, || {
            format!(
                "{} of writer {index}'s pushes came again under other cursors, {:?} last",
                again.len(),
                again.last()
            )
        });
        let missing: Vec<u64> = executed.iter().filter(|number| !heard.contains(*number)).collect();
        self.defects(Kind::Missing, missing.len() as u64, || {
            format!("{} of writer {index}'s pushes never came, number {} first", missing.len(), missing[0])
        });
    }
}

/// A number's place in a vector.
fn at(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

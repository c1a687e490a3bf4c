//! The rounds of comparison, and what follows from them.
//!
//! Each round asks every other replica, off the group's thread, for its digests at a few indexes: this node's last entries of the rounds before (who
//! is behind has come to one of them by now), its newest checkpoints, and its image's, which the others then keep. An answer has 10 to 40 bytes for
//! each, whatever the load is.
//!
//! No difference is seen where there is none: what is compared is of one history, of one index, and of committed entries alone.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use futures::{FutureExt as _, future::join_all};
use replicator_types::{DiskId, LogIndex};
use tokio::task::{JoinHandle, spawn_blocking};

use super::{
    Divergence, FOUND_OUT,
    judging::{Difference, Judgement, judge},
    naming::Narrowed,
};
use crate::{
    node::{Node, NodeError, Running, applier::Work},
    replication::{Images as _, Member, Role},
    transport::{DigestAt, DigestsAnswer},
};

const PERIOD: Duration = Duration::from_millis(500);
const ANSWER_MAX: Duration = Duration::from_secs(1);
/// Last entries that are asked for again, while some may not have come to them.
const PROBES: usize = 6;
const CHECKPOINTS: usize = 8;
/// Rounds that must find the same, before one against one both stop answering.
const TIED_ROUNDS: u32 = 2;
/// So many of them, while a third replica is there and on its way to the index.
const TIED_ROUNDS_AWAITED: u32 = 8;
/// Before a machine that was made anew and is wrong again is made anew once more; doubles each time.
const REBUILD_AGAIN: Duration = Duration::from_secs(2);
const REBUILD_AGAIN_MAX: Duration = Duration::from_secs(300);
/// Rounds without a primary after which even this node's state is better than none.
const LONELY_ROUNDS: u32 = 6;

/// What is remembered from round to round.
struct Rounds {
    probes: VecDeque<LogIndex>,
    tied: u32,
    rebuilding: Option<JoinHandle<Result<String, String>>>,
    attempts: u32,
    rebuild_at: Instant,
    lonely: u32,
}

/// What one round has found.
#[derive(Default)]
struct Found {
    /// The first index at which this node is outvoted.
    outvoted: Option<(DigestAt, Difference)>,
    /// The first at which there is no telling, and whether somebody is still on its way there.
    tied: Option<(DigestAt, Difference, bool)>,
    /// The last at which it is right.
    agreed: Option<LogIndex>,
    /// The last at which its state was compared too, where states can be.
    agreed_states: Option<LogIndex>,
    /// The last at which a majority has the same state.
    confirmed: Option<LogIndex>,
}

impl Node {
    /// Compares this replica with the others, until the node ends.
    pub(in crate::node) async fn compare_replicas(self: Arc<Self>, running: Arc<Running>) {
        let mut rounds = Rounds {
            probes: VecDeque::new(),
            tied: 0,
            rebuilding: None,
            attempts: 0,
            rebuild_at: Instant::now(),
            lonely: 0,
        };
        loop {
            tokio::time::sleep(PERIOD).await;
            match self.round(&running, &mut rounds).await {
                Ok(()) => {}
                Err(error) if error.is_full() => {
                    tracing::warn!(%error, "this node's quarantine can't be noted yet; it answers nobody all the same");
                }
                Err(error) => return self.fail(error), // After a restart nothing would be known of it.
            }
        }
    }

    async fn round(
        self: &Arc<Self>,
        running: &Arc<Running>,
        rounds: &mut Rounds,
    ) -> Result<(), replicator_storage::StorageError> {
        let members = running.strategy.view().borrow().members.clone();
        let others: Vec<&Member> =
            members.iter().filter(|member| member.disk != self.disk && member.voter && !member.witness).collect();
        let machine = self.quarantine.digests.machine();
        let answers = self.ask_others(running, &others, rounds).await;
        if self.quarantine.digests.machine() != machine {
            return Ok(()); // What was asked for is of a machine that is gone.
        }
        let found = self.compared(&answers, others.len() + 1, rounds);
        if found.outvoted.is_none() && found.tied.is_none() {
            found.confirmed.into_iter().for_each(|index| self.quarantine.confirm(index));
        }
        self.conclude(running, rounds, &members, &answers, found).await?;
        if self.quarantine.is_silent() {
            let images = self.images.clone();
            spawn_blocking(move || images.clean()).await.expect("removing files doesn't panic")?;
            self.stand_aside(running, rounds, &answers).await;
            self.make_anew(running, rounds);
        } else if rounds.lonely > 0 || rounds.attempts > 0 {
            (rounds.lonely, rounds.attempts, rounds.rebuild_at) = (0, 0, Instant::now());
        }
        Ok(())
    }

    /// What the others say of the indexes of this round.
    async fn ask_others<'a>(
        &self,
        running: &Running,
        others: &[&'a Member],
        rounds: &mut Rounds,
    ) -> Vec<(&'a Member, DigestsAnswer)> {
        let digests = &self.quarantine.digests;
        let Some(last) = digests.last() else { return Vec::new() };
        if rounds.probes.back() != Some(&last) {
            rounds.probes.push_back(last);
        }
        while rounds.probes.len() > PROBES || rounds.probes.front().is_some_and(|probe| *probe > last) {
            rounds.probes.pop_front();
        }
        let image = self.images.newest().map(|image| image.position.index);
        let divergence = self.quarantine.divergence();
        let indexes: Vec<LogIndex> = rounds
            .probes
            .iter()
            .copied()
            .chain(digests.checkpoints(CHECKPOINTS))
            .chain(divergence.map(|found| found.index))
            .collect();
        let noted: Vec<LogIndex> = image.into_iter().collect();
        // Its own too: its ring goes on.
        digests.answer(&[], &noted);
        let asked = others.iter().map(|member| async {
            let channel = self.peers.channel(&member.peer_address).ok()?;
            let asked = channel.digests(running.envelope.history(), &indexes, &noted, ANSWER_MAX).await;
            let answer = asked.inspect_err(|error| tracing::debug!(%error, node = member.node, "no digests")).ok()?;
            (answer.disk == member.disk).then_some((*member, answer))
        });
        join_all(asked).await.into_iter().flatten().collect()
    }

    fn compared(&self, answers: &[(&Member, DigestsAnswer)], replicas: usize, rounds: &Rounds) -> Found {
        let digests = &self.quarantine.digests;
        let voices: Vec<_> = answers.iter().filter(|(_, answer)| !answer.quarantined).collect();
        let mut indexes: Vec<LogIndex> =
            voices.iter().flat_map(|(_, answer)| answer.digests.iter().map(|at| at.index)).collect();
        indexes.sort_unstable();
        indexes.dedup();
        let states = digests.has_states();
        let mut found = Found::default();
        for index in indexes {
            let Some(own) = digests.at(index) else { continue };
            let theirs = voices.iter().filter_map(|(member, answer)| {
                Some((member.disk, *answer.digests.iter().find(|at| at.index == index)?))
            });
            let theirs: Vec<_> = theirs.collect();
            match judge(own, &theirs) {
                Judgement::Alone => {}
                Judgement::Agreed { answers, states: same } => {
                    found.agreed = Some(index);
                    if !states || same > 0 {
                        found.agreed_states = Some(index);
                    }
                    let counts = if states { same } else { answers };
                    if (counts + 1) * 2 > replicas {
                        found.confirmed = Some(index);
                    }
                }
                Judgement::Outvoted(difference) => found.outvoted = found.outvoted.or(Some((own, difference))),
                Judgement::Tied(difference) => {
                    let awaited =
                        voices.iter().any(|(_, answer)| answer.applied < index) && rounds.tied < TIED_ROUNDS_AWAITED;
                    found.tied = found.tied.or(Some((own, difference, awaited)));
                }
            }
        }
        found
    }

    async fn conclude(
        self: &Arc<Self>,
        running: &Arc<Running>,
        rounds: &mut Rounds,
        members: &[Member],
        answers: &[(&Member, DigestsAnswer)],
        found: Found,
    ) -> Result<(), replicator_storage::StorageError> {
        let standing = self.quarantine.divergence();
        let known = standing.as_ref().is_some_and(|standing| standing.outvoted);
        if let Some((own, difference)) = found.outvoted {
            if !known {
                return self.found_out(running, answers, own, difference, true).await;
            }
            if self.quarantine.renewed.swap(false, Ordering::AcqRel) {
                let wait = (REBUILD_AGAIN * 2_u32.saturating_pow(rounds.attempts)).min(REBUILD_AGAIN_MAX);
                rounds.attempts += 1;
                rounds.rebuild_at = Instant::now() + wait;
                tracing::error!(index = %own.index, "the state that was made anew differs again");
                let names = standing.map(|standing| standing.names()).unwrap_or_default();
                self.quarantine.set_remedy(format!(
                    "made anew it differed from {names} again, at entry {}: attempt {} comes within {} s. If that goes on, its machine's memory or \
                     processor may be at fault: start the node elsewhere, with --rejoin",
                    own.index,
                    rounds.attempts + 1,
                    wait.as_secs()
                ));
            }
            return Ok(());
        }
        if let Some((own, difference, awaited)) = found.tied {
            rounds.tied += 1;
            if standing.is_none() && !awaited && rounds.tied >= TIED_ROUNDS {
                return self.found_out(running, answers, own, difference, false).await;
            }
            return Ok(());
        }
        rounds.tied = 0;
        let Some(standing) = standing else { return Ok(()) };
        // Before it has come to where it differed, equality says nothing; and equal answers say nothing of states.
        let equal = if standing.answers { found.agreed } else { found.agreed_states };
        let passed = equal >= Some(standing.index);
        let renewed = !standing.outvoted || self.quarantine.renewed.load(Ordering::Acquire);
        let is_member = |disk: DiskId| members.iter().any(|member| member.disk == disk);
        let decided = if !is_member(self.disk) {
            false // Just after a start, it isn't known yet who is.
        } else if standing.outvoted {
            // After a recovery, say: there is nobody else.
            renewed && !members.iter().any(|member| member.disk != self.disk && member.voter && !member.witness)
        } else {
            !standing.against.iter().any(|(_, disk)| is_member(*disk))
        };
        if decided || (passed && renewed) {
            let quarantine = self.clone();
            spawn_blocking(move || quarantine.quarantine.lift()).await.expect("removing a file doesn't panic")?;
            running.strategy.stand_back(false);
            let why = if decided {
                "whom it differed from is no member any more"
            } else {
                "a comparison agrees with the others"
            };
            tracing::warn!(index = found.agreed.unwrap_or_default().0, "this node answers again: {why}");
        }
        Ok(())
    }

    /// This node's state differs: from now on it answers nobody.
    async fn found_out(
        self: &Arc<Self>,
        running: &Arc<Running>,
        answers: &[(&Member, DigestsAnswer)],
        own: DigestAt,
        difference: Difference,
        outvoted: bool,
    ) -> Result<(), replicator_storage::StorageError> {
        self.quarantine.silent.store(true, Ordering::Release);
        self.waiters.clear();
        let against: Vec<_> = answers.iter().filter(|(member, _)| difference.against.contains(&member.disk)).collect();
        let (member, answer) = against.first().expect("who differs has answered");
        let value = |at: DigestAt| if difference.answers { Some(at.digest) } else { at.state };
        let there =
            answer.digests.iter().find(|at| at.index == own.index).and_then(|at| value(*at)).unwrap_or_default();
        let here = value(own).unwrap_or_default();
        let mut divergence = Divergence {
            outvoted,
            against: against.iter().map(|(member, _)| (member.node.clone(), member.disk)).collect(),
            answers: difference.answers,
            equal: None,
            index: own.index,
            exact: false,
            here,
            there,
            request: None,
            found_us: self.seams.clock.now_us(),
            good: self.quarantine.confirmed(),
            cleaned: false,
        };
        // Durably, before it is asked where it began: a crash meanwhile must not make it trusted again.
        let (node, early) = (self.clone(), divergence.clone());
        spawn_blocking(move || node.quarantine.note(&early)).await.expect("writing a note doesn't panic")?;
        let began = Narrowed { equal: None, at: (own.index, here, there) };
        let Narrowed { equal, at: (index, here, there) } =
            self.narrow(running, (member.disk, &member.peer_address), began, difference.answers).await;
        let exact = difference.answers && equal.is_some_and(|equal| equal.next() == index);
        let request = if exact { self.request_at(running, index) } else { None };
        // What was confirmed after the difference began can't have been compared with the same others.
        let good = divergence.good.min(equal);
        divergence = Divergence { equal, index, exact, here, there, request, good, ..divergence };
        tracing::error!("{}; {FOUND_OUT}", divergence.told());
        self.quarantine.set_remedy(if outvoted {
            "its state is being made anew".into()
        } else {
            "start a third replica, which decides (with an empty folder, if its own is lost). In a chain, an operator can: `member remove`".into()
        });
        self.quarantine.renewed.store(false, Ordering::Release);
        self.applier.give(Work::Silence).await;
        let node = self.clone();
        spawn_blocking(move || node.quarantine.keep(divergence)).await.expect("writing a note doesn't panic")
    }

    /// The primary's part goes to a member whose state is good, and doesn't come here where it can go elsewhere.
    async fn stand_aside(&self, running: &Running, rounds: &mut Rounds, answers: &[(&Member, DigestsAnswer)]) {
        let confirmed = self.read_index(Instant::now() + ANSWER_MAX).await.is_ok();
        rounds.lonely = if confirmed { 0 } else { rounds.lonely + 1 };
        running.strategy.stand_back(rounds.lonely < LONELY_ROUNDS);
        if running.strategy.view().borrow().role != Role::Primary {
            return;
        }
        for (member, _) in answers.iter().filter(|(_, answer)| !answer.quarantined && !answer.disputed) {
            match running.strategy.transfer(member.disk).await {
                Ok(()) => {
                    return tracing::warn!(to = member.node, "this state isn't good: handing the primary's part over");
                }
                Err(error) => tracing::warn!(to = member.node, error, "the primary's part stays here for now"),
            }
        }
    }

    /// Makes the machine anew, if that is due.
    fn make_anew(self: &Arc<Self>, running: &Arc<Running>, rounds: &mut Rounds) {
        if let Some(ended) = rounds.rebuilding.take_if(|rebuilding| rebuilding.is_finished()) {
            match ended.now_or_never() {
                Some(Ok(Ok(from))) => {
                    tracing::warn!(from, "this node's state was made anew; it is compared before anybody is answered");
                    self.quarantine
                        .set_remedy(format!("its state was made anew from {from}, and is compared before it answers"));
                }
                Some(Ok(Err(why))) => self.rebuilding_failed(rounds, &why),
                Some(Err(_)) | None => self.rebuilding_failed(rounds, "it panicked"),
            }
        }
        let wrong = self.quarantine.divergence().is_some_and(|found| found.outvoted);
        let renewed = self.quarantine.renewed.load(Ordering::Acquire);
        if wrong && !renewed && rounds.rebuilding.is_none() && Instant::now() >= rounds.rebuild_at {
            rounds.rebuilding = Some(tokio::spawn(self.clone().rebuild(running.clone())));
        }
    }

    fn rebuilding_failed(&self, rounds: &mut Rounds, why: &str) {
        let wait = (REBUILD_AGAIN * 2_u32.saturating_pow(rounds.attempts)).min(REBUILD_AGAIN_MAX);
        rounds.attempts += 1;
        rounds.rebuild_at = Instant::now() + wait;
        tracing::warn!(why, "this node's state can't be made anew yet");
        self.quarantine.set_remedy(format!(
            "its state can't be made anew yet: {why}; the next attempt comes within {} s. Or start it with --rejoin",
            wait.as_secs()
        ));
    }
}

impl Node {
    /// Checks that this node's state may be told.
    pub(in crate::node) fn check_quarantined(&self) -> Result<(), NodeError> {
        self.quarantine.told().map_or(Ok(()), |told| Err(NodeError::Quarantined(told)))
    }
}

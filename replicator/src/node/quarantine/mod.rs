//! Replicas that differ: found by comparison, kept from answering, made anew from a peer (safety rule 20).
//!
//! Twice a second each node asks the other replicas what their machines came to, and compares ([`comparing`], [`judging`]): the running digests,
//! which all answers and pushes are folded into, and the states' hashes at checkpoints. Two others that agree outvote a node: it is
//! **quarantined**. One against one, neither is known to be right, and both wait for a third: **disputed**. Either goes on replicating and
//! acknowledging its log, which holds what was asked and not what came of it, and applies it; it answers nobody, hands the primary's part over,
//! takes no images and gives none. Where the difference began is found by bisection ([`naming`]).
//!
//! A quarantined node makes its machine anew ([`rebuilding`]), and answers again when a comparison agrees. A note in its folder makes a
//! quarantine outlive a restart, and images that may hold the wrong state are removed, so a restart is such a rebuilding too.

mod comparing;
mod digests;
mod judging;
mod naming;
mod rebuilding;

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use replicator_storage::{NodeDir, StorageError};
use replicator_types::{ClusterId, Digest, DiskId, Lineage, LogIndex, Sequence, SessionId, codec, codec::Format};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

pub(super) use self::digests::Digests;
use super::{Node, peer::EnvelopeError};
use crate::transport::DigestsAnswer;

/// What a node's log says when its state turns out to differ, after where it does.
pub const FOUND_OUT: &str = "this node answers nobody from now on";
/// Indexes that one question may name.
const ASKED_MAX: usize = 64;

/// Where a replica's state began to differ from that of the others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Divergence {
    /// Whether a majority has another state. If not, it isn't known whose is right.
    pub outvoted: bool,
    /// The nodes that have the other state, and their disks.
    pub against: Vec<(String, DiskId)>,
    /// Whether the answers differ; if not, only the state behind them does.
    pub answers: bool,
    /// Up to here they were found to be equal.
    pub equal: Option<LogIndex>,
    /// Here they differ.
    pub index: LogIndex,
    /// Whether that is the first entry that had another result.
    pub exact: bool,
    /// The digest, or the state's hash, after it.
    pub here: Digest,
    /// The others'.
    pub there: Digest,
    /// The request that the entry holds, if it is exact and holds one.
    pub request: Option<DivergentRequest>,
    /// When it was found out, in microseconds since 1970.
    pub found_us: i64,
    /// Images up to here are good: a majority had the same state there.
    good: Option<LogIndex>,
    /// Whether the others were removed.
    cleaned: bool,
}

impl Format for Divergence {
    const WHAT: &'static str = "quarantine note";
}

/// The first request that had another result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DivergentRequest {
    /// Its session.
    pub session: SessionId,
    /// Its number there.
    pub sequence: Sequence,
    /// Its SHA-256.
    pub sha256: [u8; 32],
    /// How many bytes it has.
    pub bytes: u64,
    /// What it begins with.
    pub preview: String,
}

impl Divergence {
    /// Of a folder whose note can't be read.
    fn unknown() -> Self {
        Self {
            outvoted: true,
            against: Vec::new(),
            answers: false,
            equal: None,
            index: LogIndex(0),
            exact: false,
            here: Digest(0),
            there: Digest(0),
            request: None,
            found_us: 0,
            good: None,
            cleaned: false,
        }
    }

    fn names(&self) -> String {
        let names: Vec<_> = self.against.iter().map(|(name, _)| name.as_str()).collect();
        match names.split_last() {
            None => "other replicas".into(),
            Some((last, [])) => (*last).to_owned(),
            Some((last, first)) => format!("{} and {last}", first.join(", ")),
        }
    }

    /// For people.
    fn told(&self) -> String {
        let names = self.names();
        let whose = match (self.outvoted, self.answers) {
            (true, true) => format!("quarantined: its answers differ from those of {names}"),
            (true, false) => format!("quarantined: its state differs from that of {names}, behind equal answers"),
            (false, true) => {
                format!("its answers differ from those of {names}, and no third replica tells whose are right")
            }
            (false, false) => {
                format!(
                    "its state differs from that of {names}, behind equal answers, and no third replica tells whose is right"
                )
            }
        };
        let (here, there) = (self.here, self.there);
        let place = match (&self.request, self.exact, self.equal) {
            _ if self.here == self.there => return whose,
            (Some(request), ..) => format!(
                "the first request with another result is entry {}: request {} of session {}, {} bytes, {:?}, SHA-256 {}…",
                self.index,
                request.sequence,
                request.session,
                request.bytes,
                request.preview,
                request.sha256[..6].iter().map(|byte| format!("{byte:02x}")).collect::<String>()
            ),
            (None, true, _) => format!("the first entry with another result is {}", self.index),
            (None, false, Some(equal)) => format!("they are equal up to entry {equal}, and differ at {}", self.index),
            (None, false, None) => format!("they differ at entry {}, or sooner", self.index),
        };
        format!("{whose}; {place}: {here} here, {there} there")
    }
}

/// What is known of this node's state, shared by all that answer.
#[derive(Debug)]
pub(super) struct Quarantine {
    dir: NodeDir,
    pub(super) digests: Digests,
    standing: watch::Sender<Option<Arc<Divergence>>>,
    /// Whether nobody is answered: set at once, before it is known why.
    silent: AtomicBool,
    /// Whether the machine was made anew since it was found wrong.
    renewed: AtomicBool,
    /// The last index at which a majority was found to have the same state.
    confirmed: Mutex<Option<LogIndex>>,
    /// What is being done about it, for people.
    remedy: Mutex<String>,
}

impl Quarantine {
    /// With what the folder says. A note that can't be read is one.
    pub(super) fn open(dir: NodeDir) -> Result<Self, StorageError> {
        let note = match dir.quarantine() {
            Ok(None) => None,
            Ok(Some(note)) => Some(codec::decode(&note).unwrap_or_else(|error| {
                tracing::error!(%error, "the note about this node's quarantine can't be read: nothing of its state is trusted");
                Divergence::unknown()
            })),
            Err(error @ StorageError::Damaged { .. }) => {
                tracing::error!(%error, "the note about this node's quarantine can't be read: nothing of its state is trusted");
                Some(Divergence::unknown())
            }
            Err(error) => return Err(error),
        };
        if let Some(divergence) = &note {
            tracing::error!("{}; it answers nothing until a comparison agrees", divergence.told());
        }
        let silent = note.is_some();
        Ok(Self {
            dir,
            digests: Digests::default(),
            standing: watch::Sender::new(note.map(Arc::new)),
            silent: AtomicBool::new(silent),
            renewed: AtomicBool::new(true), // By the start, from what is good in the folder.
            confirmed: Mutex::default(),
            remedy: Mutex::new("its state is made anew from the log, and compared".into()),
        })
    }

    /// Whether nobody is to be answered.
    pub(super) fn is_silent(&self) -> bool {
        self.silent.load(Ordering::Acquire)
    }

    /// Why nobody is answered; None: they are.
    pub(super) fn told(&self) -> Option<String> {
        if !self.is_silent() {
            return None;
        }
        let standing = self.standing.borrow().clone();
        let told =
            standing.map_or_else(|| "its state differs from that of other replicas".into(), |found| found.told());
        let remedy = self.remedy.lock().unwrap_or_else(PoisonError::into_inner);
        Some(format!("{told}. It answers no clients; {remedy}"))
    }

    /// Where it differs, if it does.
    pub(super) fn divergence(&self) -> Option<Arc<Divergence>> {
        self.standing.borrow().clone()
    }

    /// Another machine goes on from this digest.
    pub(super) fn renew(&self, at: Option<(LogIndex, Digest)>) {
        self.digests.begin(at);
        self.renewed.store(true, Ordering::Release);
    }

    /// Images up to here may be given to peers; None: none may.
    pub(super) fn gives_images_to(&self) -> Option<LogIndex> {
        match &*self.standing.borrow() {
            _ if !self.is_silent() => Some(LogIndex(u64::MAX)),
            Some(found) if !found.outvoted => found.good,
            _ => None,
        }
    }

    /// What the folder's images can be trusted to, if some must be removed before anything goes on from them.
    pub(super) fn to_be_cleaned(&self) -> Option<Option<LogIndex>> {
        self.divergence().filter(|found| found.outvoted && !found.cleaned).map(|found| found.good)
    }

    /// The images that can't be trusted are gone; durable on return.
    pub(super) fn cleaned(&self) -> Result<(), StorageError> {
        let Some(found) = self.divergence() else { return Ok(()) };
        self.keep(Divergence { cleaned: true, ..(*found).clone() })
    }

    /// Writes for the next start what is to be known; durable on return.
    fn note(&self, found: &Divergence) -> Result<(), StorageError> {
        self.dir.set_quarantine(Some(codec::encode(found)))
    }

    /// Makes this what is known; durable on return. On an error it is known all the same, until the next start.
    fn keep(&self, found: Divergence) -> Result<(), StorageError> {
        self.silent.store(true, Ordering::Release);
        let found = Arc::new(found);
        self.standing.send_replace(Some(found.clone()));
        self.note(&found)
    }

    /// The state is as good as any other's again; durable on return.
    fn lift(&self) -> Result<(), StorageError> {
        self.dir.set_quarantine(None)?;
        self.standing.send_replace(None);
        self.silent.store(false, Ordering::Release);
        Ok(())
    }

    fn confirmed(&self) -> Option<LogIndex> {
        *self.confirmed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn confirm(&self, index: LogIndex) {
        let mut confirmed = self.confirmed.lock().unwrap_or_else(PoisonError::into_inner);
        *confirmed = (*confirmed).max(Some(index));
    }

    fn set_remedy(&self, what: String) {
        *self.remedy.lock().unwrap_or_else(PoisonError::into_inner) = what;
    }
}

impl Node {
    /// What this node's machine came to at some indexes, some of which are kept for longer.
    ///
    /// # Errors
    /// If it is of another history, or is asked for too much.
    pub(crate) fn on_digests(
        &self,
        cluster: Option<(ClusterId, Lineage)>,
        indexes: &[LogIndex],
        noted: &[LogIndex],
    ) -> Result<DigestsAnswer, EnvelopeError> {
        let running = self.running().map_err(|error| EnvelopeError::NotReady(error.to_string()))?;
        if cluster != Some(running.envelope.history()) {
            return Err(EnvelopeError::Refused("this node takes no part in that cluster's history".into()));
        }
        if indexes.len() + noted.len() > ASKED_MAX {
            let count = indexes.len() + noted.len();
            return Err(EnvelopeError::Refused(format!("{count} indexes; at most {ASKED_MAX} are answered")));
        }
        let divergence = self.quarantine.divergence();
        Ok(DigestsAnswer {
            disk: self.disk,
            digests: self.quarantine.digests.answer(indexes, noted),
            applied: self.quarantine.digests.last().unwrap_or_default(),
            quarantined: divergence.as_ref().is_some_and(|found| found.outvoted),
            disputed: divergence.is_some_and(|found| !found.outvoted),
        })
    }
}

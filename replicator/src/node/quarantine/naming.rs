//! Where two replicas began to differ, by bisection: once the running digests differ they stay different, so a few questions to the other one
//! lead to the first entry with another result.
//!
//! As far back as both keep one digest for each entry, it is found exactly; before that, between two checkpoints.

use std::time::Duration;

use replicator_machine::{Command, Entry};
use replicator_storage::Log as _;
use replicator_types::{Digest, DiskId, LogIndex, codec};
use sha2::{Digest as _, Sha256};

use super::DivergentRequest;
use crate::{
    node::{Node, Running},
    transport::DigestAt,
};

/// Questions, each of which leaves a twentieth.
const QUESTIONS_MAX: usize = 16;
const ANSWER_MAX: Duration = Duration::from_secs(1);
/// Characters of a request that are shown.
const PREVIEW_CHARS: usize = 64;

/// A difference, as narrow as it can be made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Narrowed {
    /// Equal here.
    pub(super) equal: Option<LogIndex>,
    /// Different here: this node's and the other's.
    pub(super) at: (LogIndex, Digest, Digest),
}

impl Node {
    /// Narrows a difference at `found.at` with the help of one of the nodes at `addresses`.
    pub(super) async fn narrow(
        &self,
        running: &Running,
        (disk, address): (DiskId, &str),
        mut found: Narrowed,
        answers: bool,
    ) -> Narrowed {
        let Ok(channel) = self.peers.channel(address) else { return found };
        let digests = &self.quarantine.digests;
        for _ in 0..QUESTIONS_MAX {
            let picked = digests.between(found.equal, found.at.0, !answers);
            if picked.is_empty() {
                break;
            }
            let asked = channel.digests(running.envelope.history(), &picked, &[], ANSWER_MAX).await;
            let Ok(answer) = asked.inspect_err(|error| tracing::warn!(%error, "the bisection ends early")) else {
                break;
            };
            let compared = answer.digests.iter().filter_map(|theirs| {
                let value = |at: DigestAt| if answers { Some(at.digest) } else { at.state };
                let (here, there) = (value(digests.at(theirs.index)?)?, value(*theirs)?);
                Some((theirs.index, here, there))
            });
            let compared: Vec<_> = compared.filter(|_| answer.disk == disk).collect();
            let before = (found.equal, found.at.0);
            let different = compared.iter().filter(|(_, here, there)| here != there);
            if let Some(first) = different.min_by_key(|(index, ..)| *index)
                && first.0 < found.at.0
            {
                found.at = *first;
            }
            // States may be equal again later on.
            let equal = compared.iter().filter(|(index, here, there)| here == there && *index < found.at.0);
            found.equal = equal.map(|(index, ..)| *index).max().max(found.equal);
            if (found.equal, found.at.0) == before {
                break; // The other one doesn't know of anything between.
            }
        }
        found
    }

    /// The request in the entry at `index`, if it holds one and is still in the log.
    pub(super) fn request_at(&self, running: &Running, index: LogIndex) -> Option<DivergentRequest> {
        let record = self.log.read(index, index.next(), usize::MAX).ok()?.into_iter().next()?;
        let encoded = running.strategy.committed(record).ok()?.1?;
        let entry: Entry = codec::decode(&encoded).ok()?;
        let Command::Request { session, sequence, request, .. } = entry.command else { return None };
        let text = String::from_utf8_lossy(&request[..request.len().min(4 * PREVIEW_CHARS)]);
        Some(DivergentRequest {
            session,
            sequence,
            sha256: Sha256::digest(&request).into(),
            bytes: request.len() as u64,
            preview: text.chars().take(PREVIEW_CHARS).collect(),
        })
    }
}

//! A survey of a machine's state, to tell two of its moments apart.

use std::collections::BTreeMap;

use replicator_types::{Digest, Position, SessionId};
use xxhash_rust::xxh3::xxh3_64;

use super::{Machine, StateParts};
use crate::pushes::PushCursor;

/// What the survey of memory goes by.
pub const SURVEY_PAGE_BYTES: usize = 4 << 10;

/// A machine's state at one position, as hashes of its parts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Survey {
    /// The last position applied.
    pub position: Option<Position>,
    /// The running digest there.
    pub digest: Digest,
    /// The hash of the whole state there.
    pub state_hash: Digest,
    /// The hashes of its parts.
    pub parts: StateParts,
    /// Bytes of the module's memory.
    pub memory_bytes: u64,
    /// The hash of each page of [`SURVEY_PAGE_BYTES`] of it.
    pub pages: Vec<u64>,
    /// The open sessions, each with the hash of all that is kept of it.
    pub sessions: BTreeMap<SessionId, u64>,
    /// The oldest and the newest retained push.
    pub pushes: Option<(PushCursor, PushCursor)>,
    /// How many are retained.
    pub pushes_len: u64,
}

impl Machine {
    /// Surveys the state. Reads all of it.
    pub fn survey(&mut self) -> Survey {
        let parts = self.state_parts();
        let mut survey = Survey {
            position: self.applied(),
            digest: self.digest(),
            state_hash: parts.hash(),
            parts,
            ..Survey::default()
        };
        if let Some(state) = &self.state {
            let memory = state.application.memory();
            survey.memory_bytes = memory.len() as u64;
            survey.pages = memory.chunks(SURVEY_PAGE_BYTES).map(xxh3_64).collect();
            survey.sessions = state.sessions.hashes();
            (survey.pushes, survey.pushes_len) = (state.pushes.span(), state.pushes.len() as u64);
        }
        survey
    }
}

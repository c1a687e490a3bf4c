//! Calls about modules: what a peer has of them, its bytes, and whether they may be activated.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use replicator_proto::replicator::v1 as pb;
use replicator_types::ModuleHash;

use super::{Envelope, PeerChannel, TransportError, malformed, within};

/// How far a replica is from being able to run a module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// It doesn't have it, for this reason if there is a special one.
    Missing(String),
    /// It has it, durably, and checks and compiles it.
    Checking,
    /// It has it, durably, checked and compiled.
    Ready {
        /// How the module describes itself.
        description: String,
    },
    /// It has it, durably, and its program can't run it, for this reason.
    Refused(String),
}

/// What a replica has of a module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldModule {
    /// Which.
    pub hash: ModuleHash,
    /// Its length; 0: not here.
    pub bytes: u64,
    /// How far it is from running.
    pub readiness: Readiness,
}

/// How a module is at one replica, as another one sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreparedNode {
    /// The replica.
    pub node: String,
    /// What it has; None: it doesn't answer.
    pub held: Option<HeldModule>,
    /// Whether an activation waits for it.
    pub required: bool,
}

/// What a primary says of a module that shall be activated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    /// Whether it is durable and ready wherever it must be.
    pub ready: bool,
    /// How it is at each replica.
    pub nodes: Vec<PreparedNode>,
}

impl From<HeldModule> for pb::HeldModule {
    fn from(held: HeldModule) -> Self {
        use pb::ModuleState as State;
        let (state, detail, description) = match held.readiness {
            Readiness::Missing(why) => (State::Missing, why, String::new()),
            Readiness::Checking => (State::Checking, String::new(), String::new()),
            Readiness::Ready { description } => (State::Ready, String::new(), description),
            Readiness::Refused(why) => (State::Refused, why, String::new()),
        };
        let sha256 = Bytes::copy_from_slice(&held.hash.0);
        Self { sha256, state: state as u32, detail, bytes: held.bytes, description }
    }
}

fn held(held: pb::HeldModule) -> Result<HeldModule, TransportError> {
    use pb::ModuleState as State;
    let state = i32::try_from(held.state).ok().and_then(|state| State::try_from(state).ok());
    let readiness = match state {
        Some(State::Missing) => Readiness::Missing(held.detail),
        Some(State::Checking) => Readiness::Checking,
        Some(State::Ready) => Readiness::Ready { description: held.description },
        Some(State::Refused) => Readiness::Refused(held.detail),
        _ => return Err(malformed("a module in no known state")),
    };
    let hash = ModuleHash::try_from(&held.sha256[..]).map_err(|_| malformed("a module's hash has 32 bytes"))?;
    Ok(HeldModule { hash, bytes: held.bytes, readiness })
}

impl PeerChannel {
    /// Asks what the peer has of these modules, and of all others if `all`; it begins to fetch and check those that are wanted.
    ///
    /// # Errors
    /// If there is no answer within `bound`, or the peer refuses.
    pub async fn modules(
        &self,
        envelope: Envelope,
        wanted: &[ModuleHash],
        all: bool,
        bound: Duration,
    ) -> Result<Vec<HeldModule>, TransportError> {
        let wanted = wanted.iter().map(|hash| Bytes::copy_from_slice(&hash.0)).collect();
        let request = pb::ModulesRequest { envelope: Some(envelope.into()), wanted, all };
        let answer = within(bound, self.client.clone().modules(request)).await?.into_inner();
        answer.modules.into_iter().map(held).collect()
    }

    /// Asks the primary to see to it that a module is ready where it must be, for which it may take `wait`. None: the peer isn't the primary.
    ///
    /// # Errors
    /// If there is no answer within `wait` and a little more, or the peer refuses.
    pub async fn prepare_module(
        &self,
        envelope: Envelope,
        hash: ModuleHash,
        wait: Duration,
    ) -> Result<Option<Prepared>, TransportError> {
        let sha256 = Bytes::copy_from_slice(&hash.0);
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        let request = pb::PrepareModuleRequest { envelope: Some(envelope.into()), sha256, wait_ms };
        let bound = wait + Duration::from_secs(1);
        let answer = within(bound, self.client.clone().prepare_module(request)).await?.into_inner();
        if !answer.primary {
            return Ok(None);
        }
        let nodes = answer.nodes.into_iter().map(|node| {
            let held = node.held.map(held).transpose()?;
            Ok::<_, TransportError>(PreparedNode { node: node.node_id, held, required: node.required })
        });
        Ok(Some(Prepared { ready: answer.ready, nodes: nodes.collect::<Result<_, _>>()? }))
    }

    /// Fetches a module's bytes. The caller checks their hash.
    ///
    /// # Errors
    /// If the peer doesn't have it, the stream breaks, or it grows past `bytes_max`.
    pub async fn fetch_module(&self, hash: ModuleHash, bytes_max: usize) -> Result<Bytes, TransportError> {
        let request = pb::FetchModuleRequest { sha256: Bytes::copy_from_slice(&hash.0) };
        let mut chunks = within(Duration::from_secs(5), self.client.clone().fetch_module(request)).await?.into_inner();
        let mut module = BytesMut::new();
        while let Some(chunk) = within(Duration::from_secs(10), chunks.message()).await? {
            if module.len() + chunk.chunk.len() > bytes_max {
                return Err(TransportError::Malformed(format!("the module has more than {bytes_max} bytes")));
            }
            module.extend_from_slice(&chunk.chunk);
        }
        Ok(module.freeze())
    }
}

//! The nodes that an operator's call about modules goes to: any replica, and the next one where that can't answer.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, bail};
use replicator_client::{Client, Error};
use replicator_proto::replicator::v1::{self as pb, admin_service_client::AdminServiceClient};
use tonic::{Code, Request, Status, transport::Channel};

use super::super::{
    output,
    status::{Surveyed, survey},
};

/// How long one call may take at a node.
const CALL_MAX: Duration = Duration::from_secs(15);
/// The same of one that may switch modules: who asks again too early has the work of a refused switch done once more.
const SWITCH_MAX: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_millis(200);
/// Digits of a hash that people are shown, and the fewest that they may give.
pub(super) const DIGITS: usize = 12;
const DIGITS_MIN: usize = 6;

/// A cluster, as its operator reaches it.
pub(in crate::cli) struct Nodes {
    client: Client,
    endpoints: Vec<String>,
    /// When no more is tried.
    deadline: Instant,
}

impl Nodes {
    pub(in crate::cli) fn new(endpoints: &[String], within: Duration) -> anyhow::Result<Self> {
        let client = Client::builder().endpoints(endpoints.iter().cloned()).build()?;
        Ok(Self { client, endpoints: endpoints.to_vec(), deadline: Instant::now() + within })
    }

    /// All nodes that are known.
    pub(super) async fn survey(&self) -> Vec<Surveyed> {
        survey(&self.client.with_deadline(Duration::from_secs(2)), &self.endpoints).await
    }

    /// The addresses of the replicas that answer; those that serve come first.
    async fn replicas(&self) -> Vec<String> {
        use pb::NodeState::{Follower, Primary};
        let nodes = self.survey().await;
        let answers = nodes.iter().filter_map(|node| Some((node, node.status.as_ref().ok()?)));
        let mut replicas: Vec<_> = answers.filter(|(_, status)| !status.witness).collect();
        replicas.sort_by_key(|(_, status)| !matches!(status.state(), Primary | Follower) || !status.detail.is_empty());
        replicas.into_iter().map(|(node, _)| node.endpoint.clone()).collect()
    }

    /// Calls one replica after the other, until one answers something definite.
    pub(super) async fn call<T, F>(&self, call: impl Fn(AdminServiceClient<Channel>) -> F) -> anyhow::Result<T>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let mut last = None;
        loop {
            for endpoint in self.replicas().await {
                let answered = match self.client.admin(&endpoint).await {
                    Ok(admin) => call(admin).await,
                    Err(error) => Err(Status::unavailable(error.to_string())),
                };
                match answered {
                    Ok(answer) => return Ok(answer),
                    Err(status) if !is_passing(&status) => return Err(told(status)),
                    Err(status) => last = Some(told(status).context(endpoint)),
                }
                if Instant::now() >= self.deadline {
                    break;
                }
            }
            if Instant::now() + RETRY >= self.deadline {
                let nobody = || anyhow!("no replica answers; is the cluster running, and are these client addresses?");
                return Err(last.unwrap_or_else(nobody));
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// A request that a node must answer in time.
    fn request<T>(&self, message: T) -> Request<T> {
        self.within(CALL_MAX, message)
    }

    /// A request that switches modules, and may take as long as that takes.
    pub(super) fn switch<T>(&self, message: T) -> Request<T> {
        self.within(SWITCH_MAX, message)
    }

    fn within<T>(&self, max: Duration, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let left = self.deadline.saturating_duration_since(Instant::now());
        request.set_timeout(left.clamp(Duration::from_secs(1), max));
        request
    }

    /// What the replicas have.
    pub(super) async fn list(&self) -> anyhow::Result<Vec<pb::Module>> {
        let list = async |mut admin: AdminServiceClient<Channel>| {
            admin.list_modules(self.request(pb::ListModulesRequest {})).await
        };
        Ok(self.call(list).await?.into_inner().modules)
    }

    /// The module that runs.
    pub(in crate::cli) async fn active(&self) -> anyhow::Result<Vec<u8>> {
        let modules = self.list().await?;
        let active = modules.iter().find(|module| module.active);
        Ok(active.context("the cluster runs no module yet")?.sha256.to_vec())
    }

    /// The hash of which these are the first digits.
    pub(super) async fn hash(&self, digits: &str) -> anyhow::Result<Vec<u8>> {
        if let Some(hash) = whole_hash(digits) {
            return Ok(hash);
        }
        if digits.len() < DIGITS_MIN || !is_hex(digits) {
            bail!(
                "{digits:?} is no file, and no hash: give at least {DIGITS_MIN} of its hexadecimal digits, as `replicator module list` shows them"
            );
        }
        let modules = self.list().await?;
        let begins = |module: &&pb::Module| output::hex(&module.sha256).starts_with(&digits.to_lowercase());
        let mut found = modules.iter().filter(begins);
        match (found.next(), found.next()) {
            (Some(module), None) => Ok(module.sha256.to_vec()),
            (None, _) => {
                bail!("no replica that answers has a module {digits}…; `replicator module list` shows those there are")
            }
            (Some(_), Some(_)) => bail!("several modules begin with {digits}; give more of the digits"),
        }
    }
}

/// What goes away by itself, or at another node. An activation whose outcome is unknown is asked for again: it is carried out once.
fn is_passing(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown)
}

/// A node's answer as an error, with the reason that it gives.
pub(in crate::cli) fn told(status: Status) -> anyhow::Error {
    Error::Rpc(Box::new(status)).into()
}

/// The value of a word of a module's description.
pub(in crate::cli) fn word<'a>(description: &'a str, key: &str) -> Option<&'a str> {
    let mut words = description.split(' ').filter_map(|word| word.split_once('='));
    words.find_map(|(found, value)| (found == key).then_some(value))
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// All 32 bytes of a hash, if these are its digits.
pub(super) fn whole_hash(digits: &str) -> Option<Vec<u8>> {
    let byte = |at: usize| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok();
    (digits.len() == 64 && is_hex(digits)).then(|| (0..64).step_by(2).filter_map(byte).collect())
}

/// The digits that people are shown.
pub(super) fn short(hash: &[u8]) -> String {
    output::hex(hash).chars().take(DIGITS).collect()
}

pub(super) fn state_name(state: pb::ModuleState) -> String {
    state.as_str_name().trim_start_matches("MODULE_STATE_").to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_64_digits_are_a_whole_hash() {
        let digits = "0123456789abcdefABCDEF000000000000000000000000000000000000000001";
        assert_eq!(whole_hash(digits).map(|hash| (hash.len(), hash[31])), Some((32, 1)));
        assert_eq!(whole_hash(&digits[1..]), None);
        assert_eq!(whole_hash(&digits.replace('0', "g")), None);
        assert_eq!(whole_hash(&"é".repeat(32)), None);
    }
}

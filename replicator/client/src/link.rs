//! A connection to a node, and the streams on it that all calls of a client share.

use std::sync::OnceLock;

use tonic::transport::Channel;

use crate::lane::{Executions, Lane, Queries};

/// A connection. Its streams are opened when they are first used, and never again: once one has ended, the connection
/// is left for another one.
#[derive(Debug)]
pub(crate) struct Link {
    channel: Channel,
    executions: OnceLock<Lane<Executions>>,
    queries: OnceLock<Lane<Queries>>,
}

impl Link {
    pub(crate) fn new(channel: Channel) -> Self {
        Self { channel, executions: OnceLock::new(), queries: OnceLock::new() }
    }

    /// For a call of its own.
    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// The shared `ExecuteStream`.
    pub(crate) fn executions(&self) -> &Lane<Executions> {
        self.executions.get_or_init(|| Lane::open(self.channel()))
    }

    /// The shared `QueryStream`.
    pub(crate) fn queries(&self) -> &Lane<Queries> {
        self.queries.get_or_init(|| Lane::open(self.channel()))
    }

    /// Whether new calls may use it.
    pub(crate) fn is_usable(&self) -> bool {
        self.executions.get().is_none_or(Lane::is_usable) && self.queries.get().is_none_or(Lane::is_usable)
    }
}

//! What all who load the cluster share.

use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::{Context as _, anyhow};
use replicator_client::{Client, ClientBuilder};
use tokio::{sync::watch, task::JoinSet};

use super::account::Account;

/// The account, the nodes' addresses, and the word to stop.
#[derive(Debug, Clone)]
pub(super) struct World {
    account: Arc<Mutex<Account>>,
    /// The nodes' client addresses, in order.
    pub(super) endpoints: Arc<[String]>,
    stop: watch::Receiver<bool>,
    /// Changes each time that the subscribers shall go on at another node.
    pub(super) moves: watch::Receiver<u64>,
}

/// Who says so.
#[derive(Debug)]
pub(super) struct Conductor {
    stop: watch::Sender<bool>,
    moves: watch::Sender<u64>,
}

impl Conductor {
    pub(super) fn stop(&self) {
        self.stop.send_replace(true);
    }

    pub(super) fn move_subscribers(&self) {
        self.moves.send_modify(|moves| *moves += 1);
    }
}

impl World {
    pub(super) fn new(writers: usize, endpoints: Vec<String>) -> (Self, Conductor) {
        let (stop, stopped) = watch::channel(false);
        let (moves, moved) = watch::channel(0);
        let account = Arc::new(Mutex::new(Account::new(writers)));
        (Self { account, endpoints: endpoints.into(), stop: stopped, moves: moved }, Conductor { stop, moves })
    }

    pub(super) fn account(&self) -> MutexGuard<'_, Account> {
        self.account.lock().expect("no code panics while it holds this")
    }

    /// The account, at the end, when nobody else has it.
    pub(super) fn into_account(self) -> anyhow::Result<Account> {
        let account = Arc::into_inner(self.account).context("somebody still holds the account")?;
        account.into_inner().map_err(|_| anyhow!("the account is broken"))
    }

    pub(super) fn is_stopped(&self) -> bool {
        *self.stop.borrow()
    }

    /// A client that knows all nodes.
    pub(super) fn client(&self) -> ClientBuilder {
        Client::builder().endpoints(self.endpoints.iter().cloned())
    }

    /// A client that knows this node alone, counted in turn. It goes to the primary too when the node refers it there.
    pub(super) fn client_of(&self, turn: usize) -> ClientBuilder {
        Client::builder().endpoints([&self.endpoints[turn % self.endpoints.len()]])
    }
}

/// Tasks that must not end with an error.
pub(super) type Tasks = JoinSet<anyhow::Result<()>>;

/// The error of a task that has ended with one; pending as long as there is none.
pub(super) async fn failure(tasks: &mut Tasks) -> anyhow::Error {
    loop {
        match tasks.join_next().await {
            Some(Ok(Ok(()))) => {}
            Some(Ok(Err(error))) => return error,
            Some(Err(error)) => return anyhow!(error).context("a part of the load panicked"),
            None => std::future::pending().await,
        }
    }
}

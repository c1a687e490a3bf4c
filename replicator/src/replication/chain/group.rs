//! The configuration group: a small Raft group of all replicas and witnesses, which keeps the record.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use replicator_chain::{Command, Record, Verdict};
use replicator_types::codec::{self, Format};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::UnboundedSender;

use super::Input;
use crate::replication::{ApplySink, Committed};

/// An entry of the group's log.
#[derive(Serialize, Deserialize)]
pub(super) struct LoggedCommand(pub(super) Command);

impl Format for LoggedCommand {
    const WHAT: &'static str = "chain command";
    const VERSION: u8 = 2;
}

pub(super) fn encode(command: Command) -> Bytes {
    codec::encode(&LoggedCommand(command)).into()
}

/// Applies the group's entries to the record, and tells of each change.
pub(super) struct RecordSink {
    record: Mutex<Record>,
    inputs: UnboundedSender<Input>,
}

impl RecordSink {
    pub(super) fn new(inputs: UnboundedSender<Input>) -> Arc<Self> {
        Arc::new(Self { record: Mutex::default(), inputs })
    }
}

impl ApplySink for RecordSink {
    fn apply(&self, batch: Vec<Committed>) -> BoxFuture<'static, ()> {
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        for (position, entry) in batch {
            let Some(entry) = entry else { continue };
            match codec::decode::<LoggedCommand>(&entry) {
                Ok(LoggedCommand(command)) => {
                    tracing::debug!(%position, ?command, "the configuration group has decided");
                    if record.apply(command) == Verdict::Done {
                        let _ = self.inputs.send(Input::Recorded(record.clone()));
                    }
                }
                // Written by a newer version: going on without it would make records differ.
                Err(error) => {
                    let what = format!("the configuration group's entry {position} can't be read: {error}");
                    let _ = self.inputs.send(Input::Failed(what));
                    return std::future::pending().boxed();
                }
            }
        }
        std::future::ready(()).boxed()
    }
}

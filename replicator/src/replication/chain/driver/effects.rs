//! Carrying out what the replica asks for.

use replicator_chain::{Configuration, Effect};
use replicator_storage::{Durable, Record as LogRecord, StorageError};
use replicator_types::{LogIndex, Position};

use super::{Driver, Input, Wire};

impl Driver {
    pub(super) fn carry_out(&mut self, effect: Effect) {
        let log = self.parts.log.clone();
        match effect {
            Effect::AppendLog(entries) => {
                let last = entries.last().map(|entry| entry.position);
                let records =
                    entries.into_iter().map(|entry| LogRecord { position: entry.position, payload: entry.payload });
                self.wrote(log.append(records.collect(), self.durable(last)));
            }
            Effect::TruncateLog(last) => {
                let cut = log.truncate_after(last).and_then(|()| log.flush(self.durable(last)));
                self.wrote(cut);
            }
            Effect::StorePromise(promise) => {
                let (promises, inputs) = (self.parts.promises.clone(), self.parts.inputs.clone());
                tokio::task::spawn_blocking(move || {
                    let _ = inputs.send(match promises.save(promise) {
                        Ok(()) => Input::Promised(promise),
                        Err(error) => Input::Failed(error.to_string()),
                    });
                });
            }
            Effect::Send { to, message } => self.send(to, Wire::Message(message)),
            Effect::Committed(position) => drop(self.parts.commit.send_replace(Some(position))),
            Effect::Accepted { number, last } => self.proposals.accepted(number, last),
            Effect::Refused { number, reason } => {
                tracing::debug!(?reason, "refused a proposal");
                self.proposals.refused(number);
            }
            Effect::ReadConfirmed { number, index } => self.answer_read(number, Some(index)),
            Effect::ReadRefused { number } => self.answer_read(number, None),
            Effect::Entered(now) => self.moved_on(&now, "entered the chain"),
            Effect::Left(now) => self.moved_on(&now, "is not in the chain"),
            Effect::Damaged(what) => self.fail(what),
        }
    }

    fn moved_on(&mut self, now: &Configuration, what: &'static str) {
        tracing::info!(epoch = %now.epoch, chain = self.chain_names(&now.chain), "{what}");
        self.proposals.lost_after(now.start, now.epoch);
    }

    fn wrote(&self, result: Result<(), StorageError>) {
        if let Err(error) = result {
            self.fail(error.to_string());
        }
    }

    /// Tells the driver when the log is durable up to `last`.
    fn durable(&self, last: Option<Position>) -> Durable {
        let inputs = self.parts.inputs.clone();
        Box::new(move |result: Result<(), StorageError>| {
            let _ = inputs.send(match result {
                Ok(()) => Input::Durable(last),
                Err(error) => Input::Failed(error.to_string()),
            });
        })
    }

    fn answer_read(&mut self, number: u64, index: Option<LogIndex>) {
        if let Some(reader) = self.reads.remove(&number) {
            let _ = reader.send(index);
        }
    }
}

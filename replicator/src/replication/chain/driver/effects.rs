//! Carrying out what the replica asks for.

use replicator_chain::{Configuration, Effect};
use replicator_storage::{Durable, Record as LogRecord, StorageError};
use replicator_types::{DiskId, LogIndex, Position};

use super::{super::applying::Committable, Driver, Input, Wire};

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
                tokio::spawn(async move {
                    let _ = inputs.send(match tokio::task::spawn_blocking(move || promises.save(promise)).await {
                        Ok(Ok(())) => Input::Promised(promise),
                        Ok(Err(error)) => Input::Failed(error.to_string()),
                        Err(panicked) => Input::Failed(panicked.to_string()),
                    });
                });
            }
            Effect::Send { to, message } => self.send(to, Wire::Message(message)),
            Effect::GetImage { from, at_least } => self.get_image(from, at_least),
            Effect::EnterImage(position) => {
                let entered = log.purge_through(position).and_then(|()| log.flush(self.durable(log.ends().last)));
                self.wrote(entered);
                self.parts.commit.send_replace(Committable { image: Some(position), to: Some(position) });
            }
            Effect::Committed(position) => self.parts.commit.send_modify(|committable| committable.to = Some(position)),
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

    fn get_image(&self, from: DiskId, at_least: Position) {
        let (got, inputs) = (self.parts.images.get(at_least), self.parts.inputs.clone());
        tokio::spawn(async move {
            let got = got.await.map(|image| image.position);
            let got = got.inspect_err(|error| tracing::warn!(%from, error, "no image came; another source is asked"));
            let _ = inputs.send(Input::ImageHere(got.ok()));
        });
    }

    /// Not durably at once: what comes back after a crash is purged with the next image.
    pub(super) fn purge(&self, through: LogIndex) {
        let log = &self.parts.log;
        let purged = log.read(through, through.next(), 0).and_then(|records| match records.first() {
            Some(record) => log.purge_through(record.position),
            None => Ok(()), // Purged before.
        });
        self.wrote(purged);
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

//! openraft's view of our log and of the vote in `meta`.

use std::{
    fmt, io,
    ops::{Bound, RangeBounds},
    sync::{Arc, Mutex, PoisonError},
};

use futures::{Stream, StreamExt, TryStreamExt, stream};
use openraft::{
    OptionalSend, RaftLogReader,
    storage::{IOFlushed, LogState, RaftLogStorage},
};
use replicator_storage::{Log, StorageError};
use replicator_types::{LogIndex, codec};

use super::types::{Entry, LogId, SavedVote, TypeConfig, Vote, log_id, position, to_entry, to_record};
use crate::replication::VoteStore;

/// How many bytes of payload one replication message carries, about.
const READ_BYTES_MAX: usize = 4 << 20;

/// Shared by the group's core and its replication tasks.
#[derive(Clone)]
pub(super) struct LogStore {
    log: Arc<dyn Log>,
    votes: Arc<dyn VoteStore>,
    vote: Arc<Mutex<Option<Vote>>>,
}

impl LogStore {
    /// Reads the saved vote.
    pub(super) fn new(log: Arc<dyn Log>, votes: Arc<dyn VoteStore>) -> io::Result<Self> {
        let vote = votes.vote().map(|bytes| codec::decode::<SavedVote>(&bytes)).transpose().map_err(invalid)?;
        Ok(Self { log, votes, vote: Arc::new(Mutex::new(vote.map(|saved| saved.0))) })
    }

    fn entries(&self, from: u64, to: u64, bytes_max: usize) -> io::Result<Vec<Entry>> {
        let records = self.log.read(LogIndex(from), LogIndex(to), bytes_max).map_err(failed)?;
        records.into_iter().map(|record| to_entry(record).map_err(invalid)).collect()
    }

    fn flushed(&self) -> io::Result<tokio::sync::oneshot::Receiver<Result<(), StorageError>>> {
        let (done, flushed) = tokio::sync::oneshot::channel();
        self.log.flush(Box::new(move |result| drop(done.send(result)))).map_err(failed)?;
        Ok(flushed)
    }
}

fn invalid(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn failed(error: StorageError) -> io::Error {
    io::Error::other(error)
}

fn range_of(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let from = match range.start_bound() {
        Bound::Included(&from) => from,
        Bound::Excluded(&before) => before + 1,
        Bound::Unbounded => 0,
    };
    let to = match range.end_bound() {
        Bound::Included(&last) => last.saturating_add(1),
        Bound::Excluded(&to) => to,
        Bound::Unbounded => u64::MAX,
    };
    (from, to)
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> Result<Vec<Entry>, io::Error>
    where
        RB: RangeBounds<u64> + Clone + fmt::Debug + OptionalSend,
    {
        let (from, to) = range_of(&range);
        self.entries(from, to, usize::MAX)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        self.entries(start, end, READ_BYTES_MAX)
    }

    /// In pieces: at a start, the range is the whole log.
    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = Result<Entry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + fmt::Debug + OptionalSend,
    {
        let (from, to) = range_of(&range);
        let store = self.clone();
        let pieces = stream::try_unfold(from, move |from| {
            let piece = if from < to { store.entries(from, to, READ_BYTES_MAX) } else { Ok(Vec::new()) };
            std::future::ready(piece.map(|piece| {
                let last = piece.last()?.log_id.index;
                Some((stream::iter(piece.into_iter().map(Ok)), last + 1))
            }))
        });
        pieces.try_flatten().boxed()
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(*self.vote.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let ends = self.log.ends();
        Ok(LogState { last_purged_log_id: ends.purged.map(log_id), last_log_id: ends.last.map(log_id) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    /// Waits for every earlier log write first: votes and entries must reach the disk in order (safety rule 4).
    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.flushed()?.await.map_err(io::Error::other)?.map_err(failed)?;
        let (votes, bytes) = (self.votes.clone(), codec::encode(&SavedVote(*vote)));
        tokio::task::spawn_blocking(move || votes.save_vote(bytes)).await.map_err(io::Error::other)?.map_err(failed)?;
        *self.vote.lock().unwrap_or_else(PoisonError::into_inner) = Some(*vote);
        Ok(())
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let records = entries.into_iter().map(to_record).collect();
        let done = Box::new(move |result: Result<(), StorageError>| callback.io_completed(result.map_err(failed)));
        self.log.append(records, done).map_err(failed)
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        self.log.truncate_after(last.as_ref().map(position)).map_err(failed)
    }

    async fn purge(&mut self, through: LogId) -> Result<(), io::Error> {
        self.log.purge_through(position(&through)).map_err(failed)
    }
}

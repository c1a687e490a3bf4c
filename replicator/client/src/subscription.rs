//! Events that the module pushes, in order and without doubles, from whichever node serves them.

use bytes::Bytes;
use futures::{Stream, stream};
use replicator_proto::replicator::v1::{self as pb, subscribe_response::Item};
use replicator_types::{Lineage, LogIndex};
use tokio::time::Instant;
use tonic::{Status, Streaming};

use crate::{
    call::{Attempts, after},
    client::{Client, service},
    error::{Error, Result},
    pool::NodeRef,
    verdict,
};

/// A place in the events of a history: that of the last event seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cursor {
    /// The history.
    pub lineage: Lineage,
    /// The log index of the event.
    pub log_index: LogIndex,
    /// Its ordinal among the events of that log index.
    pub ordinal: u32,
}

impl From<pb::Cursor> for Cursor {
    fn from(cursor: pb::Cursor) -> Self {
        Self { lineage: Lineage(cursor.lineage), log_index: LogIndex(cursor.log_index), ordinal: cursor.ordinal }
    }
}

impl From<Cursor> for pb::Cursor {
    fn from(cursor: Cursor) -> Self {
        Self { lineage: cursor.lineage.0, log_index: cursor.log_index.0, ordinal: cursor.ordinal }
    }
}

/// An event that the module pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Push {
    /// Its place: give it to [`Client::subscribe`] to go on after it.
    pub cursor: Cursor,
    /// The topic it was pushed to; empty if it was pushed to the session.
    pub topic: String,
    /// What the module pushed.
    pub payload: Bytes,
}

/// What a subscription brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// An event of the log: kept, in order, at least once.
    Push(Push),
    /// A passing event, that the module emitted while it answered a query: at most once, to those who listen at that
    /// moment, in no order with the others. It has no place, and moves no cursor.
    Ephemeral {
        /// The topic it was pushed to; empty if it was pushed to the session.
        topic: String,
        /// What the module pushed.
        payload: Bytes,
    },
}

/// The events of a session and of topics. Made by [`Client::subscribe`].
///
/// When its node fails, it goes on at another one after the last event returned, so each event is returned once, in
/// order, as long as the cluster keeps it. A process that goes on after a restart gives the last cursor that it has
/// dealt with, and may then see events again that it had seen and not yet saved: at least once.
///
/// ```no_run
/// # async fn example(client: replicator_client::Client) -> replicator_client::Result<()> {
/// let mut events = client.subscribe(None, ["news"], None);
/// while let Some(push) = events.next().await {
///     let push = push?;
///     println!("{:?}: {:?}", push.cursor, push.payload);
/// }
/// # Ok(())
/// # }
/// ```
///
/// With passing events, such as "bob is typing":
///
/// ```no_run
/// # async fn example(client: replicator_client::Client) -> replicator_client::Result<()> {
/// use replicator_client::Event;
///
/// let mut events = client.subscribe(None, ["news"], None);
/// while let Some(event) = events.next_event().await {
///     match event? {
///         Event::Push(push) => println!("{:?}: {:?}", push.cursor, push.payload),
///         Event::Ephemeral { topic, payload } => println!("passing, on {topic}: {payload:?}"),
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Subscription {
    client: Client,
    session_id: Bytes,
    topics: Vec<String>,
    cursor: Option<Cursor>,
    stream: Option<Inbound>,
    /// Whether the stream has said where it begins.
    established: bool,
    /// Whether no attempt can succeed.
    ended: bool,
}

/// A stream from a node.
#[derive(Debug)]
struct Inbound {
    node: NodeRef,
    messages: Streaming<pb::SubscribeResponse>,
    /// Whether anything came on it.
    served: bool,
}

/// What a stream brought.
enum Arrival {
    Event(Event),
    Progress,
}

impl Subscription {
    pub(crate) fn new(client: Client, session_id: Bytes, topics: Vec<String>, cursor: Option<Cursor>) -> Self {
        Self { client, session_id, topics, cursor, stream: None, established: false, ended: false }
    }

    /// The next event of the log; passing ones are left out. `None` after an error that no attempt can mend.
    ///
    /// Can be dropped before it returns, as in `select!`, without losing an event.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if no node serves the subscription until the client's deadline; the next call tries
    /// again. [`Error::CursorExpired`], [`Error::SessionExpired`], [`Error::LineageMismatch`] and other refusals end it.
    pub async fn next(&mut self) -> Option<Result<Push>> {
        loop {
            match self.next_event().await? {
                Ok(Event::Push(push)) => return Some(Ok(push)),
                Ok(Event::Ephemeral { .. }) => {}
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// The next event, be it of the log or passing. `None` after an error that no attempt can mend.
    ///
    /// Can be dropped before it returns, as in `select!`, without losing an event.
    ///
    /// # Errors
    /// As [`Subscription::next`].
    pub async fn next_event(&mut self) -> Option<Result<Event>> {
        while !self.ended {
            match self.arrival().await {
                Ok(Arrival::Event(event)) => return Some(Ok(event)),
                Ok(Arrival::Progress) => {}
                Err(error) => return Some(Err(error)),
            }
        }
        None
    }

    /// Waits until a node has said from where on it delivers: from then on no event is missed. At once if one has.
    ///
    /// # Errors
    /// As [`Subscription::next`].
    pub async fn established(&mut self) -> Result<Cursor> {
        loop {
            match self.cursor {
                Some(cursor) if self.established => return Ok(cursor),
                _ if self.ended => return Err(Error::Protocol { message: "the subscription has ended".into() }),
                _ => {}
            }
            match self.arrival().await? {
                // Nothing was promised before the beginning, and least of all about passing events.
                Arrival::Progress | Arrival::Event(Event::Ephemeral { .. }) => {}
                Arrival::Event(Event::Push(push)) => {
                    return Err(Error::Protocol {
                        message: format!("an event at {:?} came before any progress", push.cursor),
                    });
                }
            }
        }
    }

    /// Everything up to this place has been returned.
    #[must_use]
    pub fn cursor(&self) -> Option<Cursor> {
        self.cursor
    }

    /// The subscription as a [`Stream`].
    pub fn into_stream(self) -> impl Stream<Item = Result<Push>> + Send {
        stream::unfold(self, async |mut subscription| subscription.next().await.map(|item| (item, subscription)))
    }

    /// The next event or progress, from this stream or another one.
    async fn arrival(&mut self) -> Result<Arrival> {
        let client = self.client.clone();
        let mut deadline = after(client.deadline());
        let mut attempts = Attempts::new(client.pool(), client.attempt_timeout());
        loop {
            if self.stream.is_none() {
                self.connect(&mut attempts, deadline).await?;
            }
            if let Some(Inbound { node, messages, served }) = &mut self.stream {
                let node = *node;
                let verdict = match messages.message().await {
                    Ok(Some(message)) => {
                        *served = true;
                        match message.item.and_then(|item| self.take(item)) {
                            Some(arrival) => return Ok(arrival),
                            None => continue, // seen before, or of a later version of the protocol
                        }
                    }
                    Ok(None) => verdict::of_status(Status::unavailable("the node ended the stream"), 0),
                    Err(status) => verdict::of_status(status, 0),
                };
                if *served {
                    // It may have served for hours: the search for another one begins now.
                    attempts.succeeded();
                    deadline = after(client.deadline());
                }
                self.stream = None;
                if let Err(error) = attempts.judged(node, verdict) {
                    return Err(self.end(error));
                }
            }
            if !attempts.pause(deadline).await {
                return Err(attempts.exhausted().into());
            }
        }
    }

    /// Makes one attempt to open a stream.
    async fn connect(&mut self, attempts: &mut Attempts<'_>, deadline: Instant) -> Result<()> {
        let request = pb::SubscribeRequest {
            session_id: self.session_id.clone(),
            topics: self.topics.clone(),
            after: self.cursor.map(Into::into),
        };
        let opened =
            attempts.attempt(deadline, 0, |channel| async move { service(channel).subscribe(request).await }).await;
        match opened {
            Ok(opened) => {
                self.stream =
                    opened.map(|(node, response)| Inbound { node, messages: response.into_inner(), served: false });
                Ok(())
            }
            Err(error) => Err(self.end(error)),
        }
    }

    /// Moves the cursor over `item`. `None`: seen before.
    fn take(&mut self, item: Item) -> Option<Arrival> {
        match item {
            Item::Progress(progress) => {
                let progress = Cursor::from(progress);
                self.established = true;
                self.cursor = self.cursor.max(Some(progress));
                Some(Arrival::Progress)
            }
            Item::Ephemeral(pb::EphemeralPush { topic, payload }) => {
                Some(Arrival::Event(Event::Ephemeral { topic, payload }))
            }
            Item::Push(pb::Push { cursor, topic, payload }) => {
                let cursor = Cursor::from(cursor.unwrap_or_default());
                if self.cursor.is_some_and(|last| cursor <= last) {
                    return None;
                }
                self.cursor = Some(cursor);
                Some(Arrival::Event(Event::Push(Push { cursor, topic, payload })))
            }
        }
    }

    fn end(&mut self, error: Error) -> Error {
        self.ended = true;
        error
    }
}

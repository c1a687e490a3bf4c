//! What comes without being asked for: pushed events, and every few seconds how things stand.

use std::time::Duration;

use prost::Message as _;
use replicator_client::{Client, Consistency, Cursor, Error, Event as Arrived, Session};
use replicator_proto::chat::v1::{self as chat, ChatPush, ChatQuery, chat_push, chat_query};
use tokio::{sync::mpsc, task::JoinHandle};

use super::{Event, Life};
use crate::account::{Reply, answer};

/// How often it is asked which node answers, and how many messages are unread: a query, answered from memory.
const PULSE: Duration = Duration::from_secs(5);
/// How long a node may take for that.
const PULSE_MAX: Duration = Duration::from_secs(2);

/// What came.
pub(super) enum Fed {
    /// From here on, nothing is missed.
    From,
    /// An event, and how far all events have come with it.
    Push(chat_push::Event, Option<Cursor>),
    /// An event that passes.
    Passing(chat_push::Event),
    /// Events were missed: they came too long ago. Another `From` follows.
    Missed,
    /// No server can be reached, and why. It is tried again.
    Lost(String),
    /// No more comes.
    Ended(Error),
}

/// How things stand.
pub(super) struct Pulse {
    pub(super) node: String,
    pub(super) unread: u64,
}

/// A task that ends when this is dropped.
pub(super) struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Starts to listen to `session`, from now on.
pub(super) fn listen(life: Life, client: &Client, session: Session, events: mpsc::Sender<Event>) -> Task {
    let client = client.clone();
    Task(tokio::spawn(async move {
        while subscribe(life, &client, &session, &events).await {
            // What was missed can't be had any more: on with what comes.
        }
    }))
}

/// Passes events on until they end. True: because the place is no longer kept where they went on.
async fn subscribe(life: Life, client: &Client, session: &Session, events: &mpsc::Sender<Event>) -> bool {
    let mut subscription = client.subscribe(Some(session), [] as [String; 0], None);
    let mut began = false;
    loop {
        let next = if began {
            match subscription.next_event().await {
                Some(next) => next.map(Some),
                None => return false,
            }
        } else {
            subscription.established().await.map(|_| None)
        };
        let fed = match next {
            Ok(None) => {
                began = true;
                Fed::From
            }
            Ok(Some(Arrived::Push(push))) => match event(&push.payload) {
                Some(event) => Fed::Push(event, subscription.cursor()),
                None => continue,
            },
            Ok(Some(Arrived::Ephemeral { payload, .. })) => match event(&payload) {
                Some(event) => Fed::Passing(event),
                None => continue,
            },
            Err(Error::Unavailable { cause, .. }) => Fed::Lost(cause.message().to_owned()),
            Err(Error::CursorExpired { .. }) => {
                let _ = events.send(Event::Fed(life, Fed::Missed)).await; // the next one notices
                return true;
            }
            Err(error) => {
                let _ = events.send(Event::Fed(life, Fed::Ended(error))).await; // nobody is left to tell
                return false;
            }
        };
        if events.send(Event::Fed(life, fed)).await.is_err() {
            return false;
        }
    }
}

/// The event in a payload, unless it is of a later version.
fn event(payload: &[u8]) -> Option<chat_push::Event> {
    ChatPush::decode(payload).ok()?.event
}

/// Starts to ask how things stand.
pub(super) fn pulse(
    life: Life,
    client: &Client,
    session: Session,
    account: String,
    events: mpsc::Sender<Event>,
) -> Task {
    let client = client.with_deadline(PULSE_MAX);
    Task(tokio::spawn(async move {
        let query = ChatQuery { action: Some(chat_query::Action::WhoAmI(chat::WhoAmI {})) }.encode_to_vec();
        loop {
            let answered = client.query(query.clone(), Consistency::Session, Some(&session)).await;
            let pulse = match answered {
                Ok(answered) => answer(&answered.response, &account).map(|reply| {
                    let unread = if let Reply::LoggedIn(me) = reply { me.unread } else { 0 };
                    Pulse { node: answered.node_id, unread }
                }),
                Err(error) => Err(crate::failure::explain(error, &account)),
            };
            if events.send(Event::Pulse(life, pulse)).await.is_err() {
                return;
            }
            tokio::time::sleep(PULSE).await;
        }
    }))
}

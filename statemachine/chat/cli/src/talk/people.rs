//! Others: who is known, who is here, who is typing; and the notices that tell them the same of the user.
//!
//! Notices are queries that push. They cost no place in the log, and one that is lost does no harm, so each is tried
//! briefly and never again.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use prost::Message as _;
use replicator_client::{Client, Consistency, Session};
use replicator_proto::chat::v1::{Announce, ChatQuery, Presence, Typing, chat_query::Action};
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};

/// The most accounts that one announcement may name.
const KNOWN_MAX: usize = 100;
/// How often others are told that the user types.
const TYPING_EVERY: Duration = Duration::from_secs(3);
/// How long somebody counts as typing after they were last said to.
const TYPING_FOR: Duration = Duration::from_secs(6);
/// How often the same one is answered that the user is here.
const ANSWER_EVERY: Duration = Duration::from_secs(1);
/// How long a notice is tried.
const NOTICE_MAX: Duration = Duration::from_secs(2);
/// Notices that wait; more are left out.
const NOTICES_MAX: usize = 16;

/// Sends notices, one at a time.
pub(super) struct Notices {
    queue: mpsc::Sender<Action>,
    sending: JoinHandle<()>,
}

impl Notices {
    /// Starts to send on behalf of `session`, until this is dropped and all are sent.
    pub(super) fn start(client: &Client, session: Session) -> Self {
        let client = client.with_deadline(NOTICE_MAX);
        let (queue, mut waiting) = mpsc::channel(NOTICES_MAX);
        let sending = tokio::spawn(async move {
            while let Some(action) = waiting.recv().await {
                let query = ChatQuery { action: Some(action) }.encode_to_vec();
                let _ = client.query(query, Consistency::Session, Some(&session)).await; // the next one may do better
            }
        });
        Self { queue, sending }
    }

    fn send(&self, action: Action) {
        let _ = self.queue.try_send(action); // there are enough of them on their way
    }

    /// Ends when all notices have been sent or given up.
    pub(super) async fn finish(self) {
        drop(self.queue);
        let _ = timeout(NOTICE_MAX, self.sending).await;
    }
}

/// The others, as far as they are known.
#[derive(Default)]
pub(super) struct People {
    known: BTreeSet<String>,
    here: BTreeSet<String>,
    /// Until when they count as typing.
    typing: BTreeMap<String, Instant>,
    answered: BTreeMap<String, Instant>,
    /// When the user was last said to type, and to whom.
    told: Option<(String, Instant)>,
}

impl People {
    /// Notes somebody worth telling that the user is here.
    pub(super) fn know(&mut self, name: &str) {
        if self.known.len() < KNOWN_MAX {
            self.known.insert(name.to_owned());
        }
    }

    pub(super) fn known(&self) -> impl Iterator<Item = &String> {
        self.known.iter()
    }

    pub(super) fn here(&self) -> impl Iterator<Item = &String> {
        self.here.iter()
    }

    /// Tells `to` that the user types, unless they were told so just now.
    pub(super) fn tell_typing(&mut self, to: &str, notices: &Notices, now: Instant) {
        let lately = |(told, at): &(String, Instant)| told == to && now.duration_since(*at) < TYPING_EVERY;
        if !self.told.as_ref().is_some_and(lately) {
            self.told = Some((to.to_owned(), now));
            notices.send(Action::Typing(Typing { to: to.to_owned() }));
        }
    }

    /// The message is sent: what is typed next is another one.
    pub(super) fn typed(&mut self) {
        self.told = None;
    }

    /// Tells everybody known that the user is here, or goes. `asks`: forgets who is here, and asks them.
    pub(super) fn announce(&mut self, presence: Presence, asks: bool, notices: &Notices) {
        if asks {
            self.here.clear();
        }
        if !self.known.is_empty() {
            let to = self.known.iter().cloned().collect();
            notices.send(Action::Announce(Announce { presence: presence.into(), to, asks }));
        }
    }

    /// Tells somebody that the user is here, and asks whether they are.
    pub(super) fn greet(&self, name: &str, notices: &Notices) {
        let to = vec![name.to_owned()];
        notices.send(Action::Announce(Announce { presence: Presence::Here.into(), to, asks: true }));
    }

    /// Takes what somebody said of themselves, and answers if they ask. True: it is news.
    pub(super) fn heard(
        &mut self,
        name: &str,
        presence: Presence,
        asks: bool,
        notices: &Notices,
        now: Instant,
    ) -> bool {
        self.answered.retain(|_, at| now.duration_since(*at) < ANSWER_EVERY);
        if asks && self.answered.len() < KNOWN_MAX && !self.answered.contains_key(name) {
            self.answered.insert(name.to_owned(), now);
            let to = vec![name.to_owned()];
            notices.send(Action::Announce(Announce { presence: Presence::Here.into(), to, asks: false }));
        }
        match presence {
            Presence::Here if self.here.len() < 10 * KNOWN_MAX => self.here.insert(name.to_owned()),
            Presence::Gone => {
                self.typing.remove(name);
                self.here.remove(name)
            }
            _ => false,
        }
    }

    /// Notes that somebody types.
    pub(super) fn types(&mut self, name: &str, now: Instant) {
        if self.typing.len() < KNOWN_MAX {
            self.typing.insert(name.to_owned(), now + TYPING_FOR);
        }
    }

    /// Notes that somebody has sent what they typed.
    pub(super) fn wrote(&mut self, name: &str) {
        self.typing.remove(name);
    }

    /// Those who type at this moment.
    pub(super) fn typing(&mut self, now: Instant) -> impl Iterator<Item = &String> {
        self.typing.retain(|_, until| *until > now);
        self.typing.keys()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notices() -> (Notices, mpsc::Receiver<Action>) {
        let (queue, receiver) = mpsc::channel(NOTICES_MAX);
        (Notices { queue, sending: tokio::spawn(async {}) }, receiver)
    }

    #[tokio::test]
    async fn typing_is_told_every_few_seconds_and_anew_after_a_message() {
        let (notices, mut sent) = notices();
        let mut people = People::default();
        let now = Instant::now();
        let mut told = |people: &mut People, to: &str, seconds: u64| {
            people.tell_typing(to, &notices, now + Duration::from_secs(seconds));
            sent.try_recv().is_ok()
        };
        assert!(told(&mut people, "bob", 0));
        assert!(!told(&mut people, "bob", 2));
        assert!(told(&mut people, "eve", 2), "somebody else");
        assert!(!told(&mut people, "eve", 4));
        assert!(told(&mut people, "eve", 6));
        people.typed();
        assert!(told(&mut people, "eve", 7));
    }

    #[tokio::test]
    async fn who_types_stops_by_sending_by_going_or_by_time() {
        let (notices, _sent) = notices();
        let mut people = People::default();
        let now = Instant::now();
        for name in ["ada", "bob", "eve"] {
            people.types(name, now);
        }
        people.wrote("ada");
        assert_eq!(people.typing(now).collect::<Vec<_>>(), ["bob", "eve"]);
        people.heard("bob", Presence::Gone, false, &notices, now);
        assert_eq!(people.typing(now + Duration::from_secs(5)).collect::<Vec<_>>(), ["eve"]);
        assert_eq!(people.typing(now + TYPING_FOR).count(), 0);
    }

    #[tokio::test]
    async fn who_asks_is_answered_alone_and_not_too_often() {
        let (notices, mut sent) = notices();
        let mut people = People::default();
        let now = Instant::now();
        assert!(people.heard("bob", Presence::Here, true, &notices, now));
        assert!(!people.heard("bob", Presence::Here, true, &notices, now), "no news");
        let answer = Announce { presence: Presence::Here.into(), to: vec!["bob".to_owned()], asks: false };
        assert_eq!(sent.try_recv().ok(), Some(Action::Announce(answer)));
        assert!(sent.try_recv().is_err());
        people.heard("bob", Presence::Here, true, &notices, now + ANSWER_EVERY);
        assert!(sent.try_recv().is_ok());
        assert!(people.heard("bob", Presence::Gone, false, &notices, now));
        assert_eq!(people.here().count(), 0);
    }

    #[tokio::test]
    async fn a_bounded_number_of_people_is_told() {
        let (notices, mut sent) = notices();
        let mut people = People::default();
        people.announce(Presence::Here, true, &notices);
        assert!(sent.try_recv().is_err(), "nobody to tell");
        (0..200).for_each(|n| people.know(&n.to_string()));
        people.announce(Presence::Here, true, &notices);
        let Ok(Action::Announce(announce)) = sent.try_recv() else { panic!("nothing was told") };
        assert_eq!(announce.to.len(), KNOWN_MAX);
    }
}

//! A chat server with people in it.

use chat_module::Chat;
use ed25519_dalek::{Signer, SigningKey};
use prost::Message as _;
use replicator_proto::chat::v1::{
    ChatErrorCode, ChatPush, ChatQuery, ChatRequest, ChatResponse, Edit, ListMessages, Login, Message, Messages, React,
    ReadNext, Register, Send, Sent, chat_push::Event, chat_query, chat_request::Action,
    chat_response::Result as Answer,
};
use statemachine::{
    SessionId, StateMachine,
    testing::{Harness, Outcome},
};

/// A server, and whoever asks it something.
pub(crate) struct World<M = Chat> {
    pub(crate) harness: Harness<M>,
}

pub(crate) fn key(name: &str) -> SigningKey {
    let mut bytes = [1; 32];
    bytes[..name.len().min(32)].copy_from_slice(&name.as_bytes()[..name.len().min(32)]);
    SigningKey::from_bytes(&bytes)
}

pub(crate) fn register(name: &str) -> Action {
    let public_key = key(name).verifying_key().to_bytes().to_vec();
    Action::Register(Register { account: name.to_owned(), public_key })
}

/// A login of `session` as `account`, signed with the key of `signer`.
pub(crate) fn login(session: SessionId, account: &str, signer: &str) -> Action {
    let message = [b"chat.v1 login\0", &session.0[..], account.as_bytes()].concat();
    Action::Login(Login { account: account.to_owned(), signature: key(signer).sign(&message).to_bytes().to_vec() })
}

pub(crate) fn send(to: &str, text: &str) -> Action {
    Action::Send(Send { to: to.to_owned(), text: text.to_owned() })
}

pub(crate) fn react(message_id: u64, reaction: &str) -> Action {
    Action::React(React { message_id, reaction: reaction.to_owned() })
}

pub(crate) fn edit(to: &str, message_id: u64, text: &str) -> Action {
    Action::Edit(Edit { to: to.to_owned(), message_id, text: text.to_owned() })
}

/// The events that an outcome pushed to a session.
pub(crate) fn events(outcome: &Outcome, session: SessionId) -> Vec<Event> {
    let decode = |payload| ChatPush::decode(payload).expect("a push is a ChatPush").event.expect("a push has an event");
    outcome.pushed_to(session).map(decode).collect()
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with_config("")
    }

    pub(crate) fn with_config(config: &str) -> Self {
        Self { harness: Harness::new(config.as_bytes()).expect("the configuration is right") }
    }

    /// A server with one session logged in for each name.
    pub(crate) fn of<const N: usize>(names: [&str; N]) -> (Self, [SessionId; N]) {
        Self::running(names)
    }
}

impl<M: StateMachine> World<M> {
    /// The same, of a server that is another version.
    pub(crate) fn running<const N: usize>(names: [&str; N]) -> (Self, [SessionId; N]) {
        let mut world = Self { harness: Harness::new(b"").expect("no configuration is a right one") };
        let sessions = names.map(|name| world.newcomer(name));
        (world, sessions)
    }

    /// Puts another version in its place.
    pub(crate) fn swap<N: StateMachine>(self) -> World<N> {
        World { harness: self.harness.swap(b"").expect("the other version reads this one's snapshot") }
    }

    pub(crate) fn connect(&mut self) -> SessionId {
        self.harness.connect().session
    }

    /// Registers, and logs in.
    pub(crate) fn newcomer(&mut self, name: &str) -> SessionId {
        let session = self.connect();
        self.ask(session, register(name));
        self.ask(session, login(session, name, name));
        session
    }

    /// One more session of an account.
    pub(crate) fn another_session(&mut self, name: &str) -> SessionId {
        let session = self.connect();
        self.ask(session, login(session, name, name));
        session
    }

    pub(crate) fn outcome(&mut self, session: SessionId, action: Action) -> Outcome {
        self.harness.request(session, &ChatRequest { action: Some(action) }.encode_to_vec())
    }

    pub(crate) fn answer(&mut self, session: SessionId, action: Action) -> Answer {
        read(&self.outcome(session, action))
    }

    /// Asks for what must be done.
    #[track_caller]
    pub(crate) fn ask(&mut self, session: SessionId, action: Action) -> Answer {
        match self.answer(session, action) {
            Answer::Error(error) => panic!("refused: {}", error.message),
            answer => answer,
        }
    }

    /// Asks for what must be refused, without any effect.
    #[track_caller]
    pub(crate) fn refused(&mut self, session: SessionId, action: Action) -> ChatErrorCode {
        let before = self.harness.snapshot();
        let outcome = self.outcome(session, action);
        assert_eq!(outcome.pushes, [], "a refused request pushes nothing");
        assert_eq!(self.harness.snapshot(), before, "a refused request changes nothing");
        match read(&outcome) {
            Answer::Error(error) => {
                assert!(!error.message.is_empty());
                error.code()
            }
            answer => panic!("taken: {answer:?}"),
        }
    }

    pub(crate) fn query(&mut self, session: SessionId, action: chat_query::Action) -> Answer {
        read(&self.harness.query(session, &ChatQuery { action: Some(action) }.encode_to_vec()))
    }

    /// Sends, and returns the message's id.
    #[track_caller]
    pub(crate) fn send(&mut self, session: SessionId, to: &str, text: &str) -> u64 {
        match self.ask(session, send(to, text)) {
            Answer::Sent(Sent { message_id, .. }) => message_id,
            answer => panic!("{answer:?}"),
        }
    }

    /// The whole mailbox.
    #[track_caller]
    pub(crate) fn mailbox(&mut self, session: SessionId) -> Vec<Message> {
        messages(self.query(session, chat_query::Action::ListMessages(ListMessages::default()))).messages
    }

    #[track_caller]
    pub(crate) fn read_next(&mut self, session: SessionId, limit: u32) -> Messages {
        messages(self.ask(session, Action::ReadNext(ReadNext { limit })))
    }
}

pub(crate) fn read(outcome: &Outcome) -> Answer {
    let response = ChatResponse::decode(outcome.reply()).expect("a reply is a ChatResponse");
    response.result.expect("a response has a result")
}

#[track_caller]
pub(crate) fn messages(answer: Answer) -> Messages {
    match answer {
        Answer::Messages(messages) => messages,
        answer => panic!("{answer:?}"),
    }
}

pub(crate) fn texts(messages: &[Message]) -> Vec<&str> {
    messages.iter().map(|message| message.text.as_str()).collect()
}

//! What always holds, checked after every step of random scripts.

use std::collections::BTreeSet;

use ed25519_dalek::{Signer, SigningKey};
use proptest::prelude::*;
use prost::Message;
use replicator_proto::chat::v1::{
    Announce, ChatQuery, ChatRequest, DeleteAccount, DeleteMessages, Edit, ListAccounts, ListMessages, Login, Logout,
    MarkRead, Presence, React, ReadNext, Register, Send, Typing, WhoAmI, chat_query, chat_request::Action,
};
use statemachine::{SessionId, testing::Harness};

use crate::{Chat, release::SCHEMA};

/// Small limits, so that scripts run into them.
const CONFIG: &[u8] = b"max_text_bytes=1000\nmax_mailbox_messages=4\nmax_accounts=3\nmax_account_sessions=2\n\
                        max_stored_bytes=65536\nmax_answer_bytes=1024";
const NAMES: [&str; 5] = ["ada", "bob", "eve", "no such", "zoë"];
const SESSIONS: usize = 4;

impl Chat {
    fn check(&self) {
        let mut stored_bytes = 0;
        let mut message_ids = BTreeSet::new();
        for (name, account) in &self.accounts.by_name {
            let identity = self.accounts.identity(account.id).expect("every account has an identity");
            assert_eq!(identity.name, *name);
            assert!(account.id < self.accounts.next_id);
            assert!(account.sessions.is_sorted() && account.sessions.len() as u64 <= self.config.account_sessions_max);
            for session in &account.sessions {
                assert_eq!(self.logins.get(*session), Ok(&identity));
            }
            assert!(account.mailbox.len() as u64 <= self.config.mailbox_messages_max);
            for (id, message, _) in account.mailbox.after(0) {
                assert!(id < self.next_message_id && message_ids.insert(id), "message {id} is there once");
                stored_bytes += message.stored_bytes();
            }
        }
        let sessions = self.accounts.by_name.values().map(|account| account.sessions.len());
        assert_eq!(sessions.sum::<usize>(), self.logins.by_session.len());
        assert_eq!(stored_bytes, self.stored_bytes);
        assert!(stored_bytes <= self.config.stored_bytes_max);
        assert!(self.accounts.len() as u64 <= self.config.accounts_max);
    }
}

/// One step of a script. Numbers are chosen modulo what there is.
#[derive(Debug, Clone)]
enum Step {
    Register(usize),
    Login(usize, usize),
    Act(usize, Action),
    Reconnect(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let name = 0..NAMES.len();
    let session = 0..SESSIONS;
    let ids = || prop::collection::vec(0..20u64, 0..4);
    let action = prop_oneof![
        8 => (name.clone(), 0..1_100usize).prop_map(|(to, len)| {
            Action::Send(Send { to: NAMES[to].to_owned(), text: "x".repeat(len) })
        }),
        2 => (0..4u32).prop_map(|limit| Action::ReadNext(ReadNext { limit })),
        1 => ids().prop_map(|message_ids| Action::MarkRead(MarkRead { message_ids })),
        2 => ids().prop_map(|message_ids| Action::DeleteMessages(DeleteMessages { message_ids })),
        2 => (0..20u64, prop_oneof![Just(""), Just("\u{1f44d}"), Just("a b")]).prop_map(|(message_id, reaction)| {
            Action::React(React { message_id, reaction: reaction.to_owned() })
        }),
        2 => (name.clone(), 0..20u64, 0..1_100usize).prop_map(|(to, message_id, len)| {
            Action::Edit(Edit { to: NAMES[to].to_owned(), message_id, text: "y".repeat(len) })
        }),
        1 => Just(Action::Logout(Logout {})),
        1 => Just(Action::DeleteAccount(DeleteAccount {})),
    ];
    let step = prop_oneof![
        2 => name.clone().prop_map(Step::Register),
        4 => (session.clone(), name).prop_map(|(session, name)| Step::Login(session, name)),
        10 => (session.clone(), action).prop_map(|(session, action)| Step::Act(session, action)),
        1 => session.prop_map(Step::Reconnect),
    ];
    prop::collection::vec(step, 0..80)
}

fn key(name: &str) -> SigningKey {
    let mut bytes = [1; 32];
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    SigningKey::from_bytes(&bytes)
}

fn encode(action: Action) -> Vec<u8> {
    ChatRequest { action: Some(action) }.encode_to_vec()
}

fn register(name: &str) -> Vec<u8> {
    let public_key = key(name).verifying_key().to_bytes().to_vec();
    encode(Action::Register(Register { account: name.to_owned(), public_key }))
}

fn login(session: SessionId, name: &str) -> Vec<u8> {
    let message = [b"chat.v1 login\0", &session.0[..], name.as_bytes()].concat();
    let signature = key(name).sign(&message).to_bytes().to_vec();
    encode(Action::Login(Login { account: name.to_owned(), signature }))
}

/// A machine and its sessions.
struct Run {
    harness: Harness<Chat>,
    sessions: Vec<SessionId>,
}

impl Run {
    fn new() -> Self {
        let mut harness = Harness::new(CONFIG).unwrap();
        let sessions = (0..SESSIONS).map(|_| harness.connect().session).collect();
        Self { harness, sessions }
    }

    /// Takes the step, and returns all that was said, and all that can be asked afterwards.
    fn step(&mut self, step: &Step) -> Vec<Vec<u8>> {
        let outcome = match step {
            Step::Register(name) => self.harness.request(self.sessions[0], &register(NAMES[*name])),
            Step::Login(session, name) => {
                let session = self.sessions[*session];
                self.harness.request(session, &login(session, NAMES[*name]))
            }
            Step::Act(session, action) => self.harness.request(self.sessions[*session], &encode(action.clone())),
            Step::Reconnect(session) => {
                let closed = self.harness.disconnect(self.sessions[*session]);
                self.sessions[*session] = self.harness.connect().session;
                closed
            }
        };
        self.harness.machine().check();
        let mut said = vec![outcome.reply().to_vec()];
        said.extend(outcome.pushes.into_iter().map(|push| [&push.to[..], &push.payload].concat()));
        for session in &self.sessions {
            for action in [
                chat_query::Action::ListAccounts(ListAccounts::default()),
                chat_query::Action::ListMessages(ListMessages::default()),
                chat_query::Action::ListMessages(ListMessages { last: true, page_size: 2, ..Default::default() }),
                chat_query::Action::WhoAmI(WhoAmI {}),
                chat_query::Action::Typing(Typing { to: NAMES[0].to_owned() }),
                chat_query::Action::Announce(Announce {
                    presence: Presence::Here.into(),
                    to: NAMES.map(str::to_owned).to_vec(),
                    asks: true,
                }),
            ] {
                let query = ChatQuery { action: Some(action) }.encode_to_vec();
                let answer = self.harness.query(*session, &query);
                said.push(answer.reply().to_vec());
                said.extend(answer.pushes.into_iter().map(|push| [&push.to[..], &push.payload].concat()));
            }
        }
        said
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn scripts_keep_the_invariants_and_always_say_the_same(steps in steps()) {
        let (mut one, mut other) = (Run::new(), Run::new());
        for step in &steps {
            prop_assert_eq!(one.step(step), other.step(step), "{:?}", step);
        }
        prop_assert_eq!(one.harness.snapshot(), other.harness.snapshot());
    }

    #[test]
    fn a_restored_machine_says_what_the_other_says(steps in steps(), at in 0..80usize, max in 1..200usize) {
        let (before, after) = steps.split_at(at.min(steps.len()));
        let (mut one, mut other) = (Run::new(), Run::new());
        for step in before {
            one.step(step);
            other.step(step);
        }
        let chunks = one.harness.snapshot_in_chunks(max);
        let mut restored = Harness::<Chat>::restored(CONFIG, SCHEMA, &chunks).unwrap();
        prop_assert_eq!(restored.snapshot_in_chunks(max), chunks);
        one.harness = one.harness.swap(CONFIG).unwrap();
        one.harness.machine().check();
        for step in after {
            prop_assert_eq!(one.step(step), other.step(step), "{:?}", step);
        }
    }
}

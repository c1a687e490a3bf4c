//! Accounts and logins.

use replicator_proto::chat::v1::{
    AccountDeleted, ChatErrorCode as Code, DeleteAccount, LoggedIn, LoggedOut, Login, Logout, Register, Registered,
    WhoAmI, chat_push::Event, chat_query, chat_request::Action, chat_response::Result as Answer,
};
use statemachine::SessionId;

use crate::world::{World, events, key, login, read, register, send};

const WHO_AM_I: chat_query::Action = chat_query::Action::WhoAmI(WhoAmI {});

fn logged_in(account: &str, unread: u64) -> Answer {
    Answer::LoggedIn(LoggedIn { account: account.to_owned(), unread })
}

fn delete_account() -> Action {
    Action::DeleteAccount(DeleteAccount {})
}

#[test]
fn a_registered_account_can_log_in_and_out() {
    let mut world = World::new();
    let session = world.connect();
    assert_eq!(world.ask(session, register("ada")), Answer::Registered(Registered {}));
    assert_eq!(world.refused(session, send("ada", "hi")), Code::NotLoggedIn);
    assert_eq!(world.ask(session, login(session, "ada", "ada")), logged_in("ada", 0));
    assert_eq!(world.query(session, WHO_AM_I), logged_in("ada", 0));
    assert_eq!(world.ask(session, Action::Logout(Logout {})), Answer::LoggedOut(LoggedOut {}));
    assert_eq!(world.refused(session, Action::Logout(Logout {})), Code::NotLoggedIn);
    assert!(matches!(world.query(session, WHO_AM_I), Answer::Error(error) if error.code() == Code::NotLoggedIn));
}

#[test]
fn a_taken_name_is_refused() {
    let (mut world, [ada]) = World::of(["ada"]);
    assert_eq!(world.refused(ada, register("ada")), Code::AccountExists);
}

#[test]
fn wrong_names_and_keys_are_refused() {
    let mut world = World::new();
    let session = world.connect();
    for name in ["", "a b", "a*", "?", "a\n", &"x".repeat(65)] {
        assert_eq!(world.refused(session, register(name)), Code::Invalid, "{name:?}");
    }
    let good = key("ada").verifying_key().to_bytes().to_vec();
    for public_key in [vec![], good[..31].to_vec(), [&good[..], &[0]].concat(), vec![0; 32], vec![2; 32]] {
        let register = Register { account: "ada".to_owned(), public_key };
        assert_eq!(world.refused(session, Action::Register(register)), Code::Invalid);
    }
}

#[test]
fn too_many_accounts_are_refused() {
    let mut world = World::with_config("max_accounts=2");
    let session = world.connect();
    world.ask(session, register("a"));
    world.ask(session, register("b"));
    assert_eq!(world.refused(session, register("c")), Code::LimitReached);
}

#[test]
fn a_login_needs_the_right_key() {
    let (mut world, [_]) = World::of(["ada"]);
    let session = world.connect();
    assert_eq!(world.refused(session, login(session, "ada", "eve")), Code::WrongPassword);
    assert_eq!(world.refused(session, login(session, "nobody", "nobody")), Code::WrongPassword);
    for len in [0, 63, 65] {
        let login = Login { account: "ada".to_owned(), signature: vec![0; len] };
        assert_eq!(world.refused(session, Action::Login(login)), Code::Invalid);
    }
}

#[test]
fn a_login_copied_from_another_session_is_refused() {
    let (mut world, [ada]) = World::of(["ada"]);
    let eve = world.connect();
    assert_eq!(world.refused(eve, login(ada, "ada", "ada")), Code::WrongPassword);
}

#[test]
fn a_login_for_another_account_is_refused() {
    let mut world = World::new();
    let session = world.connect();
    // The same key, under two names: the name is signed too.
    let public_key = key("ada").verifying_key().to_bytes().to_vec();
    for account in ["ada", "bob"] {
        let register = Register { account: account.to_owned(), public_key: public_key.clone() };
        world.ask(session, Action::Register(register));
    }
    let Action::Login(mut copied) = login(session, "ada", "ada") else { unreachable!() };
    copied.account = "bob".to_owned();
    assert_eq!(world.refused(session, Action::Login(copied)), Code::WrongPassword);
}

#[test]
fn a_session_logs_out_before_it_logs_in_as_another() {
    let (mut world, [ada, _]) = World::of(["ada", "bob"]);
    assert_eq!(world.refused(ada, login(ada, "bob", "bob")), Code::AlreadyLoggedIn);
    assert_eq!(world.ask(ada, login(ada, "ada", "ada")), logged_in("ada", 0), "a repeated login is harmless");
    world.ask(ada, Action::Logout(Logout {}));
    assert_eq!(world.ask(ada, login(ada, "bob", "bob")), logged_in("bob", 0));
}

#[test]
fn a_session_that_ends_is_logged_out() {
    let (mut world, [ada, bob]) = World::of(["ada", "bob"]);
    let second = world.another_session("bob");
    assert_eq!(world.harness.disconnect(second).pushes, []);
    let outcome = world.outcome(ada, send("bob", "hi"));
    assert_eq!(outcome.pushes.len(), 1);
    assert_eq!(events(&outcome, bob).len(), 1);
}

#[test]
fn the_session_of_a_stranger_ends_without_effect() {
    let (mut world, [_]) = World::of(["ada"]);
    let stranger = world.connect();
    let before = world.harness.snapshot();
    assert_eq!(world.harness.disconnect(stranger).reply, None);
    assert_eq!(world.harness.snapshot(), before);
}

#[test]
fn too_many_sessions_of_an_account_are_refused() {
    let mut world = World::with_config("max_account_sessions=2");
    let first = world.newcomer("ada");
    world.another_session("ada");
    let third = world.connect();
    assert_eq!(world.refused(third, login(third, "ada", "ada")), Code::LimitReached);
    world.ask(first, login(first, "ada", "ada"));
    world.ask(first, Action::Logout(Logout {}));
    world.ask(third, login(third, "ada", "ada"));
}

#[test]
fn a_deleted_account_takes_its_mailbox_and_logs_out_its_sessions() {
    let (mut world, [ada, bob]) = World::of(["ada", "bob"]);
    let second = world.another_session("bob");
    world.send(ada, "bob", "one");
    world.send(ada, "bob", "two");
    world.read_next(bob, 1);

    let outcome = world.outcome(bob, delete_account());
    let deleted = AccountDeleted { messages: 2, unread: 1 };
    assert_eq!(read(&outcome), Answer::AccountDeleted(deleted));
    for session in [bob, second] {
        assert_eq!(events(&outcome, session), [Event::AccountDeleted(deleted)]);
        assert_eq!(world.refused(session, delete_account()), Code::NotLoggedIn);
    }
    assert_eq!(world.refused(ada, send("bob", "three")), Code::NoSuchAccount);
    let session = world.connect();
    assert_eq!(world.refused(session, login(session, "bob", "bob")), Code::WrongPassword);
}

#[test]
fn a_name_used_again_inherits_nothing() {
    let (mut world, [ada, bob]) = World::of(["ada", "bob"]);
    world.send(ada, "bob", "secret");
    world.send(bob, "ada", "from the first bob");
    world.ask(bob, delete_account());

    let second_bob = world.newcomer("bob");
    assert_eq!(world.query(second_bob, WHO_AM_I), logged_in("bob", 0));
    world.send(second_bob, "ada", "from the second bob");
    let from_deleted: Vec<bool> = world.read_next(ada, 10).messages.iter().map(|m| m.from_deleted).collect();
    assert_eq!(from_deleted, [true, false]);
}

#[test]
fn a_query_without_a_session_is_nobody() {
    let (mut world, [_]) = World::of(["ada"]);
    let answer = world.query(SessionId::default(), WHO_AM_I);
    assert!(matches!(answer, Answer::Error(error) if error.code() == Code::NotLoggedIn));
}

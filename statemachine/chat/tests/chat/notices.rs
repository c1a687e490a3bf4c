//! What is told in passing: typing and presence.

use prost::Message as _;
use replicator_proto::chat::v1::{
    Announce, ChatErrorCode as Code, ChatQuery, Notified, Presence, PresenceNotice, Typing, TypingNotice,
    chat_push::Event, chat_query::Action, chat_response::Result as Answer,
};
use statemachine::{SessionId, testing::Outcome};

use crate::world::{World, events, read};

fn typing(to: &str) -> Action {
    Action::Typing(Typing { to: to.to_owned() })
}

fn announce<'a>(presence: Presence, asks: bool, to: impl IntoIterator<Item = &'a str>) -> Action {
    let to = to.into_iter().map(str::to_owned).collect();
    Action::Announce(Announce { presence: presence.into(), to, asks })
}

/// Asks, and checks that nothing has changed.
fn ask(world: &mut World, session: SessionId, action: Action) -> Outcome {
    let before = world.harness.snapshot();
    let outcome = world.harness.query(session, &ChatQuery { action: Some(action) }.encode_to_vec());
    assert_eq!(world.harness.snapshot(), before, "a notice changes nothing");
    outcome
}

#[track_caller]
fn refused(world: &mut World, session: SessionId, action: Action) -> Code {
    let outcome = ask(world, session, action);
    assert_eq!(outcome.pushes, [], "a refused notice reaches nobody");
    match read(&outcome) {
        Answer::Error(error) => error.code(),
        answer => panic!("{answer:?}"),
    }
}

fn notified(sessions: u32) -> Answer {
    Answer::Notified(Notified { sessions })
}

#[test]
fn typing_reaches_every_session_of_the_partner_and_nobody_else() {
    let (mut world, [ada, bob, eve]) = World::of(["ada", "bob", "eve"]);
    let second = world.another_session("bob");
    let outcome = ask(&mut world, ada, typing("bob"));
    assert_eq!(read(&outcome), notified(2));
    for session in [bob, second] {
        assert_eq!(events(&outcome, session), [Event::Typing(TypingNotice { from: "ada".to_owned() })]);
    }
    for session in [ada, eve] {
        assert_eq!(events(&outcome, session), []);
    }
}

#[test]
fn typing_to_somebody_who_is_away_reaches_no_session() {
    let (mut world, [ada, bob]) = World::of(["ada", "bob"]);
    let _ = world.harness.disconnect(bob);
    let outcome = ask(&mut world, ada, typing("bob"));
    assert_eq!((read(&outcome), outcome.pushes.len()), (notified(0), 0));
}

#[test]
fn who_writes_to_themselves_is_told_at_their_other_sessions() {
    let (mut world, [ada]) = World::of(["ada"]);
    let second = world.another_session("ada");
    let outcome = ask(&mut world, ada, typing("ada"));
    assert_eq!(read(&outcome), notified(1));
    assert_eq!((events(&outcome, ada).len(), events(&outcome, second).len()), (0, 1));
}

#[test]
fn an_announcement_reaches_those_it_names_once_each() {
    let (mut world, [ada, bob, eve]) = World::of(["ada", "bob", "eve"]);
    let dan = world.newcomer("dan");
    let outcome = ask(&mut world, ada, announce(Presence::Here, true, ["eve", "bob", "nobody", "eve"]));
    assert_eq!(read(&outcome), notified(2));
    let notice = PresenceNotice { account: "ada".to_owned(), presence: Presence::Here.into(), asks: true };
    for session in [bob, eve] {
        assert_eq!(events(&outcome, session), [Event::Presence(notice.clone())]);
    }
    assert_eq!(events(&outcome, dan), []);
    let outcome = ask(&mut world, bob, announce(Presence::Gone, false, ["ada"]));
    let notice = PresenceNotice { account: "bob".to_owned(), presence: Presence::Gone.into(), asks: false };
    assert_eq!(events(&outcome, ada), [Event::Presence(notice)]);
}

#[test]
fn a_notice_reaches_a_bounded_number_of_sessions() {
    let mut world = World::with_config("max_text_bytes=64\nmax_account_sessions=4096");
    let ada = world.newcomer("ada");
    for _ in 0..1_001 {
        world.another_session("ada");
    }
    let outcome = ask(&mut world, ada, typing("ada"));
    assert_eq!((read(&outcome), outcome.pushes.len()), (notified(1_000), 1_000));
}

#[test]
fn wrong_notices_are_refused() {
    let (mut world, [ada]) = World::of(["ada"]);
    let stranger = world.connect();
    for session in [stranger, SessionId::default()] {
        assert_eq!(refused(&mut world, session, typing("ada")), Code::NotLoggedIn);
        assert_eq!(refused(&mut world, session, announce(Presence::Here, false, ["ada"])), Code::NotLoggedIn);
    }
    assert_eq!(refused(&mut world, ada, typing("nobody")), Code::NoSuchAccount);
    assert_eq!(refused(&mut world, ada, announce(Presence::Unspecified, false, ["ada"])), Code::Invalid);
    let unknown = Action::Announce(Announce { presence: 9, to: vec!["ada".to_owned()], asks: false });
    assert_eq!(refused(&mut world, ada, unknown), Code::Invalid);
    let names: Vec<String> = (0..101).map(|i| i.to_string()).collect();
    assert_eq!(
        refused(&mut world, ada, announce(Presence::Here, false, names.iter().map(String::as_str))),
        Code::Invalid
    );
}

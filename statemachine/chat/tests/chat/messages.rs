//! Sending, reading, marking and deleting.

use replicator_proto::chat::v1::{
    ChatErrorCode as Code, DeleteMessages, Deleted, LoggedIn, MarkRead, Marked, Message, ReadNext, Sent, WhoAmI,
    chat_push::Event, chat_query, chat_request::Action, chat_response::Result as Answer,
};
use statemachine::testing::START_TIME_US;

use crate::world::{World, events, read, send, texts};

fn mark_read(message_ids: Vec<u64>) -> Action {
    Action::MarkRead(MarkRead { message_ids })
}

fn delete_messages(message_ids: Vec<u64>) -> Action {
    Action::DeleteMessages(DeleteMessages { message_ids })
}

#[test]
fn a_message_is_pushed_to_every_session_and_waits_in_the_mailbox() {
    let (mut world, [ada, bob]) = World::of(["ada", "bob"]);
    let second = world.another_session("bob");
    let outcome = world.outcome(ada, send("bob", "hello"));
    assert_eq!(read(&outcome), Answer::Sent(Sent { message_id: 1, pushed_to: 2 }));
    let message = Message {
        id: 1,
        from: "ada".to_owned(),
        from_deleted: false,
        text: "hello".to_owned(),
        time_us: START_TIME_US + 9_000,
        unread: true,
        ..Message::default()
    };
    assert_eq!(outcome.pushes.len(), 2);
    for session in [bob, second] {
        assert_eq!(events(&outcome, session), [Event::Message(message.clone())]);
    }
    assert_eq!(world.read_next(bob, 10).messages, [message]);
}

#[test]
fn a_message_to_somebody_who_is_away_waits() {
    let (mut world, [ada, bob]) = World::of(["ada", "bob"]);
    let _ = world.harness.disconnect(bob);
    let outcome = world.outcome(ada, send("bob", "hello"));
    assert_eq!(read(&outcome), Answer::Sent(Sent { message_id: 1, pushed_to: 0 }));
    assert_eq!(outcome.pushes, []);
    let bob = world.another_session("bob");
    let who_am_i = world.query(bob, chat_query::Action::WhoAmI(WhoAmI {}));
    assert_eq!(who_am_i, Answer::LoggedIn(LoggedIn { account: "bob".to_owned(), unread: 1 }));
}

#[test]
fn a_message_to_oneself_arrives() {
    let (mut world, [ada]) = World::of(["ada"]);
    let outcome = world.outcome(ada, send("ada", "note"));
    assert_eq!(read(&outcome), Answer::Sent(Sent { message_id: 1, pushed_to: 1 }));
    assert_eq!(texts(&world.read_next(ada, 1).messages), ["note"]);
}

#[test]
fn ids_ascend_over_all_mailboxes() {
    let (mut world, [ada, bob]) = World::of(["ada", "bob"]);
    let ids = [world.send(ada, "bob", "x"), world.send(bob, "ada", "x"), world.send(ada, "ada", "x")];
    assert_eq!(ids, [1, 2, 3]);
    world.ask(ada, delete_messages(vec![2, 3]));
    assert_eq!(world.send(ada, "bob", "x"), 4, "an id is never used twice");
}

#[test]
fn texts_out_of_bounds_are_refused() {
    let (mut world, [ada]) = World::of(["ada"]);
    assert_eq!(world.refused(ada, send("ada", "")), Code::Invalid);
    assert_eq!(world.refused(ada, send("ada", &"x".repeat(4_097))), Code::Invalid);
    world.send(ada, "ada", &"x".repeat(4_096));
}

#[test]
fn an_unknown_recipient_is_refused() {
    let (mut world, [ada]) = World::of(["ada"]);
    assert_eq!(world.refused(ada, send("bob", "hi")), Code::NoSuchAccount);
    assert_eq!(world.refused(ada, send("", "hi")), Code::NoSuchAccount);
}

#[test]
fn a_full_mailbox_refuses_until_something_is_deleted() {
    let mut world = World::with_config("max_mailbox_messages=2");
    let ada = world.newcomer("ada");
    let first = world.send(ada, "ada", "1");
    world.send(ada, "ada", "2");
    world.read_next(ada, 1);
    assert_eq!(world.refused(ada, send("ada", "3")), Code::MailboxFull, "read messages take room too");
    world.ask(ada, delete_messages(vec![first]));
    world.send(ada, "ada", "3");
}

#[test]
fn all_mailboxes_together_have_a_bound() {
    let mut world = World::with_config("max_stored_bytes=65536");
    let (ada, bob) = (world.newcomer("ada"), world.newcomer("bob"));
    let text = "x".repeat(4_096);
    for i in 0..15 {
        world.send(ada, if i % 2 == 0 { "ada" } else { "bob" }, &text);
    }
    assert_eq!(world.refused(ada, send("bob", &text)), Code::LimitReached);
    world.ask(bob, Action::DeleteAccount(Default::default()));
    world.send(ada, "ada", &text);
}

#[test]
fn the_oldest_unread_messages_come_first_and_once() {
    let (mut world, [ada, bob]) = World::of(["ada", "bob"]);
    for text in ["1", "2", "3", "4", "5"] {
        world.send(ada, "bob", text);
    }
    let first = world.read_next(bob, 2);
    assert_eq!((texts(&first.messages), first.unread, first.more), (vec!["1", "2"], 3, true));
    assert!(first.messages.iter().all(|message| message.unread));
    let rest = world.read_next(bob, 1_000);
    assert_eq!((texts(&rest.messages), rest.unread, rest.more), (vec!["3", "4", "5"], 0, false));
    let none = world.read_next(bob, 1);
    assert_eq!((none.messages.len(), none.unread, none.more), (0, 0, false));
}

#[test]
fn a_limit_out_of_bounds_is_refused() {
    let (mut world, [ada]) = World::of(["ada"]);
    for limit in [0, 1_001, u32::MAX] {
        assert_eq!(world.refused(ada, Action::ReadNext(ReadNext { limit })), Code::Invalid);
    }
}

#[test]
fn an_answer_is_cut_where_it_would_be_too_long() {
    let mut world = World::with_config("max_answer_bytes=1024");
    let ada = world.newcomer("ada");
    for len in [2_000, 300, 300, 300, 300] {
        world.send(ada, "ada", &"x".repeat(len));
    }
    let counts: Vec<_> = (0..3).map(|_| world.read_next(ada, 10)).map(|m| (m.messages.len(), m.more)).collect();
    assert_eq!(counts, [(1, true), (3, true), (1, false)], "the first message is handed out whatever its length");
}

#[test]
fn marking_skips_what_is_unknown_read_or_of_others() {
    let (mut world, [ada, bob]) = World::of(["ada", "bob"]);
    let ids = [world.send(ada, "bob", "1"), world.send(ada, "bob", "2"), world.send(bob, "ada", "3")];
    assert_eq!(world.ask(bob, mark_read(vec![ids[1], ids[2], 99, ids[1]])), Answer::Marked(Marked { count: 1 }));
    assert_eq!(world.ask(bob, mark_read(vec![])), Answer::Marked(Marked { count: 0 }));
    assert_eq!(texts(&world.read_next(bob, 10).messages), ["1"]);
    assert_eq!(texts(&world.read_next(ada, 10).messages), ["3"]);
}

#[test]
fn deleting_skips_what_is_unknown_or_of_others() {
    let (mut world, [ada, bob]) = World::of(["ada", "bob"]);
    let ids = [world.send(ada, "bob", "1"), world.send(ada, "bob", "2"), world.send(bob, "ada", "3")];
    world.read_next(bob, 1);
    let delete = delete_messages(vec![ids[0], ids[1], ids[2], 99, ids[0]]);
    assert_eq!(world.ask(bob, delete), Answer::Deleted(Deleted { count: 2 }));
    assert_eq!(world.read_next(bob, 10).messages, []);
    assert_eq!(texts(&world.read_next(ada, 10).messages), ["3"]);
}

#[test]
fn too_many_ids_are_refused() {
    let (mut world, [ada]) = World::of(["ada"]);
    assert_eq!(world.refused(ada, mark_read(vec![1; 1_001])), Code::Invalid);
    assert_eq!(world.refused(ada, delete_messages(vec![1; 1_001])), Code::Invalid);
    world.ask(ada, mark_read((0..1_000).collect()));
}

#[test]
fn who_is_not_logged_in_can_do_nothing_with_messages() {
    let (mut world, [_]) = World::of(["ada"]);
    let stranger = world.connect();
    for action in [
        send("ada", "hi"),
        Action::ReadNext(ReadNext { limit: 1 }),
        mark_read(vec![1]),
        delete_messages(vec![1]),
        Action::DeleteAccount(Default::default()),
    ] {
        assert_eq!(world.refused(stranger, action), Code::NotLoggedIn);
    }
}

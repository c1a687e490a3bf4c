//! Reactions and editing.

use replicator_proto::chat::v1::{
    ChatErrorCode as Code, DeleteAccount, DeleteMessages, Edited, Message, Reacted, ReactionNotice, chat_push::Event,
    chat_request::Action, chat_response::Result as Answer,
};
use statemachine::testing::START_TIME_US;

use crate::world::{World, edit, events, react, read, send};

#[test]
fn a_reaction_is_pushed_to_every_session_of_the_sender_and_shown_in_the_mailbox() {
    let (mut world, [ada, bob]) = World::of(["ada", "bob"]);
    let second = world.another_session("ada");
    let id = world.send(ada, "bob", "hi");
    let outcome = world.outcome(bob, react(id, "\u{1f44d}"));
    assert_eq!(read(&outcome), Answer::Reacted(Reacted { pushed_to: 2 }));
    let notice = ReactionNotice { message_id: id, from: "bob".to_owned(), reaction: "\u{1f44d}".to_owned() };
    assert_eq!(outcome.pushes.len(), 2);
    for session in [ada, second] {
        assert_eq!(events(&outcome, session), [Event::Reaction(notice.clone())]);
    }
    world.ask(bob, react(id, "\u{1f680}"));
    assert_eq!(world.mailbox(bob)[0].reaction, "\u{1f680}", "in the place of the first");
    let outcome = world.outcome(bob, react(id, ""));
    assert_eq!(events(&outcome, ada), [Event::Reaction(ReactionNotice { reaction: String::new(), ..notice })]);
    assert_eq!(world.mailbox(bob)[0].reaction, "");
}

#[test]
fn a_reaction_to_the_message_of_a_deleted_account_reaches_nobody() {
    let (mut world, [ada, bob]) = World::of(["ada", "bob"]);
    let id = world.send(ada, "bob", "hi");
    world.ask(ada, Action::DeleteAccount(DeleteAccount {}));
    world.newcomer("ada"); // somebody else
    let outcome = world.outcome(bob, react(id, "ok"));
    assert_eq!((read(&outcome), outcome.pushes.len()), (Answer::Reacted(Reacted { pushed_to: 0 }), 0));
}

#[test]
fn wrong_reactions_are_refused() {
    let (mut world, [ada, bob]) = World::of(["ada", "bob"]);
    let id = world.send(ada, "bob", "hi");
    for reaction in ["a b", "\n", &"x".repeat(33)] {
        assert_eq!(world.refused(bob, react(id, reaction)), Code::Invalid, "{reaction:?}");
    }
    assert_eq!(world.refused(ada, react(id, "ok")), Code::NoSuchMessage, "it is in another mailbox");
    assert_eq!(world.refused(bob, react(99, "ok")), Code::NoSuchMessage);
    let stranger = world.connect();
    assert_eq!(world.refused(stranger, react(id, "ok")), Code::NotLoggedIn);
    world.ask(bob, react(id, &"x".repeat(32)));
}

#[test]
fn an_edited_message_is_pushed_again_and_stays_as_read_as_it_was() {
    let (mut world, [ada, bob]) = World::of(["ada", "bob"]);
    let (first, second) = (world.send(ada, "bob", "helo"), world.send(ada, "bob", "wrold"));
    world.read_next(bob, 1);
    world.ask(bob, react(first, "ok"));
    let outcome = world.outcome(ada, edit("bob", first, "hello"));
    assert_eq!(read(&outcome), Answer::Edited(Edited { pushed_to: 1 }));
    let message = Message {
        id: first,
        from: "ada".to_owned(),
        text: "hello".to_owned(),
        time_us: START_TIME_US + 7_000,
        unread: false,
        reaction: "ok".to_owned(),
        edited_us: START_TIME_US + 11_000,
        from_deleted: false,
    };
    assert_eq!(events(&outcome, bob), [Event::Edited(message.clone())]);
    world.ask(ada, edit("bob", second, "world"));
    let mailbox = world.mailbox(bob);
    assert_eq!(mailbox[0], message);
    assert_eq!((mailbox[1].text.as_str(), mailbox[1].unread), ("world", true));
}

#[test]
fn only_own_messages_that_are_there_can_be_edited() {
    let (mut world, [ada, bob, eve]) = World::of(["ada", "bob", "eve"]);
    let id = world.send(ada, "bob", "hi");
    assert_eq!(world.refused(eve, edit("bob", id, "forged")), Code::NoSuchMessage);
    assert_eq!(world.refused(bob, edit("bob", id, "forged")), Code::NoSuchMessage);
    assert_eq!(world.refused(ada, edit("eve", id, "elsewhere")), Code::NoSuchMessage);
    assert_eq!(world.refused(ada, edit("nobody", id, "nowhere")), Code::NoSuchAccount);
    assert_eq!(world.refused(ada, edit("bob", id, "")), Code::Invalid);
    assert_eq!(world.refused(ada, edit("bob", id, &"x".repeat(4_097))), Code::Invalid);
    let stranger = world.connect();
    assert_eq!(world.refused(stranger, edit("bob", id, "forged")), Code::NotLoggedIn);

    world.ask(ada, Action::DeleteAccount(DeleteAccount {}));
    let second_ada = world.newcomer("ada");
    assert_eq!(world.refused(second_ada, edit("bob", id, "not hers")), Code::NoSuchMessage);
    world.ask(bob, Action::DeleteMessages(DeleteMessages { message_ids: vec![id] }));
    assert_eq!(world.refused(bob, react(id, "ok")), Code::NoSuchMessage);
}

#[test]
fn editing_counts_against_the_bound_of_all_mailboxes() {
    let mut world = World::with_config("max_stored_bytes=65536");
    let ada = world.newcomer("ada");
    let text = "x".repeat(4_096);
    let ids: Vec<u64> = (0..15).map(|_| world.send(ada, "ada", &text)).collect();
    let small = world.send(ada, "ada", "x");
    assert_eq!(world.refused(ada, edit("ada", small, &text)), Code::LimitReached);
    world.ask(ada, edit("ada", ids[0], "shorter"));
    world.ask(ada, edit("ada", small, &text));
    assert_eq!(world.refused(ada, send("ada", &text)), Code::LimitReached);
}

//! What can be asked without changing anything.

use replicator_proto::chat::v1::{
    Accounts, ChatErrorCode as Code, DeleteAccount, ListAccounts, ListMessages, chat_query::Action, chat_request,
    chat_response::Result as Answer,
};
use statemachine::SessionId;

use crate::world::{World, messages, register, texts};

fn list_accounts(world: &mut World, pattern: &str, page_size: u32, page_token: &str) -> Accounts {
    let list = ListAccounts { pattern: pattern.to_owned(), page_size, page_token: page_token.to_owned() };
    match world.query(SessionId::default(), Action::ListAccounts(list)) {
        Answer::Accounts(accounts) => accounts,
        answer => panic!("{answer:?}"),
    }
}

#[track_caller]
fn refused(world: &mut World, session: SessionId, action: Action) -> Code {
    match world.query(session, action) {
        Answer::Error(error) => error.code(),
        answer => panic!("{answer:?}"),
    }
}

#[test]
fn accounts_are_listed_by_wildcard_in_the_order_of_their_names() {
    let mut world = World::new();
    let session = world.connect();
    for name in ["bob", "Zoë", "alice", "bobby", "rob"] {
        world.ask(session, register(name));
    }
    for (pattern, expected) in [
        ("", &["Zoë", "alice", "bob", "bobby", "rob"][..]),
        ("*", &["Zoë", "alice", "bob", "bobby", "rob"]),
        ("bob*", &["bob", "bobby"]),
        ("?ob", &["bob", "rob"]),
        ("*o?", &["Zoë", "bob", "rob"]),
        ("bob", &["bob"]),
        ("nobody", &[]),
    ] {
        let found = list_accounts(&mut world, pattern, 0, "");
        assert_eq!(
            (found.accounts, found.next_page_token),
            (expected.iter().map(|s| s.to_string()).collect(), String::new())
        );
    }
}

#[test]
fn pages_of_accounts_meet_without_gap_or_repeat() {
    let mut world = World::new();
    let session = world.connect();
    let names: Vec<String> = (0..25).map(|i| format!("user{i:02}")).collect();
    for name in &names {
        world.ask(session, register(name));
    }
    for page_size in [1, 4, 5, 24, 25, 26] {
        let (mut listed, mut token) = (Vec::new(), String::new());
        loop {
            let page = list_accounts(&mut world, "user*", page_size, &token);
            assert!(page.accounts.len() <= page_size as usize);
            listed.extend(page.accounts);
            token = page.next_page_token;
            if token.is_empty() {
                break;
            }
        }
        assert_eq!(listed, names);
    }
    assert_eq!(list_accounts(&mut world, "", 0, "user20").accounts, names[21..]);
    assert_eq!(list_accounts(&mut world, "a*", 0, "zzz").accounts, [""; 0]);
}

#[test]
fn messages_are_listed_without_being_marked_read() {
    let (mut world, [ada, bob]) = World::of(["ada", "bob"]);
    for text in ["1", "2", "3", "4"] {
        world.send(ada, "bob", text);
    }
    world.read_next(bob, 2);
    let list = |unread_only, page_size, after_id| {
        Action::ListMessages(ListMessages { unread_only, page_size, after_id, last: false })
    };

    let all = messages(world.query(bob, list(false, 0, 0)));
    assert_eq!((texts(&all.messages), all.unread, all.more), (vec!["1", "2", "3", "4"], 2, false));
    let unread: Vec<bool> = all.messages.iter().map(|message| message.unread).collect();
    assert_eq!(unread, [false, false, true, true]);

    let page = messages(world.query(bob, list(false, 3, 0)));
    assert_eq!((texts(&page.messages), page.unread, page.more), (vec!["1", "2", "3"], 2, true));
    let page = messages(world.query(bob, list(false, 3, page.messages[2].id)));
    assert_eq!((texts(&page.messages), page.more), (vec!["4"], false));

    let page = messages(world.query(bob, list(true, 1, 0)));
    assert_eq!((texts(&page.messages), page.unread, page.more), (vec!["3"], 2, true));
    let page = messages(world.query(bob, list(true, 1, u64::MAX)));
    assert_eq!((page.messages.len(), page.more), (0, false));
    assert_eq!(world.read_next(bob, 10).messages.len(), 2);
}

#[test]
fn the_last_messages_are_the_newest_in_ascending_order() {
    let mut world = World::with_config("max_answer_bytes=1024");
    let (ada, bob) = (world.newcomer("ada"), world.newcomer("bob"));
    for text in ["1", "2", "3", "4"] {
        world.send(ada, "bob", text);
    }
    world.read_next(bob, 2);
    let last = |unread_only, page_size, after_id| {
        Action::ListMessages(ListMessages { unread_only, page_size, after_id, last: true })
    };
    for (unread_only, page_size, after_id, expected, more) in [
        (false, 3, 0, &["2", "3", "4"][..], true),
        (false, 4, 0, &["1", "2", "3", "4"], false),
        (false, 0, 2, &["3", "4"], false),
        (true, 1, 0, &["4"], true),
        (true, 10, 0, &["3", "4"], false),
        (false, 1, u64::MAX, &[], false),
    ] {
        let page = messages(world.query(bob, last(unread_only, page_size, after_id)));
        assert_eq!((texts(&page.messages), page.more, page.unread), (expected.to_vec(), more, 2));
    }
    // Where the texts are too long for one answer, it is the newest that it holds.
    world.send(ada, "bob", &"x".repeat(600));
    world.send(ada, "bob", &"y".repeat(600));
    let page = messages(world.query(bob, last(false, 10, 0)));
    assert_eq!((texts(&page.messages), page.more), (vec!["y".repeat(600).as_str()], true));
}

#[test]
fn the_sender_of_a_message_can_be_gone() {
    let (mut world, [ada, bob]) = World::of(["ada", "bob"]);
    world.send(ada, "bob", "bye");
    world.ask(ada, chat_request::Action::DeleteAccount(DeleteAccount {}));
    let listed = messages(world.query(bob, Action::ListMessages(ListMessages::default())));
    assert_eq!(listed.messages[0].from, "ada");
    assert!(listed.messages[0].from_deleted);
}

#[test]
fn wrong_queries_are_refused() {
    let (mut world, [ada]) = World::of(["ada"]);
    let stranger = world.connect();
    let list = Action::ListMessages(ListMessages::default());
    assert_eq!(refused(&mut world, stranger, list), Code::NotLoggedIn);
    let list = Action::ListMessages(ListMessages { page_size: 1_001, ..ListMessages::default() });
    assert_eq!(refused(&mut world, ada, list), Code::Invalid);
    for list in [
        ListAccounts { page_size: 1_001, ..ListAccounts::default() },
        ListAccounts { page_token: "x".repeat(65), ..ListAccounts::default() },
        ListAccounts { pattern: "x".repeat(257), ..ListAccounts::default() },
    ] {
        assert_eq!(refused(&mut world, ada, Action::ListAccounts(list)), Code::Invalid);
    }
}

//! Requests and queries of any bytes at all: refused, and never a panic.

use proptest::prelude::*;
use prost::Message;
use replicator_proto::chat::v1::{
    ChatErrorCode as Code, ChatRequest, ListAccounts, MarkRead, chat_query, chat_request::Action,
    chat_response::Result as Answer,
};

use crate::world::{World, login, read, register, send};

fn refused(answer: Answer) -> Code {
    match answer {
        Answer::Error(error) => error.code(),
        answer => panic!("taken: {answer:?}"),
    }
}

#[test]
fn what_is_no_request_is_refused() {
    let (mut world, [ada]) = World::of(["ada"]);
    // A length past the end; a wrong wire type; a text that isn't UTF-8. Then nothing at all, and an action of a later version.
    for bytes in [&b"\x0a\x05"[..], b"\x08\x01", b"\x22\x03\x0a\x01\xff"] {
        assert_eq!(refused(read(&world.harness.request(ada, bytes))), Code::Invalid, "{bytes:?}");
        assert_eq!(refused(read(&world.harness.query(ada, bytes))), Code::Invalid, "{bytes:?}");
    }
    for bytes in [&b""[..], b"\xfa\x01\x00"] {
        assert_eq!(refused(read(&world.harness.request(ada, bytes))), Code::UnknownAction, "{bytes:?}");
        assert_eq!(refused(read(&world.harness.query(ada, bytes))), Code::UnknownAction, "{bytes:?}");
    }
}

#[test]
fn a_request_as_long_as_can_be_is_refused_unread() {
    let (mut world, [ada]) = World::of(["ada"]);
    let action = Action::MarkRead(MarkRead { message_ids: vec![1; 900_000] });
    assert_eq!(world.refused(ada, action), Code::Invalid);
    assert_eq!(world.refused(ada, register(&"x".repeat(1_000_000))), Code::Invalid);
    assert_eq!(world.refused(ada, send("ada", &"x".repeat(1_000_000))), Code::Invalid);
    let query = ListAccounts { pattern: "*".repeat(1_000_000), ..ListAccounts::default() };
    let answer = world.query(ada, chat_query::Action::ListAccounts(query));
    assert_eq!(refused(answer), Code::Invalid);
}

#[test]
fn the_longest_requests_that_keep_the_rules_are_taken() {
    let mut world = World::with_config("max_text_bytes=65536\nmax_account_sessions=1");
    let ada = world.newcomer("ada");
    world.send(ada, "ada", &"x".repeat(65_536));
    world.ask(ada, Action::MarkRead(MarkRead { message_ids: vec![u64::MAX; 1_000] }));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_never_panic(requests in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 1..30)) {
        let (mut world, [ada]) = World::of(["ada"]);
        for request in &requests {
            read(&world.harness.request(ada, request));
            read(&world.harness.query(ada, request));
        }
    }

    #[test]
    fn damaged_requests_never_panic(
        changes in prop::collection::vec((0..3usize, any::<prop::sample::Index>(), any::<u8>()), 1..30)
    ) {
        let (mut world, [ada]) = World::of(["ada"]);
        let requests = [register("bob"), login(ada, "ada", "ada"), send("ada", "hello")];
        let requests = requests.map(|action| ChatRequest { action: Some(action) }.encode_to_vec());
        for (request, place, byte) in changes {
            let mut request = requests[request].clone();
            let place = place.index(request.len());
            request[place] = byte;
            read(&world.harness.request(ada, &request));
            read(&world.harness.query(ada, &request));
        }
    }
}

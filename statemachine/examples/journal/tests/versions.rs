//! Each version of the journal takes over from the other, and loses no number.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "clippy.toml allows it in test functions, but not in their helpers")]

use journal_module::Journal;
use journal_v2_module::Journal as JournalV2;
use statemachine::{
    SessionId, StateMachine,
    testing::{Harness, records, snapshot},
};

fn ask<M: StateMachine>(harness: &mut Harness<M>, client: SessionId, request: &str) -> String {
    String::from_utf8(harness.request(client, request.as_bytes()).reply().to_vec()).unwrap()
}

fn append(writer: &str, number: u64) -> String {
    let text = format!("{writer} {number} payload");
    let fnv1a = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    format!("append {text} {:016x}", text.as_bytes().iter().fold(0xcbf2_9ce4_8422_2325, fnv1a))
}

#[test]
fn numbers_survive_a_swap_and_a_rollback() {
    let mut one = Harness::<Journal>::new(b"").unwrap();
    let client = one.connect().session;
    for number in [0, 1, 1, 7] {
        ask(&mut one, client, &append("a", number));
    }
    assert_eq!(ask(&mut one, client, "about"), "1.0.0 0");
    assert!(ask(&mut one, client, "bytes a").starts_with("error: "));

    let mut two = one.swap::<JournalV2>(b"").unwrap();
    assert_eq!(ask(&mut two, client, "about"), "2.0.0 1");
    assert_eq!(ask(&mut two, client, "runs a"), "1 0+2 7+1");
    assert_eq!(ask(&mut two, client, &append("a", 2)), "5 4");
    assert_eq!(ask(&mut two, client, &append("b", 0)), "6 1");
    assert_eq!(ask(&mut two, client, "bytes a"), "7", "counted since the swap");

    let mut back = two.swap::<Journal>(b"").unwrap();
    assert_eq!(ask(&mut back, client, "about"), "1.0.0 2");
    assert_eq!(ask(&mut back, client, "writers"), "a 4 1\nb 1 0\n");
    assert_eq!(ask(&mut back, client, &append("a", 2)), "7 4", "a number executed by the other version is known");
    assert_eq!(ask(&mut back, client, "runs a"), "2 0+3 7+1");

    let mut again = back.swap::<JournalV2>(b"").unwrap();
    assert_eq!(ask(&mut again, client, "bytes a"), "0", "a rollback loses the bytes");
    assert_eq!(ask(&mut again, client, "about"), "2.0.0 3");
}

#[test]
fn the_bytes_of_both_schemas_stay_as_they_are() {
    let mut one = Harness::<Journal>::new(b"").unwrap();
    let client = one.connect().session;
    [3, 0, 1, 1].into_iter().for_each(|number| drop(ask(&mut one, client, &append("ab", number))));
    let lines = ["executions 4", "swaps 0", "writer ab 1", "run ab 0 2", "run ab 3 1"];
    assert_eq!(records(&one.snapshot()), lines.map(|line| line.as_bytes().to_vec()));

    let mut two = one.swap::<JournalV2>(b"").unwrap();
    ask(&mut two, client, &append("ab", 4));
    let numbers = |numbers: &[u64]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<_>>();
    let counts = [&[0][..], &numbers(&[5, 1])].concat();
    let writer = [&[1, 2][..], b"ab", &numbers(&[1, 7, 0, 2, 3, 2])].concat();
    assert_eq!(records(&two.snapshot()), [counts, writer]);
}

#[test]
fn damaged_records_of_schema_2_are_refused() {
    let numbers = |numbers: &[u64]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<_>>();
    let writer = |rest: &[u8]| [&[1, 1][..], b"a", rest].concat();
    for (record, why) in [
        (vec![], "counts or a writer"),
        (vec![2; 20], "counts or a writer"),
        ([&[0][..], &numbers(&[1])].concat(), "two numbers"),
        (vec![0; 4], "breaks off"),
        (vec![1, 9, b'a'], "name breaks off"),
        (vec![1, 0], "no writer's name"),
        (writer(&numbers(&[0])), "breaks off"),
        (writer(&numbers(&[0, 0, 5])), "a run of a breaks off"),
        (writer(&numbers(&[0, 0, 5, 0])), "can't be"),
        (writer(&numbers(&[0, 0, 5, u64::MAX])), "can't be"),
        (writer(&numbers(&[0, 0, 5, 1, 5, 1])), "can't be"),
    ] {
        for restored in [
            Harness::<Journal>::restored(b"", 2, &snapshot([&record])).err(),
            Harness::<JournalV2>::restored(b"", 2, &snapshot([&record])).err(),
        ] {
            let error = restored.unwrap();
            assert!(error.contains(why), "{record:?}: {error}");
        }
    }
}

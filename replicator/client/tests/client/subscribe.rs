use std::time::Duration;

use replicator_client::{Cursor, Error, Event, Lineage, LogIndex, Subscription};

use crate::fake::{Cluster, Fault, LINEAGE};

const EVENTS: [(u64, u32); 6] = [(2, 0), (2, 1), (3, 0), (7, 0), (7, 1), (9, 0)];

async fn take(events: &mut Subscription, count: usize) -> Vec<String> {
    let mut payloads = Vec::new();
    for _ in 0..count {
        let push = events.next().await.unwrap().unwrap();
        payloads.push(String::from_utf8(push.payload.to_vec()).unwrap());
    }
    payloads
}

#[tokio::test]
async fn it_goes_on_after_the_cursor_without_doubles() {
    let cluster = Cluster::start(3).await;
    cluster.state().events = EVENTS.to_vec();
    cluster.everywhere(&[Fault::DoublesThenBreaks(2), Fault::Broken, Fault::DoublesThenBreaks(3)]);
    let mut events = cluster.client().subscribe(None, ["t"], None);
    assert_eq!(take(&mut events, 6).await, ["2.0", "2.1", "3.0", "7.0", "7.1", "9.0"]);
    assert_eq!(events.cursor().unwrap().log_index, LogIndex(9));

    let after: Vec<_> = cluster.state().subscriptions.iter().map(|s| s.1.map(|c| (c.log_index, c.ordinal))).collect();
    assert_eq!(after[0], None);
    assert_eq!(after[1], Some((2, 1)), "after the last event seen");
    assert!(after[2..].iter().all(|a| a.unwrap() >= (2, 1)));
    let silence = tokio::time::timeout(Duration::from_millis(50), events.next()).await;
    assert!(silence.is_err(), "nothing comes twice: {silence:?}");
}

#[tokio::test]
async fn a_given_cursor_is_used() {
    let cluster = Cluster::start(1).await;
    cluster.state().events = EVENTS.to_vec();
    let after = Cursor { lineage: Lineage(LINEAGE), log_index: LogIndex(3), ordinal: 0 };
    let mut events = cluster.client().subscribe(None, ["t"], Some(after));
    assert_eq!(events.established().await.unwrap(), after);
    assert_eq!(take(&mut events, 3).await, ["7.0", "7.1", "9.0"]);
}

#[tokio::test]
async fn an_expired_cursor_ends_it() {
    let cluster = Cluster::start(1).await;
    cluster.state().cursor_expired = true;
    let mut events = cluster.client().subscribe(None, ["t"], None);
    assert!(matches!(events.next().await, Some(Err(Error::CursorExpired { .. }))));
    assert!(events.next().await.is_none());
}

#[tokio::test]
async fn silence_of_all_nodes_is_told_and_can_be_outlasted() {
    let cluster = Cluster::start(1).await;
    cluster.state().events = EVENTS.to_vec();
    cluster.at(0, &vec![Fault::Broken; 200]);
    let client = cluster.builder().deadline(Duration::from_millis(100)).build().unwrap();
    let mut events = client.subscribe(None, ["t"], None);
    assert!(matches!(events.next().await, Some(Err(Error::Unavailable { .. }))));
    cluster.at(0, &[]);
    assert_eq!(take(&mut events, 1).await, ["2.0"]);
}

#[tokio::test]
async fn a_dropped_wait_loses_nothing() {
    let cluster = Cluster::start(1).await;
    cluster.state().events = EVENTS.to_vec();
    let mut events = cluster.client().subscribe(None, ["t"], None);
    let mut payloads = Vec::new();
    while payloads.len() < 6 {
        if let Ok(push) = tokio::time::timeout(Duration::from_micros(200), events.next()).await {
            payloads.push(push.unwrap().unwrap().cursor.log_index.0);
        }
    }
    assert_eq!(payloads, [2, 2, 3, 7, 7, 9]);
}

#[tokio::test]
async fn passing_events_come_between_and_move_no_cursor() {
    let cluster = Cluster::start(1).await;
    cluster.state().events = EVENTS.to_vec();
    cluster.state().ephemerals = true;
    let mut events = cluster.client().subscribe(None, ["t"], None);
    let start = events.established().await.unwrap();
    let mut seen = Vec::new();
    for _ in 0..4 {
        let before = events.cursor().unwrap();
        match events.next_event().await.unwrap().unwrap() {
            Event::Push(push) => {
                assert!(push.cursor > before && events.cursor() == Some(push.cursor));
                seen.push(String::from_utf8(push.payload.to_vec()).unwrap());
            }
            Event::Ephemeral { topic, payload } => {
                assert_eq!((topic.as_str(), events.cursor()), ("t", Some(before)));
                seen.push(String::from_utf8(payload.to_vec()).unwrap());
            }
        }
    }
    assert_eq!(seen, ["before 2.0", "2.0", "before 2.1", "2.1"]);
    assert!(events.cursor().unwrap() > start);
    assert_eq!(take(&mut events, 4).await, ["3.0", "7.0", "7.1", "9.0"], "next() leaves them out");
}

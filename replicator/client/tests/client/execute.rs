use std::time::{Duration, Instant};

use replicator_client::{Client, Error, LogIndex, Sequence, Session};

use crate::fake::{Cluster, Fault};

#[tokio::test]
async fn requests_are_numbered_and_acknowledged() {
    let cluster = Cluster::start(1).await;
    let session = cluster.client().open_session(None).await.unwrap();
    for n in 1..=3 {
        let done = session.execute(format!("r{n}")).await.unwrap();
        assert_eq!((done.sequence, done.log_index), (Sequence(n), LogIndex(100 + n)));
        assert_eq!(&done.response[..], format!("did r{n}").as_bytes());
    }
    let received: Vec<_> = cluster.state().received.iter().map(|r| (r.1, r.2)).collect();
    assert_eq!(received, [(1, 1), (2, 2), (3, 3)]);
    assert_eq!(session.next_sequence(), Sequence(4));
}

#[tokio::test]
async fn a_refusing_node_is_left_for_another() {
    let cluster = Cluster::start(3).await;
    let session = cluster.client().open_session(None).await.unwrap();
    for fault in [Fault::NotReady { primary: None }, Fault::Broken, Fault::Silent] {
        cluster.everywhere(&[fault.clone(), fault]);
        session.execute("x").await.unwrap();
    }
    assert_eq!(cluster.log(), ["x", "x", "x"]);
}

#[tokio::test]
async fn a_lost_answer_is_asked_for_again_under_the_same_number_and_never_doubled() {
    let cluster = Cluster::start(3).await;
    let session = cluster.client().open_session(None).await.unwrap();
    cluster.everywhere(&[Fault::ExecutesThenBroken, Fault::ExecutesThenSilent]);
    let done = session.execute("once").await.unwrap();
    assert_eq!(cluster.log(), ["once"]);
    assert_eq!((done.sequence, done.log_index), (Sequence(1), LogIndex(101)));
    let received = cluster.state().received.clone();
    assert_eq!(received.len(), 3, "one execution and two repeats: {received:?}");
    assert!(received.iter().all(|r| r.1 == 1 && r.3 == b"once"), "{received:?}");
    assert_ne!(received[0].0, received[1].0, "the repeat goes to another node");
}

#[tokio::test]
async fn a_stopped_node_is_left_for_another() {
    let cluster = Cluster::start(3).await;
    let session = cluster.client().open_session(None).await.unwrap();
    session.execute("before").await.unwrap();
    let node = cluster.state().received[0].0;
    cluster.stop(node);
    session.execute("after").await.unwrap();
    assert_eq!(cluster.log(), ["before", "after"]);
}

#[tokio::test]
async fn the_named_primary_is_asked_next_even_if_it_was_unknown() {
    let cluster = Cluster::start(2).await;
    let client = Client::builder().endpoints([cluster.addresses[0].clone()]).build().unwrap();
    let session = client.open_session(None).await.unwrap();
    cluster.at(0, &[Fault::NotReady { primary: Some(cluster.addresses[1].clone()) }]);
    assert_eq!(session.execute("x").await.unwrap().node_id, "n1");
    assert_eq!(session.execute("y").await.unwrap().node_id, "n1", "the node that answered is kept");
}

#[tokio::test]
async fn an_unknown_outcome_is_resolved_before_the_next_request() {
    let cluster = Cluster::start(1).await;
    let session = cluster.client().open_session(None).await.unwrap();
    cluster.at(0, &[Fault::ExecutesThenSilent]);
    let error = session.execute_within("first", Duration::from_millis(100)).await.unwrap_err();
    assert!(matches!(error, Error::OutcomeUnknown { sequence: Sequence(1), .. }), "{error}");
    assert_eq!(session.next_sequence(), Sequence(1), "a saved session would ask again");

    let done = session.execute("second").await.unwrap();
    assert_eq!(done.sequence, Sequence(2));
    assert_eq!(cluster.log(), ["first", "second"]);
    let received: Vec<_> = cluster.state().received.iter().map(|r| (r.1, r.3.clone())).collect();
    assert_eq!(received, [(1, b"first".to_vec()), (1, b"first".to_vec()), (2, b"second".to_vec())]);
}

#[tokio::test]
async fn resolve_returns_the_lost_outcome() {
    let cluster = Cluster::start(1).await;
    let session = cluster.client().open_session(None).await.unwrap();
    cluster.at(0, &[Fault::Silent]);
    session.execute_within("x", Duration::from_millis(100)).await.unwrap_err();
    let outcomes = session.resolve().await.unwrap();
    assert!(matches!(&outcomes[..], [(Sequence(1), Ok(done))] if done.log_index == LogIndex(101)), "{outcomes:?}");
    assert!(session.resolve().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_dropped_call_is_resolved_by_the_next() {
    let cluster = Cluster::start(1).await;
    let session = cluster.client().open_session(None).await.unwrap();
    cluster.at(0, &[Fault::ExecutesThenSilent]);
    tokio::time::timeout(Duration::from_millis(50), session.execute("dropped")).await.unwrap_err();
    assert_eq!(session.execute("next").await.unwrap().sequence, Sequence(2));
    assert_eq!(cluster.log(), ["dropped", "next"]);
}

#[tokio::test]
async fn a_request_that_reached_no_node_frees_its_number() {
    let cluster = Cluster::start(1).await;
    let client = cluster.builder().deadline(Duration::from_millis(150)).build().unwrap();
    let session = client.open_session(None).await.unwrap();
    let refused = Fault::NotReady { primary: None };
    cluster.at(0, &vec![refused; 100]);
    let error = session.execute("never").await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    cluster.at(0, &[]);
    assert_eq!(session.execute("other").await.unwrap().sequence, Sequence(1));
    assert_eq!(cluster.log(), ["other"]);
}

#[tokio::test]
async fn the_deadline_is_kept() {
    let cluster = Cluster::start(1).await;
    let session = cluster.client().open_session(None).await.unwrap();
    cluster.at(0, &vec![Fault::Silent; 100]);
    let began = Instant::now();
    session.execute_within("x", Duration::from_millis(300)).await.unwrap_err();
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(290) && took < Duration::from_secs(2), "{took:?}");

    // Nobody listens there: the port was free a moment ago.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let nowhere = Client::builder().endpoints([free]).deadline(Duration::from_millis(200)).build().unwrap();
    let began = Instant::now();
    let error = nowhere.open_session(None).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    assert!(error.to_string().contains("cannot connect"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn an_endless_deadline_is_no_overflow() {
    let cluster = Cluster::start(1).await;
    let client = cluster.builder().deadline(Duration::MAX).attempt_timeout(Duration::MAX).build().unwrap();
    let session = client.open_session(Some(Duration::MAX)).await.unwrap();
    session.execute_within("x", Duration::MAX).await.unwrap();
    let pipeline = session.pipeline(2).await.unwrap();
    pipeline.submit("y").await.unwrap().await.unwrap();
    pipeline.close().await.unwrap();
}

#[tokio::test]
async fn a_trap_is_an_outcome() {
    let cluster = Cluster::start(1).await;
    let session = cluster.client().open_session(None).await.unwrap();
    let error = session.execute("trap").await.unwrap_err();
    assert!(matches!(error, Error::ModuleTrapped { log_index: LogIndex(101), .. }), "{error}");
    assert_eq!(session.execute("next").await.unwrap().sequence, Sequence(2));
}

#[tokio::test]
async fn a_refused_request_frees_its_number() {
    let cluster = Cluster::start(1).await;
    let session = cluster.client().open_session(None).await.unwrap();
    assert!(matches!(session.execute("large").await.unwrap_err(), Error::RequestTooLarge { .. }));
    assert_eq!(session.execute("next").await.unwrap().sequence, Sequence(1));
}

#[tokio::test]
async fn a_resumed_session_goes_on() {
    let cluster = Cluster::start(2).await;
    let client = cluster.client();
    let session = client.open_session(None).await.unwrap();
    session.execute("one").await.unwrap();
    let resumed = Session::resume(&cluster.client(), session.saved());
    assert_eq!(resumed.execute("two").await.unwrap().sequence, Sequence(2));
    assert_eq!(resumed.client().log_index_seen(), LogIndex(102));
}

#[tokio::test]
async fn reused_stale_and_gap_are_told_and_put_the_session_in_step() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client();
    let session = client.open_session(None).await.unwrap();
    let before = session.saved();
    session.execute("lost by a killed process").await.unwrap();

    let behind = Session::resume(&client, before.clone());
    let error = behind.execute("new").await.unwrap_err();
    let reused = |error: &Error| {
        matches!(error, Error::SequenceReused { sequence: Sequence(1), last_sequence: Some(Sequence(1)) })
    };
    assert!(reused(&error) && error.is_resynchronised(), "{error}");
    assert_eq!(behind.execute("new").await.unwrap().sequence, Sequence(2));

    let far_behind = Session::resume(&client, before.clone());
    let error = far_behind.execute("newer").await.unwrap_err();
    assert!(matches!(error, Error::SequenceStale { last_sequence: Sequence(2), .. }), "{error}");
    assert_eq!(far_behind.execute("newer").await.unwrap().sequence, Sequence(3));

    let mut ahead = before;
    ahead.next_sequence = Sequence(9);
    let ahead = Session::resume(&client, ahead);
    let error = ahead.execute("newest").await.unwrap_err();
    assert!(matches!(error, Error::SequenceGap { last_sequence: Sequence(3), .. }), "{error}");
    // The fake raised its floor to the 9 that this session had claimed to have acknowledged, as a node may.
    assert!(error.is_resynchronised());
    assert_eq!(cluster.log(), ["lost by a killed process", "new", "newer"]);
}

#[tokio::test]
async fn the_same_request_of_a_killed_process_is_answered_not_repeated() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client();
    let session = client.open_session(None).await.unwrap();
    let before = session.saved();
    let first = session.execute("pay").await.unwrap();
    let again = Session::resume(&client, before).execute("pay").await.unwrap();
    assert_eq!(first, again);
    assert_eq!(cluster.log(), ["pay"]);
}

#[tokio::test]
async fn a_closed_session_is_expired() {
    let cluster = Cluster::start(1).await;
    let session = cluster.client().open_session(None).await.unwrap();
    session.close().await.unwrap();
    assert!(matches!(session.execute("x").await.unwrap_err(), Error::SessionExpired { .. }));
    assert!(matches!(session.execute("y").await.unwrap_err(), Error::SessionExpired { .. }));
}

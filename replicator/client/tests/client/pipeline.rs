use std::time::Duration;

use replicator_client::{Error, Sequence, Session};

use crate::fake::{Cluster, Fault};

/// Sends `count` requests through a pipeline and checks that each was executed once and in order.
async fn send_all(cluster: &Cluster, session: &Session, count: usize) {
    let pipeline = session.pipeline(8).await.unwrap();
    let mut outcomes = Vec::new();
    for n in 0..count {
        outcomes.push(pipeline.submit(format!("r{n}")).await.unwrap());
    }
    for (n, outcome) in outcomes.into_iter().enumerate() {
        let done = outcome.await.unwrap();
        assert_eq!(done.response, format!("did r{n}"));
        assert_eq!(done.sequence, Sequence(n as u64 + 1));
    }
    pipeline.close().await.unwrap();
    assert_eq!(cluster.log(), (0..count).map(|n| format!("r{n}")).collect::<Vec<_>>());
    assert_eq!(session.next_sequence(), Sequence(count as u64 + 1));
}

#[tokio::test]
async fn a_pipeline_executes_in_order() {
    let cluster = Cluster::start(1).await;
    let session = cluster.client().open_session(None).await.unwrap();
    send_all(&cluster, &session, 500).await;
    session.execute("after").await.unwrap();
}

#[tokio::test]
async fn a_broken_stream_goes_on_elsewhere_without_doubles() {
    let cluster = Cluster::start(3).await;
    let session = cluster.client().open_session(None).await.unwrap();
    cluster.everywhere(&[Fault::BreaksAfter(3), Fault::Broken, Fault::BreaksAfter(0), Fault::BreaksAfter(11)]);
    send_all(&cluster, &session, 100).await;
}

#[tokio::test]
async fn a_silent_stream_is_left_for_another() {
    let cluster = Cluster::start(2).await;
    let session = cluster.client().open_session(None).await.unwrap();
    cluster.everywhere(&[Fault::ExecutesThenSilent]);
    send_all(&cluster, &session, 20).await;
}

#[tokio::test]
async fn a_gap_left_by_a_lost_request_is_filled() {
    let cluster = Cluster::start(2).await;
    let session = cluster.client().open_session(None).await.unwrap();
    cluster.everywhere(&[Fault::LosesFirst { primary: None }, Fault::LosesFirst { primary: None }]);
    send_all(&cluster, &session, 40).await;
}

#[tokio::test]
async fn the_deadline_tells_and_the_session_resolves_later() {
    let cluster = Cluster::start(1).await;
    let client = cluster.builder().deadline(Duration::from_millis(100)).build().unwrap();
    let session = client.open_session(None).await.unwrap();
    cluster.at(0, &[Fault::ExecutesThenSilent]);
    let pipeline = session.pipeline(4).await.unwrap();
    let lost = pipeline.submit("lost").await.unwrap();
    assert!(matches!(lost.await.unwrap_err(), Error::OutcomeUnknown { sequence: Sequence(1), .. }));
    pipeline.close().await.unwrap();
    assert_eq!(session.execute("next").await.unwrap().sequence, Sequence(2));
    assert_eq!(cluster.log(), ["lost", "next"]);
}

#[tokio::test]
async fn a_refusal_in_the_middle_executes_nothing_after_it() {
    let cluster = Cluster::start(1).await;
    let session = cluster.client().open_session(None).await.unwrap();
    let pipeline = session.pipeline(8).await.unwrap();
    let mut outcomes = Vec::new();
    for request in ["a", "large", "b", "c"] {
        outcomes.push(pipeline.submit(request).await.unwrap());
    }
    let mut results = Vec::new();
    for outcome in outcomes {
        results.push(outcome.await);
    }
    assert!(results[0].is_ok());
    assert!(matches!(results[1], Err(Error::RequestTooLarge { .. })), "{results:?}");
    assert!(results[2..].iter().all(|r| matches!(r, Err(Error::PipelineBroken))), "{results:?}");
    assert!(matches!(pipeline.close().await, Err(Error::PipelineBroken)), "the hole is told");
    assert_eq!(cluster.log(), ["a"]);
    assert!(matches!(session.execute("d").await, Err(Error::PipelineBroken)), "the hole is never filled");
    assert_eq!(cluster.log(), ["a"]);
}

#[tokio::test]
async fn a_trap_in_the_middle_is_an_outcome() {
    let cluster = Cluster::start(1).await;
    let session = cluster.client().open_session(None).await.unwrap();
    let pipeline = session.pipeline(8).await.unwrap();
    let first = pipeline.submit("trap").await.unwrap();
    let second = pipeline.submit("fine").await.unwrap();
    assert!(matches!(first.await, Err(Error::ModuleTrapped { .. })));
    second.await.unwrap();
    pipeline.close().await.unwrap();
}

#[tokio::test]
async fn an_expired_session_ends_the_pipeline() {
    let cluster = Cluster::start(1).await;
    let session = cluster.client().open_session(None).await.unwrap();
    session.close().await.unwrap();
    let pipeline = session.pipeline(8).await.unwrap();
    let outcome = pipeline.submit("x").await.unwrap();
    assert!(matches!(outcome.await, Err(Error::SessionExpired { .. })));
    assert!(matches!(pipeline.close().await, Err(Error::SessionExpired { .. })));
    assert!(matches!(session.execute("y").await, Err(Error::SessionExpired { .. })));
}

#[tokio::test]
async fn execute_waits_for_the_pipeline_no_longer_than_its_deadline() {
    let cluster = Cluster::start(1).await;
    let session = cluster.client().open_session(None).await.unwrap();
    let pipeline = session.pipeline(1).await.unwrap();
    let error = session.execute_within("x", Duration::from_millis(50)).await.unwrap_err();
    assert!(matches!(error, Error::SessionBusy { .. }), "{error}");
    pipeline.close().await.unwrap();
    session.execute("x").await.unwrap();
}

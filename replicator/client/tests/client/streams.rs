use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures::future::join_all;
use replicator_client::{Client, Consistency, Error, LogIndex, Sequence, Session};

use crate::fake::{Cluster, Fault};

fn client(cluster: &Cluster) -> Client {
    cluster.builder().streams(true).build().unwrap()
}

async fn sessions(client: &Client, count: usize) -> Vec<Session> {
    join_all((0..count).map(|_| client.open_session(None))).await.into_iter().map(Result::unwrap).collect()
}

/// Every session executes `each` requests, one after the other and all sessions at once; each is executed once.
async fn execute_all(cluster: &Cluster, sessions: &[Session], each: usize) {
    join_all(sessions.iter().enumerate().map(async |(s, session)| {
        for r in 0..each {
            let done = session.execute(format!("s{s} r{r}")).await.unwrap();
            assert_eq!((done.response, done.sequence), (format!("did s{s} r{r}").into(), Sequence(r as u64 + 1)));
        }
    }))
    .await;
    let mut log = cluster.log();
    log.sort();
    let mut all: Vec<_> = (0..sessions.len()).flat_map(|s| (0..each).map(move |r| format!("s{s} r{r}"))).collect();
    all.sort();
    assert_eq!(log, all);
}

#[tokio::test]
async fn all_calls_share_one_stream_of_each_kind_and_those_at_once_a_message() {
    let cluster = Cluster::start(1).await;
    let client = client(&cluster);
    let sessions = sessions(&client, 50).await;
    execute_all(&cluster, &sessions, 4).await;
    assert_eq!(cluster.state().messages[0], 50);
    assert!(cluster.state().messages.len() < 200, "{:?}", cluster.state().messages);

    let query = async |n: usize| client.query(format!("q{n}"), Consistency::Local, None).await.unwrap().response;
    let answers = join_all((0..20).map(query)).await;
    assert_eq!(answers, (0..20).map(|n| format!("q{n}")).collect::<Vec<_>>());
    assert_eq!(cluster.state().streams, [(0, "execute"), (0, "query")]);
}

#[tokio::test]
async fn a_message_is_bounded() {
    let cluster = Cluster::start(1).await;
    let client = client(&cluster);
    let many = join_all((0..600).map(|n| client.query(format!("{n}"), Consistency::Local, None))).await;
    assert!(many.iter().all(Result::is_ok));
    assert_eq!(cluster.state().messages, [256, 256, 88]);

    cluster.state().messages.clear();
    let long = "x".repeat(100 << 10);
    let many = join_all((0..6).map(|_| client.query(long.clone(), Consistency::Local, None))).await;
    assert!(many.iter().all(Result::is_ok));
    assert!(cluster.state().messages.iter().all(|&requests| requests <= 2), "{:?}", cluster.state().messages);
}

#[tokio::test]
async fn calls_at_once_make_one_connection() {
    let cluster = Cluster::start(1).await;
    let made = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&made);
    let builder = cluster.builder().streams(true).connect_with(move |endpoint| {
        counted.fetch_add(1, Ordering::Relaxed);
        async move { endpoint.connect().await }
    });
    sessions(&builder.build().unwrap(), 40).await;
    assert_eq!(made.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn results_find_their_calls_in_any_order() {
    let cluster = Cluster::start(1).await;
    let client = client(&cluster);
    let sessions = sessions(&client, 10).await;
    cluster.at(0, &[Fault::Reverses(10), Fault::Reverses(10)]);
    execute_all(&cluster, &sessions, 3).await;
    let query = async |n: usize| client.query(format!("q{n}"), Consistency::Local, None).await.unwrap().response;
    assert_eq!(join_all((0..10).map(query)).await, (0..10).map(|n| format!("q{n}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_result_that_names_no_session_is_of_the_first_ones() {
    let cluster = Cluster::start(1).await;
    cluster.state().anonymous = true;
    let sessions = sessions(&client(&cluster), 1).await;
    execute_all(&cluster, &sessions, 3).await;
}

#[tokio::test]
async fn a_result_that_comes_twice_is_ignored() {
    let cluster = Cluster::start(1).await;
    let sessions = sessions(&client(&cluster), 5).await;
    cluster.at(0, &[Fault::Repeats]);
    execute_all(&cluster, &sessions, 5).await;
    assert_eq!(cluster.state().streams.len(), 1);
}

#[tokio::test]
async fn broken_streams_are_completed_elsewhere_and_nothing_is_doubled() {
    let cluster = Cluster::start(3).await;
    let client = client(&cluster);
    let sessions = sessions(&client, 40).await;
    let breaks = |after| Fault::BreaksAfter(after);
    cluster.everywhere(&[
        breaks(7),
        Fault::Broken,
        breaks(0),
        breaks(100),
        Fault::LosesFirst { primary: None },
        breaks(3),
    ]);
    execute_all(&cluster, &sessions, 10).await;

    cluster.everywhere(&[breaks(3), breaks(0), Fault::Broken]);
    let query = async |n: usize| client.query(format!("q{n}"), Consistency::Local, None).await.unwrap().response;
    assert_eq!(join_all((0..10).map(query)).await, (0..10).map(|n| format!("q{n}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn silent_streams_are_left_for_others() {
    let cluster = Cluster::start(2).await;
    let client = client(&cluster);
    let sessions = sessions(&client, 10).await;
    cluster.everywhere(&[Fault::ExecutesThenSilent, Fault::Silent]);
    execute_all(&cluster, &sessions, 3).await;
    cluster.everywhere(&[Fault::Silent]);
    assert_eq!(client.query("q", Consistency::Local, None).await.unwrap().response, "q");
}

#[tokio::test]
async fn a_stream_that_is_never_opened_is_left_for_another() {
    let cluster = Cluster::start(1).await;
    // Accepts connections, and says nothing on them.
    let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoints = [mute.local_addr().unwrap().to_string(), cluster.addresses[0].clone()];
    let builder = Client::builder().endpoints(endpoints).attempt_timeout(Duration::from_millis(100)).streams(true);
    let client = builder.build().unwrap();
    for _ in 0..5 {
        let sessions = sessions(&client, 3).await;
        for session in &sessions {
            session.execute("x").await.unwrap();
        }
    }
    assert_eq!(cluster.log().len(), 15);
}

#[tokio::test]
async fn the_primary_named_in_a_result_is_asked_next() {
    let cluster = Cluster::start(2).await;
    let client = Client::builder().endpoints([cluster.addresses[0].clone()]).streams(true).build().unwrap();
    let session = client.open_session(None).await.unwrap();
    cluster.at(0, &[Fault::LosesFirst { primary: Some(cluster.addresses[1].clone()) }]);
    assert_eq!(session.execute("x").await.unwrap().node_id, "n1");
    assert_eq!(session.execute("y").await.unwrap().node_id, "n1", "the node that answered is kept");
    assert_eq!(cluster.state().streams, [(0, "execute"), (1, "execute")]);
}

#[tokio::test]
async fn a_dropped_call_is_resolved_by_the_next_and_its_late_result_is_nobodys() {
    let cluster = Cluster::start(1).await;
    let client = client(&cluster);
    let session = client.open_session(None).await.unwrap();
    cluster.at(0, &[Fault::Delays]);
    tokio::time::timeout(Duration::from_millis(50), session.execute("dropped")).await.unwrap_err();
    // The node gives the late result with the next one.
    let done = session.execute("next").await.unwrap();
    assert_eq!((done.sequence, done.response), (Sequence(2), "did next".into()));
    assert_eq!(session.execute("last").await.unwrap().sequence, Sequence(3));
    assert_eq!(cluster.log(), ["dropped", "next", "last"]);
    assert_eq!(cluster.received("dropped"), 2, "resolved in a call of its own");
    assert_eq!(cluster.state().streams.len(), 1);
}

#[tokio::test]
async fn a_node_that_can_not_serve_and_a_call_in_a_hurry_leave_the_stream_to_the_others() {
    let cluster = Cluster::start(1).await;
    let client = client(&cluster);
    let session = client.open_session(None).await.unwrap();
    cluster.at(0, &[Fault::LosesFirst { primary: None }]);
    session.execute("x").await.unwrap();
    assert_eq!((cluster.received("x"), cluster.state().streams.len()), (1, 1));

    let cluster = Cluster::start(1).await;
    let client = self::client(&cluster);
    let session = client.open_session(None).await.unwrap();
    cluster.at(0, &[Fault::Delays]);
    let error = session.execute_within("hurried", Duration::from_millis(50)).await.unwrap_err();
    assert!(matches!(error, Error::OutcomeUnknown { sequence: Sequence(1), .. }), "{error}");
    assert_eq!(session.execute("next").await.unwrap().sequence, Sequence(2));
    assert_eq!(cluster.state().streams.len(), 1);
}

#[tokio::test]
async fn the_deadline_is_kept_and_the_outcome_is_found_later() {
    let cluster = Cluster::start(1).await;
    let client = client(&cluster);
    let session = client.open_session(None).await.unwrap();
    cluster.at(0, &vec![Fault::ExecutesThenSilent; 100]);
    let began = Instant::now();
    let error = session.execute_within("x", Duration::from_millis(300)).await.unwrap_err();
    let took = began.elapsed();
    assert!(matches!(error, Error::OutcomeUnknown { sequence: Sequence(1), .. }), "{error}");
    assert!(took >= Duration::from_millis(295) && took < Duration::from_secs(2), "{took:?}");
    cluster.at(0, &[]);
    let outcomes = session.resolve().await.unwrap();
    assert!(matches!(&outcomes[..], [(Sequence(1), Ok(done))] if done.log_index == LogIndex(101)), "{outcomes:?}");
    assert_eq!(cluster.log(), ["x"]);
}

#[tokio::test]
async fn what_was_sent_on_a_stream_that_broke_is_unknown_until_it_is_resolved() {
    let cluster = Cluster::start(1).await;
    let client = client(&cluster);
    let session = client.open_session(None).await.unwrap();
    cluster.at(0, &vec![Fault::BreaksAfter(0); 1_000]);
    let error = session.execute_within("x", Duration::from_millis(100)).await.unwrap_err();
    assert!(matches!(error, Error::OutcomeUnknown { sequence: Sequence(1), .. }), "{error}");
    cluster.at(0, &[]);
    assert_eq!(session.execute("y").await.unwrap().sequence, Sequence(2));
    assert_eq!(cluster.log(), ["x", "y"]);
}

#[tokio::test]
async fn a_request_that_no_node_took_frees_its_number() {
    let cluster = Cluster::start(1).await;
    let client = cluster.builder().streams(true).deadline(Duration::from_millis(150)).build().unwrap();
    let session = client.open_session(None).await.unwrap();
    // Nobody listens there: the port was free a moment ago.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let nowhere =
        Client::builder().endpoints([free]).streams(true).deadline(Duration::from_millis(150)).build().unwrap();
    let lost = Session::resume(&nowhere, session.saved());
    assert!(matches!(lost.execute("never").await.unwrap_err(), Error::Unavailable { .. }));
    assert!(matches!(nowhere.query("q", Consistency::Local, None).await, Err(Error::Unavailable { .. })));
    assert_eq!(session.execute("other").await.unwrap().sequence, Sequence(1));
}

#[tokio::test]
async fn outcomes_and_refusals_come_over_the_stream_too() {
    let cluster = Cluster::start(1).await;
    let client = client(&cluster);
    let session = client.open_session(None).await.unwrap();
    assert!(matches!(session.execute("trap").await, Err(Error::ModuleTrapped { log_index: LogIndex(101), .. })));
    assert!(matches!(session.execute("large").await, Err(Error::RequestTooLarge { .. })));
    assert_eq!(session.execute("next").await.unwrap().sequence, Sequence(2));
    session.close().await.unwrap();
    assert!(matches!(session.execute("gone").await, Err(Error::SessionExpired { .. })));
}

#[tokio::test]
async fn a_large_request_travels_alone() {
    let cluster = Cluster::start(1).await;
    let client = client(&cluster);
    let session = client.open_session(None).await.unwrap();
    let long = "x".repeat(300 << 10);
    assert_eq!(session.execute(long.clone()).await.unwrap().response.len(), long.len() + 4);
    assert_eq!(client.query(long.clone(), Consistency::Local, None).await.unwrap().response, long);
    assert!(cluster.state().streams.is_empty());
}

#[tokio::test]
async fn two_users_of_one_session_never_get_each_others_results() {
    let cluster = Cluster::start(1).await;
    let client = client(&cluster);
    let session = client.open_session(None).await.unwrap();
    for round in 0..20 {
        let (one, other) = (format!("one {round}"), format!("other {round}"));
        let rival = Session::resume(&client, session.saved());
        let (first, second) = tokio::join!(session.execute(one.clone()), rival.execute(other.clone()));
        let (winner, done, refused) = match (first, second) {
            (Ok(done), Err(refused)) => (one, done, refused),
            (Err(refused), Ok(done)) => (other, done, refused),
            both => panic!("{both:?}"),
        };
        assert_eq!(done.response, format!("did {winner}"));
        assert!(matches!(refused, Error::SequenceReused { .. }), "{refused}");
        assert_eq!(cluster.log().last(), Some(&winner));
    }
    assert_eq!(cluster.log().len(), 20);
}

#[test]
fn a_client_outlives_the_runtime_that_opened_its_streams() {
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let serving = runtime();
    let cluster = serving.block_on(Cluster::start(1));
    let client = client(&cluster);
    for n in 1..=3 {
        let answer = runtime().block_on(client.query(format!("q{n}"), Consistency::Local, None)).unwrap();
        assert_eq!(answer.response, format!("q{n}"));
    }
}

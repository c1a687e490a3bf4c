use std::time::{Duration, Instant};

use replicator_client::{Client, Consistency, Error, Executed, LogIndex, Sequence, Vote};

use crate::fake::{Cluster, Fault};

async fn cluster() -> Cluster {
    let cluster = Cluster::start(3).await;
    cluster.name_members(&[0, 1, 2]);
    cluster
}

fn names(vote: &Vote<Executed>) -> Vec<(&str, bool)> {
    vote.ballots.iter().map(|ballot| (&ballot.node_id[..], ballot.is_answered())).collect()
}

#[tokio::test]
async fn all_replicas_agree_and_the_request_is_executed_once() {
    let cluster = cluster().await;
    let client = cluster.client();
    let session = client.open_session(None).await.unwrap();
    let vote = session.execute_vote("x").await.unwrap();
    assert_eq!(vote.verdict.to_string(), "AGREED 3/3");
    assert_eq!(vote.answer.as_ref().unwrap().response, "did x");
    assert_eq!(names(&vote), [("n0", true), ("n1", true), ("n2", true)]);
    for (at, ballot) in vote.ballots.iter().enumerate() {
        assert_eq!(ballot.endpoint, cluster.addresses[at]);
        assert_eq!(ballot.answer.as_ref().unwrap().node_id, format!("n{at}"));
    }
    assert_eq!((cluster.log(), cluster.received("x")), (vec!["x".to_owned()], 3));
    assert_eq!(session.execute("y").await.unwrap().sequence, Sequence(2));
    assert_eq!(cluster.received("x"), 3, "nothing was left to be found out");

    let vote = client.query_vote("q", Consistency::Linearizable, Some(&session)).await.unwrap();
    assert_eq!((vote.verdict.to_string(), vote.answer.unwrap().response), ("AGREED 3/3".into(), "q".into()));
    assert_eq!(cluster.state().queries.len(), 3);
}

#[tokio::test]
async fn a_wrong_replica_is_outvoted() {
    let cluster = cluster().await;
    cluster.state().wrong.insert(0, " wrongly");
    let session = cluster.client().open_session(None).await.unwrap();
    let vote = session.execute_vote("x").await.unwrap();
    assert_eq!(vote.verdict.to_string(), "MAJORITY 2/3");
    assert_eq!(vote.answer.unwrap().response, "did x");
    assert_eq!(vote.ballots[0].answer.as_ref().unwrap().response, "did x wrongly");

    let vote = session.client().query_vote("q", Consistency::Local, None).await.unwrap();
    assert_eq!((vote.verdict.to_string(), vote.answer.unwrap().response), ("MAJORITY 2/3".into(), "q".into()));
}

#[tokio::test]
async fn replicas_that_all_differ_disagree_and_the_first_is_shown() {
    let cluster = cluster().await;
    cluster.state().wrong.extend([(0, " wrongly"), (2, " oddly")]);
    let session = cluster.client().open_session(None).await.unwrap();
    let vote = session.execute_vote("x").await.unwrap();
    assert_eq!(vote.verdict.to_string(), "DISAGREE");
    assert_eq!(vote.answer.unwrap().response, "did x wrongly");
    assert_eq!(session.execute("y").await.unwrap().sequence, Sequence(2), "the session goes on");

    let vote = session.client().query_vote("q", Consistency::Local, None).await.unwrap();
    assert_eq!(vote.verdict.to_string(), "DISAGREE");
    assert!(!vote.verdict.is_majority());
}

#[tokio::test]
async fn a_silent_replica_is_not_waited_for_longer_than_an_attempt_and_the_grace() {
    let cluster = cluster().await;
    let session = cluster.client().open_session(None).await.unwrap();
    cluster.at(1, &vec![Fault::Silent; 100]);
    let began = Instant::now();
    let vote = session.execute_vote("x").await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    assert_eq!(vote.verdict.to_string(), "MAJORITY 2/3");
    assert_eq!(names(&vote), [("n0", true), ("n1", false), ("n2", true)]);
    assert!(matches!(vote.ballots[1].answer, Err(Error::OutcomeUnknown { sequence: Sequence(1), .. })));
    assert_eq!(session.execute("y").await.unwrap().sequence, Sequence(2));
}

#[tokio::test]
async fn a_replica_that_refuses_connections_gets_a_second() {
    let cluster = cluster().await;
    let session = cluster.client().open_session(None).await.unwrap();
    cluster.stop(2);
    let began = Instant::now();
    let vote = session.execute_vote("x").await.unwrap();
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(4), "{took:?}");
    assert_eq!(vote.verdict.to_string(), "MAJORITY 2/3");
    match &vote.ballots[2].answer {
        Err(Error::Unavailable { endpoints, .. }) => assert_eq!(endpoints, &cluster.addresses[2]),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_replica_that_fails_for_a_moment_is_asked_again() {
    let cluster = cluster().await;
    let session = cluster.client().open_session(None).await.unwrap();
    // A hint doesn't lead away: this replica's own answer is wanted.
    let elsewhere = Fault::NotReady { primary: Some(cluster.addresses[0].clone()) };
    cluster.at(1, &[elsewhere, Fault::Broken, Fault::ExecutesThenBroken]);
    let vote = session.execute_vote("x").await.unwrap();
    assert_eq!(vote.verdict.to_string(), "AGREED 3/3");
    assert_eq!(vote.ballots[1].answer.as_ref().unwrap().node_id, "n1");
    assert_eq!(cluster.log(), ["x"]);
}

#[tokio::test]
async fn one_answer_of_three_is_unconfirmed() {
    let cluster = cluster().await;
    let client = cluster.builder().deadline(Duration::from_millis(500)).build().unwrap();
    let session = client.open_session(None).await.unwrap();
    cluster.stop(0);
    cluster.stop(2);
    let vote = session.execute_vote("x").await.unwrap();
    assert_eq!(vote.verdict.to_string(), "UNCONFIRMED 1/3");
    assert_eq!(vote.answer.unwrap().node_id, "n1");
}

#[tokio::test]
async fn without_an_answer_the_outcome_is_unknown_and_found_later() {
    let cluster = cluster().await;
    let client = cluster.builder().deadline(Duration::from_millis(300)).build().unwrap();
    let session = client.open_session(None).await.unwrap();
    cluster.everywhere(&vec![Fault::ExecutesThenSilent; 50]);
    let error = session.execute_vote("x").await.unwrap_err();
    assert!(matches!(error, Error::OutcomeUnknown { sequence: Sequence(1), .. }), "{error}");
    cluster.everywhere(&[]);
    let outcomes = session.resolve().await.unwrap();
    assert!(matches!(&outcomes[..], [(Sequence(1), Ok(done))] if done.log_index == LogIndex(101)), "{outcomes:?}");
    assert_eq!(cluster.log(), ["x"]);
}

#[tokio::test]
async fn a_vote_that_reached_no_replica_frees_its_number() {
    let cluster = cluster().await;
    let client = cluster.builder().deadline(Duration::from_millis(300)).build().unwrap();
    let session = client.open_session(None).await.unwrap();
    cluster.everywhere(&vec![Fault::NotReady { primary: None }; 1_000]);
    assert!(matches!(session.execute_vote("never").await, Err(Error::Unavailable { .. })));
    assert!(matches!(client.query_vote("q", Consistency::Local, None).await, Err(Error::Unavailable { .. })));
    cluster.everywhere(&[]);
    assert_eq!(session.execute("other").await.unwrap().sequence, Sequence(1));
    assert_eq!(cluster.log(), ["other"]);
}

#[tokio::test]
async fn a_trap_is_an_answer_and_a_refusal_an_error() {
    let cluster = cluster().await;
    let session = cluster.client().open_session(None).await.unwrap();
    let vote = session.execute_vote("trap").await.unwrap();
    assert_eq!(vote.verdict.to_string(), "AGREED 3/3");
    assert!(matches!(vote.answer, Err(Error::ModuleTrapped { log_index: LogIndex(101), .. })));
    assert!(matches!(session.execute_vote("large").await, Err(Error::RequestTooLarge { .. })));
    assert_eq!(session.execute_vote("next").await.unwrap().answer.unwrap().sequence, Sequence(2));
}

#[tokio::test]
async fn the_voters_are_asked_and_no_others() {
    let cluster = Cluster::start(4).await;
    cluster.name_members(&[0, 1, 2]);
    let client = Client::builder().endpoints([cluster.addresses[3].clone()]).build().unwrap();
    let session = client.open_session(None).await.unwrap();
    let vote = session.execute_vote("x").await.unwrap();
    assert_eq!(names(&vote), [("n0", true), ("n1", true), ("n2", true)]);
    assert_eq!(session.execute("y").await.unwrap().node_id, "n3", "other calls stay where they were");
}

#[tokio::test]
async fn other_calls_stay_at_their_node() {
    let cluster = cluster().await;
    let session = cluster.client().open_session(None).await.unwrap();
    let node = session.execute("x").await.unwrap().node_id;
    for n in 0..5 {
        session.execute_vote(format!("vote {n}")).await.unwrap();
        assert_eq!(session.execute(format!("call {n}")).await.unwrap().node_id, node);
    }
}

#[tokio::test]
async fn where_no_node_knows_the_voters_the_configured_ones_are_asked() {
    let cluster = Cluster::start(2).await;
    let session = cluster.client().open_session(None).await.unwrap();
    let vote = session.execute_vote("x").await.unwrap();
    assert_eq!(vote.verdict.to_string(), "AGREED 2/2");
    let endpoints: Vec<_> = vote.ballots.iter().map(|ballot| ballot.endpoint.clone()).collect();
    assert_eq!(endpoints, cluster.addresses);
    assert_eq!(names(&vote), [("n0", true), ("n1", true)], "a replica that answers says who it is");
}

#[tokio::test]
async fn one_refusal_beside_unknown_outcomes_is_unknown_and_found_later() {
    let cluster = cluster().await;
    let client = cluster.builder().deadline(Duration::from_millis(300)).build().unwrap();
    let session = client.open_session(None).await.unwrap();
    cluster.state().refusing.insert(0);
    for node in [1, 2] {
        cluster.at(node, &vec![Fault::ExecutesThenSilent; 50]);
    }
    let error = session.execute_vote("x").await.unwrap_err();
    assert!(matches!(error, Error::OutcomeUnknown { sequence: Sequence(1), .. }), "{error}");
    cluster.state().refusing.clear();
    cluster.at(1, &[]);
    cluster.at(2, &[]);
    assert_eq!(session.execute("y").await.unwrap().sequence, Sequence(2), "the number went to another request");
    assert_eq!(cluster.log(), ["x", "y"]);
}

#[tokio::test]
async fn two_addresses_of_one_node_are_one_vote() {
    let cluster = Cluster::start(1).await;
    let address = &cluster.addresses[0];
    let port = address.rsplit_once(':').unwrap().1;
    let client = Client::builder().endpoints([address.clone(), format!("localhost:{port}")]).build().unwrap();
    let session = client.open_session(None).await.unwrap();
    let vote = session.execute_vote("x").await.unwrap();
    assert_eq!((vote.verdict.to_string(), vote.ballots.len()), ("AGREED 1/1".to_owned(), 1));
    let vote = client.query_vote("q", Consistency::Local, None).await.unwrap();
    assert_eq!(vote.verdict.to_string(), "AGREED 1/1");
}

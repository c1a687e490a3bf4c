use replicator_client::{Consistency, LogIndex, SavedSession, Session};

use crate::fake::{Cluster, Fault, LINEAGE};

#[tokio::test]
async fn a_session_query_sees_at_least_what_was_seen() {
    let cluster = Cluster::start(2).await;
    let client = cluster.client();
    let session = client.open_session(None).await.unwrap();
    session.execute("x").await.unwrap();
    let answer = client.query("q", Consistency::Session, Some(&session)).await.unwrap();
    assert_eq!(answer.log_index, LogIndex(101));
    let query = cluster.state().queries[0].clone();
    assert_eq!((query.min_log_index, query.lineage), (101, LINEAGE));
    assert_eq!(query.session_id[..], session.id().0);
}

#[tokio::test]
async fn a_query_is_asked_elsewhere() {
    let cluster = Cluster::start(3).await;
    cluster.everywhere(&[Fault::Broken, Fault::Silent]);
    let answer = cluster.client().query("q", Consistency::Linearizable, None).await.unwrap();
    assert_eq!(answer.response, "q");
    assert_eq!(cluster.state().queries[0].min_log_index, 0);
}

#[tokio::test]
async fn clones_share_what_was_seen() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client();
    let session = client.clone().open_session(None).await.unwrap();
    assert_eq!(client.log_index_seen(), LogIndex(5));
    session.execute("x").await.unwrap();
    assert_eq!(client.log_index_seen(), LogIndex(101));
}

#[tokio::test]
async fn a_session_knows_the_longest_request_also_after_it_was_saved() {
    let cluster = Cluster::start(1).await;
    let session = cluster.client().open_session(None).await.unwrap();
    assert_eq!(session.request_bytes_max(), 1 << 20);
    let saved = session.saved();
    assert_eq!(Session::resume(&cluster.client(), saved.clone()).request_bytes_max(), 1 << 20);
    let old = SavedSession { request_bytes_max: 0, ..saved };
    assert_eq!(Session::resume(&cluster.client(), old).request_bytes_max(), 0);
}

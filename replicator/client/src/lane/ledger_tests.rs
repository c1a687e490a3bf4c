//! The ledger alone: no request is kept, doubled or mixed up, whatever callers do.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use bytes::Bytes;
use futures::StreamExt as _;
use replicator_proto::replicator::v1 as pb;
use tokio::{
    sync::oneshot,
    time::{Duration, Instant},
};
use tonic::{Status, transport::Endpoint};

use super::{
    End, Lane, Miss, Shared, Traffic,
    ledger::{GIVEN_UP_MAX, Ledger, MESSAGE_BYTES_MAX, MESSAGE_REQUESTS_MAX, Ticket},
    stream::Outgoing,
    traffic::{Executions, Queries},
};

type Outcome<T> = (<T as Traffic>::Key, Result<<T as Traffic>::Answer, Miss>);
type Waiting<T> = oneshot::Receiver<Result<<T as Traffic>::Answer, Miss>>;

fn execution(session: u8, sequence: u64) -> pb::ExecuteRequest {
    let session_id = Bytes::copy_from_slice(&[session; 16]);
    pb::ExecuteRequest { session_id, sequence, acked_below: 0, request: Bytes::from_static(b"x") }
}

fn executed(session: u8, sequence: u64) -> (([u8; 16], u64), Result<pb::ExecuteResponse, Miss>) {
    (([session; 16], sequence), Ok(pb::ExecuteResponse { log_index: sequence, ..Default::default() }))
}

fn later() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn submit<T: Traffic>(ledger: &mut Ledger<T>, request: T::Request) -> (Ticket<T::Key>, Waiting<T>) {
    let (reply, waiting) = oneshot::channel();
    let submitted = ledger.submit(request, later(), reply).map_err(|miss| format!("{miss:?}")).unwrap();
    (submitted.ticket, waiting)
}

fn settle<T: Traffic>(ledger: &mut Ledger<T>, results: Vec<Outcome<T>>) -> usize {
    let mut ready = Vec::new();
    ledger.settle(results.into_iter(), &mut ready);
    let count = ready.len();
    ready.into_iter().for_each(|(reply, result)| drop(reply.send(result)));
    count
}

#[test]
fn a_call_given_up_before_it_is_sent_leaves_nothing() {
    let mut ledger = Ledger::<Executions>::new();
    let (first, _first) = submit(&mut ledger, execution(1, 1));
    let (_second, _waiting) = submit(&mut ledger, execution(2, 1));
    assert!(ledger.give_up(first));
    assert_eq!(ledger.len(), (1, 1));
    let sent: Vec<_> = ledger.take().into_iter().map(|(_, request)| request.session_id[0]).collect();
    assert_eq!(sent, [2]);
    submit(&mut ledger, execution(1, 1)); // its key is free
}

#[test]
fn the_key_of_an_execution_given_up_stays_taken_until_it_is_answered() {
    let mut ledger = Ledger::<Executions>::new();
    let (ticket, waiting) = submit(&mut ledger, execution(1, 1));
    ledger.take();
    drop(waiting);
    assert!(ledger.give_up(ticket));
    assert!(ledger.give_up(ticket), "twice is no more than once");
    let (reply, _waiting) = oneshot::channel();
    assert!(matches!(ledger.submit(execution(1, 1), later(), reply), Err(Miss::Taken)));
    assert_eq!(settle(&mut ledger, vec![executed(1, 1)]), 0, "nobody waits for it");
    assert_eq!(ledger.len(), (0, 0));
    submit(&mut ledger, execution(1, 1));
}

#[test]
fn a_query_given_up_leaves_nothing() {
    let mut ledger = Ledger::<Queries>::new();
    let (ticket, _waiting) = submit(&mut ledger, pb::QueryRequest::default());
    ledger.take();
    assert!(ledger.give_up(ticket));
    assert_eq!(ledger.len(), (0, 0));
    let (_, mut waiting) = submit(&mut ledger, pb::QueryRequest::default());
    ledger.take();
    assert_eq!(settle(&mut ledger, vec![(0, Ok(pb::QueryResponse::default()))]), 0, "the late result is nobody's");
    assert!(waiting.try_recv().is_err());
}

#[test]
fn too_many_given_up_end_the_stream() {
    let mut ledger = Ledger::<Executions>::new();
    for sequence in 1..=GIVEN_UP_MAX as u64 {
        let (ticket, _) = submit(&mut ledger, execution(1, sequence));
        while ledger.has_requests() {
            ledger.take();
        }
        assert!(ledger.give_up(ticket));
    }
    let (ticket, _) = submit(&mut ledger, execution(2, 1));
    ledger.take();
    assert!(!ledger.give_up(ticket) && ledger.is_littered());
}

#[test]
fn results_come_once_and_only_for_what_was_sent() {
    let mut ledger = Ledger::<Executions>::new();
    let (_, mut waiting) = submit(&mut ledger, execution(1, 1));
    assert_eq!(settle(&mut ledger, vec![executed(1, 1)]), 0, "an earlier call's: this one wasn't sent");
    ledger.take();
    assert_eq!(settle(&mut ledger, vec![executed(1, 2), executed(2, 1)]), 0);
    assert_eq!(settle(&mut ledger, vec![executed(1, 1), executed(1, 1)]), 1);
    assert_eq!(waiting.try_recv().unwrap().unwrap().log_index, 1);
}

#[test]
fn time_up_is_told_and_what_was_sent_is_told_apart() {
    let mut ledger = Ledger::<Executions>::new();
    let now = Instant::now();
    assert!(ledger.expired(now).is_none(), "nobody waits");
    let (reply, mut sent) = oneshot::channel();
    ledger.submit(execution(1, 1), now, reply).ok();
    ledger.take();
    let (reply, mut unsent) = oneshot::channel();
    ledger.submit(execution(2, 1), now, reply).ok();
    let (_, mut waiting) = submit(&mut ledger, execution(3, 1));
    for (reply, miss) in ledger.expired(now).unwrap() {
        reply.send(Err(miss)).ok();
    }
    assert!(matches!(sent.try_recv(), Ok(Err(Miss::TimedOut { sent: true }))));
    assert!(matches!(unsent.try_recv(), Ok(Err(Miss::TimedOut { sent: false }))));
    assert!(waiting.try_recv().is_err());
    assert_eq!(ledger.len(), (1, 2), "the one that waits, and the mark of the one that was sent");
    assert_eq!(ledger.expired(now).unwrap().len(), 0);
}

#[test]
fn the_end_is_told_to_all_and_to_all_who_come_later() {
    let mut ledger = Ledger::<Executions>::new();
    let (_, _sent) = submit(&mut ledger, execution(1, 1));
    ledger.take();
    let (_, _unsent) = submit(&mut ledger, execution(2, 1));
    let end = |words: &str| End { status: Status::unavailable(words.to_owned()), begun: true };
    let mut sent: Vec<_> = ledger
        .close(end("first"))
        .into_iter()
        .map(|(_, miss)| match miss {
            Miss::Ended { sent, status, .. } => (sent, status.message().to_owned()),
            other => panic!("{other:?}"),
        })
        .collect();
    sent.sort();
    assert_eq!(sent, [(false, "first".to_owned()), (true, "first".to_owned())]);
    assert!(ledger.close(end("second")).is_empty());
    let (reply, _waiting) = oneshot::channel();
    let refused = ledger.submit(execution(3, 1), later(), reply).err();
    assert!(matches!(refused, Some(Miss::Ended { sent: false, status, .. }) if status.message() == "first"));
    assert_eq!(ledger.len(), (0, 0));
}

#[test]
fn messages_are_bounded_by_count_and_by_bytes() {
    let mut ledger = Ledger::<Queries>::new();
    let _many: Vec<_> = (0..MESSAGE_REQUESTS_MAX + 1).map(|_| submit(&mut ledger, Default::default())).collect();
    assert_eq!((ledger.take().len(), ledger.take().len()), (MESSAGE_REQUESTS_MAX, 1));
    let long = |bytes| pb::QueryRequest { request: Bytes::from(vec![0; bytes]), ..Default::default() };
    let sizes = [MESSAGE_BYTES_MAX / 2, MESSAGE_BYTES_MAX / 2, 1, MESSAGE_BYTES_MAX + 1, 1];
    let _many: Vec<_> = sizes.into_iter().map(|bytes| submit(&mut ledger, long(bytes))).collect();
    let counts: Vec<_> = (0..4).map(|_| ledger.take().len()).collect();
    assert_eq!(counts, [2, 1, 1, 1]);
}

#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_lone_request_leaves_at_once_and_those_of_a_crowd_share_a_message() {
    let shared = Arc::new(Shared::<Queries>::new());
    let wakes = Arc::new(Wakes::default());
    let waker = Waker::from(Arc::clone(&wakes));
    let mut context = Context::from_waker(&waker);
    let mut outgoing = Outgoing::new(Arc::clone(&shared));
    let mut poll = || outgoing.poll_next_unpin(&mut context).map(|message| message.map(|m| m.queries.len()));
    let submit = || {
        let (reply, waiting) = oneshot::channel();
        let writer = shared.ledger().submit(Default::default(), later(), reply).ok().and_then(|s| s.writer);
        writer.inspect(|writer| writer.wake_by_ref());
        waiting
    };
    assert_eq!(poll(), Poll::Pending);
    let _first = submit();
    assert_eq!((wakes.0.load(Ordering::Relaxed), poll()), (1, Poll::Ready(Some(1))));
    assert_eq!(poll(), Poll::Pending);

    let _second = submit(); // one is under way: others may be about to come
    assert_eq!(poll(), Poll::Pending);
    assert_eq!(wakes.0.load(Ordering::Relaxed), 3, "woken by the call, and by itself to let others run");
    let _third = submit();
    assert_eq!(poll(), Poll::Ready(Some(2)));
    assert_eq!(poll(), Poll::Pending);

    shared.close(End { status: Status::cancelled("done"), begun: true });
    assert_eq!((wakes.0.load(Ordering::Relaxed), poll()), (4, Poll::Ready(None)));
}

#[tokio::test]
async fn a_dropped_call_is_taken_out_and_a_late_one_is_told() {
    // Accepts connections and says nothing.
    let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = Endpoint::from_shared(format!("http://{}", mute.local_addr().unwrap())).unwrap();
    let lane = Lane::<Queries>::open(endpoint.connect_lazy());
    let short = Duration::from_millis(20);
    tokio::time::timeout(short, lane.call(Default::default(), later())).await.unwrap_err();
    let left = lane.shared.ledger().len();
    assert_eq!(left, (0, 0));

    let late = lane.call(Default::default(), Instant::now() + short).await;
    assert!(matches!(late, Err(Miss::TimedOut { .. })), "{late:?}");
    let left = lane.shared.ledger().len();
    assert_eq!(left, (0, 0));
    let shared = Arc::clone(&lane.shared);
    drop(lane);
    assert!(shared.ledger().has_ended());
}

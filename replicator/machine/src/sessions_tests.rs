//! The session table against a model: any interleaving of duplicates, gaps and acknowledgements.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;

const WINDOW: u32 = 4;

/// A client's or a network's doing: a sequence relative to the last one, its acknowledgement, and which request.
#[derive(Debug, Clone)]
struct Sent {
    sequence: u64,
    acked_below: u64,
    request: u8,
}

fn sent() -> impl Strategy<Value = Sent> {
    (0..12u64, 0..14u64, 0..2u8).prop_map(|(sequence, acked_below, request)| Sent { sequence, acked_below, request })
}

/// What rule 13 says, in its own words.
#[derive(Debug, Default)]
struct Model {
    /// Everything that was ever executed: sequence to request and outcome.
    executed: BTreeMap<u64, (u8, Outcome)>,
    floor: u64,
}

impl Model {
    fn last(&self) -> u64 {
        self.executed.len() as u64
    }

    /// The floor if the request is taken.
    fn floor_after(&self, sent: &Sent) -> u64 {
        sent.acked_below.min(self.last() + 1).max(self.floor).max(1)
    }

    fn expected(&self, sent: &Sent) -> Result<Option<Outcome>, Refusal> {
        let last = Sequence(self.last());
        let floor = self.floor_after(sent);
        match sent.sequence {
            above if above > last.0 + 1 => Err(Refusal::Gap { last }),
            below if below < floor => Err(Refusal::Stale { last }),
            next if next == last.0 + 1 => {
                if next - floor >= u64::from(WINDOW) {
                    Err(Refusal::WindowFull { last })
                } else {
                    Ok(None)
                }
            }
            known => match &self.executed[&known] {
                (request, outcome) if *request == sent.request => Ok(Some(outcome.clone())),
                _ => Err(Refusal::Reused { last }),
            },
        }
    }
}

fn limits() -> Limits {
    Limits { session_window: WINDOW, ..Limits::default() }
}

fn session() -> Sessions {
    let mut sessions = Sessions::default();
    sessions.open(SessionId([1; 16]), 10, 0);
    sessions
}

fn reply(byte: u8) -> RequestResult {
    RequestResult::Reply(Bytes::copy_from_slice(&[byte]))
}

proptest! {
    #[test]
    fn each_sequence_executes_at_most_once_and_answers_are_equal(steps in prop::collection::vec(sent(), 1..80)) {
        let (mut sessions, mut model, limits) = (session(), Model::default(), limits());
        for (index, sent) in (1u64..).zip(&steps) {
            let session = sessions.get_mut(&SessionId([1; 16])).unwrap();
            let verdict =
                session.judge(Sequence(sent.sequence), Sequence(sent.acked_below), &[sent.request], 0, &limits);
            let (floor, expected) = (model.floor_after(sent), model.expected(sent));
            match (verdict, &expected) {
                (Verdict::Execute(hash), Ok(None)) => {
                    let (result, position, digest) = (reply(sent.request), Position::new(1, index), Digest(index));
                    session.store(hash, result.clone(), position, digest);
                    let outcome = Outcome::Executed { result, position, digest };
                    let before = model.executed.insert(sent.sequence, (sent.request, outcome));
                    prop_assert!(before.is_none(), "sequence {} was executed twice", sent.sequence);
                }
                (Verdict::Repeat(outcome), Ok(Some(first))) => prop_assert_eq!(&outcome, first),
                (Verdict::Refuse(refusal), Err(expected)) => prop_assert_eq!(&refusal, expected),
                (verdict, expected) => prop_assert!(false, "{verdict:?} for {sent:?}, expected {expected:?}"),
            }
            if expected.is_ok() {
                model.floor = floor;
            }
            prop_assert_eq!(session.last(), model.last());
            prop_assert!(session.outcomes.len() <= WINDOW as usize);
            let bytes: u64 = session.outcomes.iter().map(|stored| stored.result.bytes() as u64).sum();
            prop_assert_eq!(session.result_bytes, bytes);
        }
    }

    #[test]
    fn a_refusal_changes_nothing(steps in prop::collection::vec(sent(), 1..60)) {
        let (mut sessions, limits) = (session(), limits());
        for sent in &steps {
            let before = sessions.hash();
            let session = sessions.get_mut(&SessionId([1; 16])).unwrap();
            match session.judge(Sequence(sent.sequence), Sequence(sent.acked_below), &[sent.request], 7, &limits) {
                Verdict::Execute(hash) => session.store(hash, reply(0), Position::default(), Digest(0)),
                Verdict::Repeat(_) => {}
                Verdict::Refuse(_) => prop_assert_eq!(sessions.hash(), before),
            }
        }
    }
}

#[test]
fn expiry_is_in_the_order_of_ids() {
    let mut sessions = Sessions::default();
    for id in [9, 3, 7, 1, 200] {
        sessions.open(SessionId([id; 16]), u64::from(id), 0);
    }
    assert_eq!(sessions.expired(8), [1, 3, 7].map(|id| SessionId([id; 16])));
}

#[test]
fn the_hash_does_not_depend_on_the_order_of_opening() {
    let hash = |ids: &[u8]| {
        let mut sessions = Sessions::default();
        ids.iter().for_each(|&id| sessions.open(SessionId([id; 16]), 5, 0));
        sessions.hash()
    };
    assert_eq!(hash(&[1, 2, 3, 4, 5]), hash(&[5, 3, 1, 2, 4]));
    assert_ne!(hash(&[1, 2]), hash(&[1, 3]));
}

proptest! {
    /// A snapshot that comes and goes shows nowhere but in itself.
    #[test]
    fn a_snapshot_is_a_moment_and_the_table_goes_on(
        steps in prop::collection::vec((0..5u8, 0..200u8, any::<bool>()), 1..400)
    ) {
        let (mut sessions, mut plain, mut snapshot) = (Sessions::default(), BTreeMap::new(), None);
        for (now, (what, id, drop)) in (1u64..).zip(steps) {
            let key = SessionId([id; 16]);
            match what {
                0 => prop_assert_eq!(sessions.close(&key), plain.remove(&id).is_some()),
                1 if snapshot.is_none() || drop => {
                    snapshot.take(); // there is one at a time
                    snapshot = Some((sessions.snapshot(), plain.clone())).filter(|_| id % 4 > 0);
                }
                2 if drop => snapshot = None,
                _ => match sessions.get_mut(&key) {
                    Some(session) => {
                        prop_assert_eq!(plain.insert(id, now + 7), Some(session.deadline_us));
                        session.ttl_us = 7;
                        session.touch(now);
                    }
                    None => {
                        prop_assert_eq!(plain.insert(id, now + 7), None);
                        sessions.open(key, 7, now);
                    }
                },
            }
            prop_assert_eq!((sessions.len(), sessions.contains(&key)), (plain.len(), plain.contains_key(&id)));
            let all: BTreeMap<_, _> = sessions.iter().map(|(id, session)| (id.0[0], session.deadline_us)).collect();
            prop_assert_eq!(&all, &plain);
            if let Some((SessionsSnapshot(table), then)) = &snapshot {
                let all: BTreeMap<_, _> = table.iter().map(|(id, session)| (id.0[0], session.deadline_us)).collect();
                prop_assert_eq!(&all, then);
            }
        }
        drop(snapshot);
        for _ in 0..20 {
            sessions.get_mut(&SessionId([0; 16]));
        }
        prop_assert!(sessions.layers.is_none(), "merged");
    }
}

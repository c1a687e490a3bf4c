//! Every prefix of a recovery's steps, as a crash leaves it, and what may be lost in words.

use std::path::Path;

use bytes::Bytes;
use replicator_chain::Life;
use replicator_machine::{Genesis, Limits};
use replicator_storage::{MemberMemory, PeerMemory, Record};
use replicator_types::{ClusterId, Epoch, Incarnation, LogIndex, ModuleHash, Position, Seed};

use super::*;
use crate::replication::chain::offline as chain_log;

const CLUSTER: ClusterId = ClusterId([7; 16]);
const OLD: Lineage = Lineage(0x1111_2222_3333_4444);

fn member(node: &str, disk: DiskId) -> Member {
    Member {
        node: node.into(),
        disk,
        client_address: format!("127.0.0.1:{node}"),
        peer_address: format!("127.0.0.2:{node}"),
        voter: true,
        witness: node.starts_with('w'),
    }
}

fn genesis() -> Bytes {
    let genesis = Genesis {
        cluster: CLUSTER,
        lineage: OLD,
        module: ModuleHash::default(),
        app_config: Bytes::new(),
        limits: Limits::default(),
        engine: "none".into(),
    };
    let command = Command::Genesis(Box::new(genesis));
    codec::encode(&Entry { time_us: 5, seed: Seed([1; 16]), command }).into()
}

fn tick(index: u64) -> Bytes {
    codec::encode(&Entry { time_us: 6, seed: Seed([index as u8; 16]), command: Command::Tick }).into()
}

fn append(dir: &NodeDir, name: &str, records: Vec<Record>) {
    let (log, _) = DiskLog::open(dir, name, DiskLogOptions::default()).unwrap();
    let (done, durable) = std::sync::mpsc::channel();
    log.append(records, Box::new(move |result| drop(done.send(result)))).unwrap();
    durable.recv().unwrap().unwrap();
}

/// A stopped node's folder with some entries, as `n1`; the others are n2, n3, and in chain mode w1.
fn folder(path: &Path, mode: Mode) -> DiskId {
    let dir = NodeDir::open(path, "n1").unwrap();
    let disk = dir.meta().disk;
    let own = member("n1", disk);
    let mut others = vec![member("n2", DiskId(2)), member("n3", DiskId(3))];
    let term = Epoch(3);
    match mode {
        Mode::Majority => {
            let mut records = offline::takeover(&own, &others, None, term, &genesis());
            let rest = offline::takeover(&own, &others, records.last().map(|r| r.position), Epoch(4), &tick(1));
            records.extend(rest);
            append(&dir, LOG, records);
        }
        Mode::Chain => {
            others.push(member("w1", DiskId(4)));
            let records = (0..9).map(|index| Record {
                position: Position::new(4, index),
                payload: if index == 0 { genesis() } else { tick(index) },
            });
            append(&dir, LOG, records.collect());
            let life = Life { disk, incarnation: Incarnation(1) };
            let start = Position::new(4, 6);
            append(&dir, GROUP_LOG, chain_log::founding(&own, &others, life, term, (Epoch(5), start), 2));
        }
    }
    dir.update(|meta| {
        meta.cluster = Some((CLUSTER, OLD));
        meta.mode = Some(mode.to_string());
        meta.vote = Some(offline::vote(Epoch(9), disk));
        meta.incarnation = Incarnation(6);
        meta.seal_attempt = Some((Epoch(11), 2));
        meta.sealed_epoch = Some(Epoch(11));
        let memory = PeerMemory { incarnation: Incarnation(1), start: 1, durable: LogIndex(2) };
        meta.peers.insert(DiskId(2), memory);
    })
    .unwrap();
    disk
}

fn open(path: &Path) -> Recovery {
    Recovery::open(path, &Seams::real()).unwrap()
}

/// Checks that the folder is a node's again, as the plan wants it.
fn check_recovered(path: &Path, mode: Mode, old: DiskId, plan: &Plan) {
    let dir = NodeDir::open(path, "n1").expect("the node can be started");
    let meta = dir.meta();
    assert_eq!((meta.disk, meta.cluster), (plan.disk, Some((CLUSTER, plan.lineage))));
    assert_ne!(meta.disk, old);
    assert_eq!(meta.incarnation, Incarnation(7));
    assert!(meta.peers.is_empty() && meta.recovery.is_none());
    let voters: Vec<&MemberMemory> = meta.members.iter().filter(|member| member.voter).collect();
    assert!(matches!(voters[..], [own] if own.node == "n1" && own.disk == plan.disk), "{voters:?}");
    let (log, _) = DiskLog::open(&dir, LOG, DiskLogOptions::default()).unwrap();
    let mut lineages = Vec::new();
    let end = log.ends().last.unwrap();
    match mode {
        Mode::Majority => {
            let ledger = offline::read(&log, Vec::new(), |_, entry| {
                codec::decode(entry).map(|entry| note(&entry, &mut lineages))
            });
            let members: Vec<(String, bool)> = ledger.unwrap().members.into_iter().map(|m| (m.node, m.voter)).collect();
            assert_eq!(members, [("n1".into(), true), ("n2".into(), false), ("n3".into(), false)]);
            // Four entries of before, the membership, and the recovery, in a term above the vote.
            assert_eq!(end, Position::new(10, 5));
        }
        Mode::Chain => {
            offline::for_each::<_, StorageError>(&log, |record| {
                note(&codec::decode(&record.payload).unwrap(), &mut lineages);
                Ok(())
            })
            .unwrap();
            assert_eq!(end, Position::new(12, 9), "above the promise");
            let (group_log, _) = DiskLog::open(&dir, GROUP_LOG, DiskLogOptions::default()).unwrap();
            let book = chain_log::read(&group_log).unwrap();
            let now = book.record.configuration.unwrap();
            let life = Life { disk: plan.disk, incarnation: Incarnation(7) };
            assert_eq!((now.epoch, &now.chain[..], now.start), (Epoch(13), &[life][..], Some(end)));
            assert_eq!(book.record.least_chain, 2, "as it was");
            assert_eq!(book.ledger.members.iter().filter(|m| m.voter).count(), 1);
            assert_eq!(meta.sealed_epoch, Some(Epoch(11)), "a promise never decreases");
        }
    }
    assert_eq!(lineages, [OLD, plan.lineage]);
}

#[test]
fn recovery_cut_off_after_any_step_is_carried_on_as_it_was_planned() {
    for mode in [Mode::Majority, Mode::Chain] {
        for taken in 0..=STEPS.len() {
            let temp = tempfile::tempdir().unwrap();
            let old = folder(temp.path(), mode);
            let first = open(temp.path());
            let planned = first.plan.clone();
            first.run(&STEPS[..taken]).unwrap();
            drop(first);
            if taken == 0 {
                let dir = NodeDir::open(temp.path(), "n1").expect("nothing was changed");
                assert_eq!((dir.meta().disk, dir.meta().cluster), (old, Some((CLUSTER, OLD))));
                continue;
            }
            if taken < STEPS.len() {
                let refused = NodeDir::open(temp.path(), "n1").unwrap_err();
                assert!(matches!(refused, StorageError::Recovering { .. }), "{mode} after {taken}: {refused}");
                assert!(refused.to_string().contains("`replicator recover`"), "{refused}");
                let again = open(temp.path());
                assert!(again.account().is_none(), "it was attested before");
                assert_eq!(again.plan, planned);
                again.carry_out().unwrap();
            }
            check_recovered(temp.path(), mode, old, &planned);
        }
    }
}

#[test]
fn recovery_cut_off_within_a_write_begins_that_again() {
    for mode in [Mode::Majority, Mode::Chain] {
        let temp = tempfile::tempdir().unwrap();
        let old = folder(temp.path(), mode);
        let first = open(temp.path());
        let planned = first.plan.clone();
        first.run(&[Step::Mark]).unwrap();
        drop(first);
        let dir = NodeDir::open_for_recovery(temp.path()).unwrap();
        let record = |(position, payload): &(Position, Bytes)| Record { position: *position, payload: payload.clone() };
        match mode {
            Mode::Majority => append(&dir, LOG, planned.log[..1].iter().map(record).collect()),
            Mode::Chain => {
                append(&dir, LOG, planned.log.iter().map(record).collect());
                planned.take(Step::ClearGroup, &dir).unwrap();
                append(&dir, GROUP_LOG, planned.group[..1].iter().map(record).collect());
            }
        }
        drop(dir);
        open(temp.path()).carry_out().unwrap();
        check_recovered(temp.path(), mode, old, &planned);
    }
}

#[test]
fn folder_is_recovered_twice_under_three_lineages() {
    let temp = tempfile::tempdir().unwrap();
    folder(temp.path(), Mode::Chain);
    let first = open(temp.path()).carry_out().unwrap();
    let second = open(temp.path());
    let account = second.account().unwrap().clone();
    assert_eq!((account.disk, account.lineage), (first.disk, first.lineage));
    // The others' places are still those of their old disks: as nobody has come back, nobody else can have anything.
    assert_eq!(account.unattested(&["n2".into(), "n3".into()]), (vec![], vec!["w1".to_owned()]));
    let second = second.carry_out().unwrap();
    assert!(![OLD, first.lineage].contains(&second.lineage) && second.disk != first.disk);
}

#[test]
fn account_names_who_is_missing_and_what_may_be_lost() {
    let temp = tempfile::tempdir().unwrap();
    folder(temp.path(), Mode::Chain);
    let recovery = open(temp.path());
    let account = recovery.account().unwrap();
    let chain = account.chain.as_ref().unwrap();
    assert!(chain.holds && chain.epoch == Epoch(5), "{chain:?}");
    assert_eq!((account.last, account.committed), (Position::new(4, 8), Some(LogIndex(6))));
    let told = account.losses.join("\n");
    assert!(told.contains("a member of epoch 5") && told.contains("entries 7 to 8 are kept"), "{told}");
    let (strangers, missing) = account.unattested(&["n2".into(), "n9".into()]);
    assert_eq!((strangers, missing), (vec!["n9".to_owned()], vec!["n3".to_owned(), "w1".to_owned()]));
    drop(recovery);

    let temp = tempfile::tempdir().unwrap();
    folder(temp.path(), Mode::Majority);
    let dir = NodeDir::open(temp.path(), "n1").unwrap();
    let memory = PeerMemory { incarnation: Incarnation(1), start: 1, durable: LogIndex(40) };
    dir.update(|meta| meta.peers.extend([(DiskId(3), memory)])).unwrap();
    drop(dir);
    let recovery = open(temp.path());
    let told = recovery.account().unwrap().losses.join("\n");
    assert!(told.contains("entries 4 to 40 are lost"), "{told}");
}

#[test]
fn folders_with_nothing_to_go_on_from_are_refused_and_left_alone() {
    let temp = tempfile::tempdir().unwrap();
    let refusal = |path: &Path| Recovery::open(path, &Seams::real()).unwrap_err().to_string();
    let missing = temp.path().join("missing");
    assert!(refusal(&missing).contains("holds no node") && !missing.exists());
    let blank = temp.path().join("blank");
    drop(NodeDir::open(&blank, "n1").unwrap());
    assert!(refusal(&blank).contains("never took part in a cluster"));
    let used = temp.path().join("used");
    folder(&used, Mode::Majority);
    let held = NodeDir::open(&used, "n1").unwrap();
    assert!(refusal(&used).contains("in use by"));
    drop(held);
    assert!(open(&used).account().is_some());
}

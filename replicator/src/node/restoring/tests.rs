//! Every prefix of a restore's steps, as a crash leaves it; damaged and foreign files; and what may not be restored into.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::fs::FileExt as _,
};

use replicator_machine::{Command, Entry, Genesis, Limits, engine_fingerprint};
use replicator_storage::{DiskLog, DiskLogOptions, Log, SavedWriter, SnapshotInfo, SnapshotOptions};
use replicator_types::{Incarnation, LogIndex, Position, Seed};
use sha2::{Digest as _, Sha256};

use super::{
    super::{
        images::IMAGES,
        recovery::{Recovery, RecoveryError, plan},
        startup::{GROUP_LOG, LOG},
    },
    *,
};
use crate::{
    config::NodeFlags,
    replication::{chain::offline as chain_log, majority::offline},
};

const OLD_CLUSTER: ClusterId = ClusterId([7; 16]);
const OLD: Lineage = Lineage(0x1111_2222_3333_4444);
const BASE: Position = Position::new(5, 41);

fn guest() -> Vec<u8> {
    wat::parse_str(include_str!("../../../machine/tests/machine/guest.wat")).unwrap()
}

/// A machine after its genesis and an open session, whose last entry is `at`.
fn machine(at: Position) -> Machine {
    let module = guest();
    let hash = ModuleHash(Sha256::digest(&module).into());
    let genesis = Genesis {
        cluster: OLD_CLUSTER,
        lineage: OLD,
        module: hash,
        app_config: Bytes::new(),
        limits: Limits { request_bytes: 100, memory_pages: 8, ..Limits::default() },
        engine: engine_fingerprint(),
    };
    let mut machine = Machine::new(Arc::new(Held(vec![(hash, module.into())])));
    let before = Position { index: LogIndex(at.index.0 - 1), ..at };
    let commands = [Command::Genesis(Box::new(genesis)), Command::OpenSession { ttl_us: 0 }];
    for (position, command) in [before, at].into_iter().zip(commands) {
        machine.apply(position, &Entry { time_us: 9, seed: Seed([3; 16]), command }).unwrap();
    }
    machine
}

/// Saves an image of that machine, having told `change` of its facts.
fn save(to: &Path, at: Position, change: impl FnOnce(&mut SnapshotInfo)) {
    let folder = tempfile::tempdir().unwrap();
    let mut machine = machine(at);
    let image = machine.image().unwrap();
    let dir = NodeDir::open(folder.path(), "old").unwrap();
    dir.modules().unwrap().put(&guest()).unwrap();
    let mut info = SnapshotInfo {
        position: at,
        lineage: OLD,
        cluster: OLD_CLUSTER,
        module: image.module(),
        engine: engine_fingerprint(),
        digest: image.digest().0.into(),
        extra: b"of the old group".to_vec(),
        created_us: 5,
    };
    change(&mut info);
    let store = dir.snapshots(IMAGES, SnapshotOptions::default()).unwrap();
    let mut writer = store.begin(info, 0).unwrap();
    image.write_to(&mut writer).unwrap();
    writer.finish().unwrap();
    drop((store, dir));
    let source = NodeDir::saved(folder.path(), None, "0.0.1", 7).unwrap().unwrap();
    let mut writer = SavedWriter::begin(to, true).unwrap();
    while writer.written() < source.bytes() {
        writer.take(&source.read_at(writer.written(), 100_000).unwrap()).unwrap();
    }
    writer.finish().unwrap();
}

/// A saved file, and room for folders beside it.
fn saved() -> (tempfile::TempDir, PathBuf) {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("saved");
    save(&path, BASE, |_| {});
    (temp, path)
}

fn config(data_dir: &Path, mode: Mode) -> NodeConfig {
    let mut peers = vec!["n2=127.0.0.1:7202".parse().unwrap(), "n3=127.0.0.1:7203".parse().unwrap()];
    if mode == Mode::Chain {
        peers.push("w1=127.0.0.1:7204".parse().unwrap());
    }
    let flags = NodeFlags {
        name: Some("n1".parse().unwrap()),
        data_dir: Some(data_dir.to_owned()),
        client_address: Some("127.0.0.1:7101".parse().unwrap()),
        peer_address: Some("127.0.0.1:7201".parse().unwrap()),
        peers,
        mode: Some(mode),
        ..NodeFlags::default()
    };
    NodeConfig::load(&flags, false).unwrap()
}

fn witnesses(mode: Mode) -> Vec<String> {
    if mode == Mode::Chain { vec!["w1".into()] } else { Vec::new() }
}

fn restore(saved: &Path, dir: &Path, mode: Mode, steps: &[Step]) -> Result<Restored, RestoreError> {
    Restore::open(saved)?.run(&config(dir, mode), &witnesses(mode), &Seams::real(), steps, &mut |_, _| {})
}

/// Checks that the folder is a node's, with the image and behind it what begins the new history.
fn check_restored(path: &Path, mode: Mode, restored: &Restored) {
    let dir = NodeDir::open(path, "n1").expect("the node can be started");
    let meta = dir.meta();
    assert_eq!((meta.disk, meta.cluster), (restored.disk, Some((restored.cluster, restored.lineage))));
    assert_eq!((meta.mode.as_deref(), meta.incarnation), (Some(&*mode.to_string()), Incarnation(1)));
    assert!(restored.cluster != OLD_CLUSTER && restored.lineage != OLD && meta.recovery.is_none());
    assert_eq!(meta.members.iter().filter(|member| member.voter).count(), 1);
    let mut names: Vec<_> = restored.others.iter().map(|(name, witness)| (name.as_str(), *witness)).collect();
    names.sort_unstable();
    let wanted = [("n2", false), ("n3", false), ("w1", true)];
    assert_eq!(names, wanted[..if mode == Mode::Chain { 3 } else { 2 }]);

    let store = dir.snapshots(IMAGES, SnapshotOptions::default()).unwrap();
    let manifest = store.latest().unwrap().unwrap();
    assert_eq!((manifest.position(), manifest.info.cluster), (BASE, restored.cluster));
    let hash = manifest.info.module;
    let modules = Held(vec![(hash, dir.modules().unwrap().get(hash).unwrap().unwrap())]);
    let mut machine = Machine::from_image(&mut store.open_image(BASE).unwrap(), Arc::new(modules)).unwrap();
    assert_eq!(machine.stats().sessions, 1, "the image is as it was");

    let (log, _) = DiskLog::open(&dir, LOG, DiskLogOptions::default()).unwrap();
    assert_eq!(log.ends().purged, Some(BASE));
    let mut entries = Vec::new();
    match mode {
        Mode::Majority => {
            let imaged = offline::members_of_image(&manifest.info.extra).unwrap();
            assert_eq!(imaged.iter().filter(|member| member.voter).count(), 1);
            let ledger = offline::read(&log, imaged, |position, entry| {
                entries.push((position, codec::decode(entry)?));
                Ok(())
            });
            let members: Vec<_> = ledger.unwrap().members.into_iter().map(|m| (m.node, m.voter)).collect();
            assert_eq!(members, [("n1".into(), true), ("n2".into(), false), ("n3".into(), false)]);
        }
        Mode::Chain => {
            assert!(manifest.info.extra.is_empty());
            offline::for_each::<_, StorageError>(&log, |record| {
                entries.push((record.position, codec::decode(&record.payload).unwrap()));
                Ok(())
            })
            .unwrap();
            let (group_log, _) = DiskLog::open(&dir, GROUP_LOG, DiskLogOptions::default()).unwrap();
            let book = chain_log::read(&group_log).unwrap();
            let now = book.record.configuration.unwrap();
            assert_eq!((now.start, now.chain.len()), (log.ends().last, 1));
            let witness = book.ledger.members.iter().find(|member| member.witness).unwrap();
            assert_eq!((witness.node.as_str(), book.ledger.members.len()), ("w1", 4));
        }
    }
    for (position, entry) in &entries {
        machine.apply(*position, entry).unwrap();
    }
    assert_eq!(machine.lineages(), [OLD, restored.lineage]);
    assert_eq!(machine.stats().sessions, 0, "a session of the old cluster is open");
}

#[test]
fn restore_cut_off_after_any_step_is_no_node_and_is_carried_on_as_it_was_planned() {
    for mode in [Mode::Majority, Mode::Chain] {
        let (temp, saved) = saved();
        for taken in 0..=Step::ALL.len() {
            let dir = temp.path().join(format!("{mode}-{taken}"));
            let planned = restore(&saved, &dir, mode, &Step::ALL[..taken]).unwrap();
            if taken < Step::ALL.len() {
                let refused = NodeDir::open(&dir, "n1").unwrap_err();
                assert!(matches!(refused, StorageError::Recovering { .. }), "{mode} after {taken}: {refused}");
                let refused = Recovery::open(&dir, &Seams::real()).unwrap_err();
                assert!(matches!(refused, RecoveryError::Restoring { .. }), "{refused}");
                let again = restore(&saved, &dir, mode, &Step::ALL).unwrap();
                assert_eq!(again, Restored { carried_on: true, ..planned.clone() }, "{mode} after {taken}");
            }
            check_restored(&dir, mode, &planned);
        }
    }
}

#[test]
fn restore_cut_off_within_the_image_or_a_log_goes_on_from_there() {
    for mode in [Mode::Majority, Mode::Chain] {
        let (temp, saved) = saved();
        for cut in 0..2 {
            let dir = temp.path().join(format!("{mode}-{cut}"));
            let planned = restore(&saved, &dir, mode, &Step::ALL[..if cut == 0 { 1 } else { 2 }]).unwrap();
            let opened = NodeDir::open_for_recovery(&dir).unwrap();
            let begun = codec::decode(opened.meta().recovery.as_ref().unwrap()).unwrap();
            let Begun::Restore(plan) = begun else { panic!("another plan") };
            if cut == 0 {
                let file = SavedSnapshot::open(&saved).unwrap();
                let store = opened.snapshots(IMAGES, SnapshotOptions::default()).unwrap();
                let mut receiver = store.receive(plan.manifest.clone()).unwrap();
                receiver.take(&file.data_file().unwrap().read_at(0, 1_000).unwrap()).unwrap();
            } else {
                plan.plan.take(plan::Step::Log, &opened).unwrap();
                // As if only the purge of the log had come to the disk.
                let (log, _) = DiskLog::open(&opened, LOG, DiskLogOptions::default()).unwrap();
                log.truncate_after(Some(BASE)).unwrap();
            }
            drop(opened);
            restore(&saved, &dir, mode, &Step::ALL).unwrap();
            check_restored(&dir, mode, &planned);
        }
    }
}

#[test]
fn any_of_200_flipped_bytes_or_cuts_is_refused_with_its_place_before_anything_is_written() {
    let (temp, saved) = saved();
    let dir = temp.path().join("node");
    let bytes = fs::read(&saved).unwrap();
    let refused = |what: &str| {
        let refused = restore(&saved, &dir, Mode::Majority, &Step::ALL).expect_err(what);
        assert!(refused.is_damage() && refused.to_string().contains(", byte "), "{what}: {refused}");
        assert!(!dir.exists(), "{what}: something was written");
    };
    let file = OpenOptions::new().write(true).open(&saved).unwrap();
    for n in 0..200 {
        let at = n * (bytes.len() - 1) / 199;
        file.write_all_at(&[bytes[at] ^ (1 << (n % 8))], at as u64).unwrap();
        refused(&format!("byte {at}"));
        file.write_all_at(&bytes[at..][..1], at as u64).unwrap();
    }
    for n in 0..200 {
        let len = n * (bytes.len() - 1) / 199;
        fs::write(&saved, &bytes[..len]).unwrap();
        refused(&format!("cut at {len}"));
    }
    fs::write(&saved, guest()).unwrap();
    refused("a module");
    fs::write(&saved, &bytes).unwrap();
    restore(&saved, &dir, Mode::Majority, &Step::ALL).unwrap();
}

#[test]
fn head_that_contradicts_its_image_is_refused() {
    let (temp, saved) = saved();
    let dir = temp.path().join("node");
    for what in ["position", "digest"] {
        save(&saved, BASE, |info| match what {
            "position" => info.position.index.0 += 1,
            _ => info.digest ^= 1,
        });
        let refused = restore(&saved, &dir, Mode::Majority, &Step::ALL).unwrap_err();
        assert!(refused.is_damage() && refused.to_string().contains(what), "{refused}");
        assert!(!dir.exists());
    }
}

#[test]
fn folder_with_something_else_in_it_is_left_alone() {
    let (temp, saved) = saved();
    let try_restore = |dir: &Path, mode| restore(&saved, dir, mode, &Step::ALL).unwrap_err().to_string();
    // A node's.
    let used = temp.path().join("used");
    restore(&saved, &used, Mode::Majority, &Step::ALL).unwrap();
    assert!(try_restore(&used, Mode::Majority).contains("isn't empty"));
    // Somebody's.
    let letters = temp.path().join("letters");
    fs::create_dir(&letters).unwrap();
    fs::write(letters.join("letter"), b"dear").unwrap();
    assert!(try_restore(&letters, Mode::Majority).contains("letter"));
    // Another restore's: of another file, or as another node.
    let begun = temp.path().join("begun");
    restore(&saved, &begun, Mode::Majority, &Step::ALL[..2]).unwrap();
    assert!(try_restore(&begun, Mode::Chain).contains("other settings"));
    let other = temp.path().join("other");
    save(&other, Position::new(5, 42), |_| {});
    let refused = restore(&other, &begun, Mode::Majority, &Step::ALL).unwrap_err();
    assert!(refused.to_string().contains("another file"), "{refused}");
    restore(&saved, &begun, Mode::Majority, &Step::ALL).unwrap();
    // A recovery's.
    let recovering = temp.path().join("recovering");
    restore(&saved, &recovering, Mode::Majority, &Step::ALL).unwrap();
    let recovery = Recovery::open(&recovering, &Seams::real()).unwrap();
    assert_eq!(recovery.account().unwrap().last.index, LogIndex(BASE.index.0 + 2));
    recovery.run(&plan::STEPS[..1]).unwrap();
    drop(recovery);
    assert!(try_restore(&recovering, Mode::Majority).contains("`replicator recover`"));
    Recovery::open(&recovering, &Seams::real()).unwrap().carry_out().unwrap();
}

#[test]
fn settings_of_no_cluster_are_refused_before_anything_is_written() {
    let (temp, saved) = saved();
    let dir = temp.path().join("node");
    let restore = Restore::open(&saved).unwrap();
    let refusal = |config: &NodeConfig, witnesses: &[&str]| {
        let witnesses: Vec<String> = witnesses.iter().map(|name| (*name).to_owned()).collect();
        let refused = restore.carry_out(config, &witnesses, &Seams::real(), &mut |_, _| {}).unwrap_err();
        assert!(matches!(refused, RestoreError::Settings(_)), "{refused}");
        assert!(!dir.exists(), "{refused}");
        refused.to_string()
    };
    let (majority, chain) = (config(&dir, Mode::Majority), config(&dir, Mode::Chain));
    assert!(refusal(&majority, &["n2"]).contains("only a chain has witnesses"));
    assert!(refusal(&chain, &["w9"]).contains("\"w9\": no peer is called so"));
    assert!(refusal(&chain, &["n1"]).contains("it is this node"));
    assert!(refusal(&NodeConfig { witness: true, ..chain.clone() }, &[]).contains("holds no data"));
    let mut long = chain;
    long.chain.least_length = 4;
    assert!(refusal(&long, &["w1"]).contains("there are 3 replicas"));
}

#[test]
fn image_of_another_engine_is_refused_and_is_no_damage() {
    // The head of the image is compressed with all else, so it is written anew: the longest way to another fingerprint.
    let temp = tempfile::tempdir().unwrap();
    let mut image = Vec::new();
    machine(BASE).image().unwrap().write_to(&mut image).unwrap();
    let ours = engine_fingerprint().into_bytes();
    // The one in force comes after that of the genesis.
    let place = image.windows(ours.len()).rposition(|window| window == ours).expect("it is in the head");
    image[place] ^= 1;
    let folder = temp.path().join("old");
    let dir = NodeDir::open(&folder, "old").unwrap();
    let hash = dir.modules().unwrap().put(&guest()).unwrap();
    let store = dir.snapshots(IMAGES, SnapshotOptions::default()).unwrap();
    let info = SnapshotInfo {
        position: BASE,
        lineage: OLD,
        cluster: OLD_CLUSTER,
        module: hash,
        engine: "another".into(),
        digest: 0,
        extra: Vec::new(),
        created_us: 5,
    };
    let mut writer = store.begin(info, 0).unwrap();
    writer.write_all(&image).unwrap();
    writer.finish().unwrap();
    drop((store, dir));
    let source = NodeDir::saved(&folder, None, "0.0.1", 7).unwrap().unwrap();
    let saved = temp.path().join("saved");
    let mut writer = SavedWriter::begin(&saved, false).unwrap();
    while writer.written() < source.bytes() {
        writer.take(&source.read_at(writer.written(), 1 << 20).unwrap()).unwrap();
    }
    writer.finish().unwrap();
    let refused = Restore::open(&saved).unwrap_err();
    assert!(!refused.is_damage() && refused.to_string().contains("engine"), "{refused}");
}

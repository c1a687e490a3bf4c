//! How a history begins, and how it doesn't.

use std::sync::Arc;

use bytes::Bytes;
use replicator_machine::{Command, Halt, LoadError, Machine, Outcome, QueryOutcome, Refusal};
use replicator_types::{Digest, ModuleHash, Position};

use crate::harness::*;

#[test]
fn before_genesis_everything_is_refused_and_folds_in() {
    let mut machine = Machine::new(Arc::new(Modules::default()));
    assert_eq!((machine.applied(), machine.digest()), (None, Digest(0)));
    let node = Node::new();
    let (_, entry) = node.entry(Command::Tick);
    let applied = machine.apply(Position::new(1, 4), &entry).unwrap();
    assert_eq!(applied.outcome, Outcome::Refused(Refusal::NoGenesis));
    assert_ne!(machine.digest(), Digest(0));
    assert_eq!(machine.query(None, b"c").unwrap(), QueryOutcome::Refused(Refusal::NoGenesis));
    assert!(!machine.wants_ticks());
}

#[test]
fn a_second_genesis_is_refused() {
    let mut node = Node::new();
    let (_, hash) = Modules::with(&hostile());
    let applied = node.apply(Command::Genesis(Box::new(genesis(hash, limits()))));
    assert_eq!(applied.outcome, Outcome::Refused(Refusal::SecondGenesis));
}

#[test]
fn a_missing_module_can_be_fetched_and_the_entry_applied_again() {
    struct Late(std::sync::Mutex<Option<Bytes>>);
    impl replicator_machine::ModuleSource for Late {
        fn module(&self, _: &ModuleHash) -> Option<Bytes> {
            self.0.lock().unwrap().clone()
        }
    }
    let (_, hash) = Modules::with(&hostile());
    let store = Arc::new(Late(None.into()));
    let mut machine = Machine::new(Arc::clone(&store) as _);
    let (_, entry) = Node::new().entry(Command::Genesis(Box::new(genesis(hash, limits()))));
    let missing = machine.apply(Position::new(1, 0), &entry);
    assert!(matches!(missing, Err(Halt::ModuleMissing(missing)) if missing == hash));
    *store.0.lock().unwrap() = Some(Bytes::from_static(b"something else"));
    assert!(matches!(machine.apply(Position::new(1, 0), &entry), Err(Halt::ModuleDamaged { .. })));
    assert_eq!(machine.applied(), None);
    *store.0.lock().unwrap() = Some(hostile().into());
    assert_eq!(machine.apply(Position::new(1, 0), &entry).unwrap().outcome, Outcome::Genesis);
    assert_eq!(machine.genesis().map(|genesis| genesis.module), Some(hash));
}

#[test]
fn another_engine_and_bad_limits_halt() {
    let (modules, hash) = Modules::with(&hostile());
    let begin = |genesis| {
        let (_, entry) = Node::new().entry(Command::Genesis(Box::new(genesis)));
        Machine::new(modules.clone()).apply(Position::new(1, 0), &entry).unwrap_err()
    };
    let mut other = genesis(hash, limits());
    other.engine = "wasmtime-1.0.0".to_owned();
    assert!(matches!(begin(other), Halt::EngineMismatch { .. }));
    let mut bad = genesis(hash, limits());
    bad.limits.memory_pages = 0;
    assert!(matches!(begin(bad), Halt::LimitsRefused(_)));
    let mut small = genesis(hash, limits());
    small.limits.memory_pages = 1;
    assert!(matches!(begin(small), Halt::ModuleRefused(LoadError::MemoryMinimum { pages: 2, max: 1 })));
    let mut wide = genesis(hash, limits());
    wide.limits.request_bytes = 65_536;
    assert!(matches!(begin(wide), Halt::ModuleRefused(LoadError::Call { call: "rsm_input", .. })));
    for (config, reason) in [("u", "the module panicked"), ("x", "oops")] {
        let mut refused = genesis(hash, limits());
        refused.app_config = Bytes::from_static(config.as_bytes());
        let expected = LoadError::Call { call: "rsm_init", reason: reason.to_owned() };
        assert!(matches!(begin(refused), Halt::ModuleRefused(error) if error == expected));
    }
}

#[test]
fn indexes_rise_and_skips_leave_the_digest_alone() {
    let mut node = Node::new();
    let digest = node.machine.digest();
    node.machine.skip(Position::new(3, 9));
    assert_eq!((node.machine.digest(), node.machine.applied()), (digest, Some(Position::new(3, 9))));
    let (_, entry) = node.entry(Command::Tick);
    for backwards in [Position::new(3, 9), Position::new(3, 8), Position::new(2, 10)] {
        assert!(matches!(node.machine.apply(backwards, &entry), Err(Halt::IndexBackwards { .. })));
    }
    node.machine.apply(Position::new(4, 12), &entry).unwrap();
}

#[test]
fn stats_describe_the_module() {
    let mut node = Node::new();
    node.open();
    let stats = node.machine.stats();
    assert_eq!((stats.sessions, stats.memory_bytes, stats.traps), (1, 2 << 16, 0));
    assert_eq!(stats.module_description, "app=hostile version=1 schema=1 accepts_from=1 ticks=1");
}

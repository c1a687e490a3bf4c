//! A model of docs/chain.md ("The model" there says what it leaves out): not of the code, but of what the code is made from. Every state that the
//! bounds allow is visited, breadth first, and the invariants are checked in each. What each rule is for, `without.rs` shows.
//!
//! `MODEL_DEPTH=11 cargo test --release -p replicator-chain --test model -- all_faults --nocapture` goes so many steps from the founding.

mod chain;
mod disks;
mod properties;
mod reads;
mod reconfiguration;
mod rules;
mod state;
mod steps;
mod without;

use std::{sync::atomic::AtomicU32, time::Instant};

use properties::*;
use state::State;
use stateright::{Checker, Model, Path, Property};
use steps::{Protocol, Step};

/// How much may happen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Slots of disks, and how many of them found the chain; the others are learners.
    disks: usize,
    chain: usize,
    epochs: u8,
    /// For each epoch.
    attempts: u8,
    /// In a log.
    entries: u8,
    restarts: u8,
    wipes: u8,
    copies: u8,
    reads: bool,
    /// Copies may be put back of which nothing shows what they are. Then a target counts at least one true disk.
    unnoticed: bool,
    /// Steps from the founding.
    depth: u8,
}

const SMALL: Bounds = Bounds {
    disks: 3,
    chain: 3,
    epochs: 2,
    attempts: 1,
    entries: 1,
    restarts: 0,
    wipes: 0,
    copies: 0,
    reads: false,
    unnoticed: false,
    depth: 60,
};

impl Model for Protocol {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![self.founded()]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        self.steps(state, steps);
    }

    fn next_state(&self, state: &State, step: Step) -> Option<State> {
        self.step(state, step)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let examples = if self.without.is_none() { examples() } else { vec![] };
        [invariants(), examples].concat()
    }
}

/// One line for each step, with what it leaves of the disk that took it.
fn lines(path: Path<State, Step>) -> String {
    let states = path.into_vec();
    let after = states.iter().skip(1).map(|(state, _)| state);
    states.iter().zip(after).filter_map(|((_, step), after)| Some(format!("  {}\n", line((*step)?, after)))).collect()
}

fn line(step: Step, after: &State) -> String {
    let disk = match step {
        Step::Seal { disk, .. }
        | Step::Equalise { disk, .. }
        | Step::Learn { disk, .. }
        | Step::Append { disk, .. } => disk,
        Step::Persist { disk } | Step::Fetch { disk, .. } | Step::Restart { disk, .. } | Step::Wipe { disk } => disk,
        _ => return format!("{step:?}"),
    };
    let state::Disk { log, durable, promise, known, life, .. } = &after.disks[disk];
    format!("{step:?}: {log:?} durable {durable} promise {promise:?} knows {known} life {}", life.life)
}

/// All rules: every invariant holds up to `depth` steps, and all of `examples` happen.
fn holds(name: &str, bounds: Bounds, examples: &[&'static str]) {
    let protocol = Protocol { bounds, without: None, found: AtomicU32::new(0) };
    let began = Instant::now();
    let checked = protocol.checker().spawn_bfs().join();
    let (states, seconds) = (checked.unique_state_count(), began.elapsed().as_secs_f32());
    let mut found = checked.discoveries();
    for property in invariants() {
        if let Some(path) = found.remove(property.name) {
            panic!("{name}: violated: {}\n{}", property.name, lines(path));
        }
    }
    let steps = checked.max_depth() - 1;
    let end = if steps < usize::from(bounds.depth) { "all there are" } else { "more exist" };
    println!("{name}: {steps} steps ({end}), {states} states, {seconds:.0} s, {bounds:?}");
    for example in examples {
        assert!(found.contains_key(example), "{name}: never seen in {steps} steps: {example}");
    }
}

/// A search that doesn't come to an end: `MODEL_DEPTH` sets how many steps it goes.
fn open(steps: u8) -> u8 {
    match std::env::var("MODEL_DEPTH") {
        Ok(asked) => asked.parse().expect("MODEL_DEPTH is a number of steps, up to 255"),
        Err(_) => steps,
    }
}

#[test]
fn two_attempts_and_a_restart_keep_all() {
    let bounds = Bounds { attempts: 2, restarts: 1, ..SMALL };
    holds("two attempts, a restart", bounds, &[ONE_COMMITS, LOSES, SURVIVES, TWO_PRIMARIES]);
}

#[test]
fn two_entries_and_a_restart_keep_all() {
    holds(
        "two entries, a restart",
        Bounds { entries: 2, restarts: 1, ..SMALL },
        &[ONE_COMMITS, SURVIVES, TWO_PRIMARIES],
    );
}

#[test]
fn three_epochs_keep_all() {
    holds("three epochs", Bounds { epochs: 3, ..SMALL }, &[ONE_COMMITS, RETURNS, SURVIVES, TWO_PRIMARIES]);
}

#[test]
fn a_cold_restart_keeps_all() {
    holds("cold restart", Bounds { restarts: 3, ..SMALL }, &[COLD, ONE_COMMITS, SURVIVES]);
}

#[test]
fn a_wiped_disk_and_an_old_copy_lose_nothing() {
    holds("lost disks", Bounds { wipes: 1, copies: 1, ..SMALL }, &[WIPED_RETURNS, ONE_COMMITS, SURVIVES]);
}

#[test]
fn reads_are_fresh() {
    holds("reads", Bounds { restarts: 1, reads: true, ..SMALL }, &[READ, TWO_PRIMARIES]);
}

#[test]
fn three_disks_with_all_faults_keep_all() {
    let bounds = Bounds { epochs: 3, attempts: 2, entries: 2, restarts: 1, wipes: 1, copies: 1, reads: true, ..SMALL };
    let examples = [LOSES, SURVIVES, WIPED_RETURNS, READ, TWO_PRIMARIES];
    holds("three disks, all faults", Bounds { depth: open(9), ..bounds }, &examples);
}

#[test]
fn three_disks_in_three_epochs_keep_all() {
    let bounds = Bounds { epochs: 3, attempts: 2, restarts: 1, depth: open(14), ..SMALL };
    holds("three disks, three epochs", bounds, &[ONE_COMMITS, RETURNS, LOSES, SURVIVES, COLD, TWO_PRIMARIES]);
}

#[test]
fn three_members_and_a_learner_keep_all() {
    let bounds = Bounds { disks: 4, epochs: 3, attempts: 2, restarts: 1, depth: open(12), ..SMALL };
    holds("four disks, one a learner", bounds, &[ONE_COMMITS, RETURNS, JOINS, LOSES, SURVIVES, TWO_PRIMARIES]);
}

#[test]
fn four_members_keep_all() {
    let bounds = Bounds { disks: 4, chain: 4, epochs: 3, attempts: 2, restarts: 1, wipes: 1, reads: true, ..SMALL };
    let examples = [ONE_COMMITS, LOSES, SURVIVES, WIPED_RETURNS, READ, TWO_PRIMARIES];
    holds("four disks, all members", Bounds { depth: open(10), ..bounds }, &examples);
}

//! Random faults: messages lost, late and reordered across reconnects, crashes with half-written disks, and coordinators that come in each
//! other's way. A failure prints its seed; `REPLICA_SEED=<it> cargo test --release -p replicator-chain faults` runs that one alone.

use super::{world::World, *};

/// Says which seed failed.
struct Seed(u64, PersistOrder);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed with REPLICA_SEED={} and {:?}", self.0, self.1);
        }
    }
}

#[derive(Default)]
struct Seen {
    committed: usize,
    epochs: u64,
    reads: usize,
}

fn seeds(count: u64) -> std::ops::Range<u64> {
    match std::env::var("REPLICA_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => seed..seed + 1,
        None => 0..std::env::var("REPLICA_SEEDS").ok().and_then(|count| count.parse().ok()).unwrap_or(count),
    }
}

fn run(seed: u64, order: PersistOrder, reconfigure: bool, seen: &mut Seen) {
    let _seed = Seed(seed, order);
    let disks = 2 + seed % 3;
    let founders = if reconfigure { disks.min(3) } else { disks };
    let mut world = World::new(seed, disks, founders, order);
    (0..disks as usize).for_each(|at| world.learn(at));
    let changes = [3, 6, 12, 30][world.dice.below(4)];
    for _ in 0..800 {
        if reconfigure && world.dice.one_in(changes) {
            change(&mut world);
        } else {
            traffic(&mut world);
        }
    }
    seen.committed += world.committed.len();
    seen.epochs += world.epochs;
    if !reconfigure {
        world.recover();
    }
    world.converge();
    seen.reads += world.reads_confirmed;
}

/// What clients, disks and connections do.
fn traffic(world: &mut World) {
    let at = world.node_at_random();
    let pairs = world.pairs();
    let pair = (!pairs.is_empty()).then(|| pairs[world.dice.below(pairs.len())]);
    match world.dice.below(76) {
        0..40 => {
            if let Some((from, to)) = pair {
                world.deliver(from, to);
            }
        }
        40..56 => world.flush(at),
        56..62 => world.tick(at),
        62..68 => {
            let count = 1 + world.dice.below(5);
            world.propose(at, count);
        }
        68..70 => world.read(at),
        70..73 => world.deliver_late(),
        _ => {
            if let Some((from, to)) = pair {
                world.cut(from, to);
                // Sometimes nobody notices that it was cut: heartbeats must do.
                if world.dice.one_in(2) {
                    world.connect(from, to);
                }
            }
        }
    }
}

/// What coordinators, crashes and the group do.
fn change(world: &mut World) {
    let at = world.node_at_random();
    let which = world.dice.below(2);
    match world.dice.below(24) {
        0..2 => world.crash(at),
        2..4 => {
            // Seldom: each one ends what the others have begun.
            if world.dice.one_in(3) {
                world.attempt(which);
            }
        }
        4..6 => world.seal(which),
        6..12 => world.equalise(which),
        12..18 => world.propose_configuration(which),
        18..22 => world.learn(at),
        _ => world.learn_late(at),
    }
}

#[test]
fn messages_lost_late_and_reordered_leave_members_equal() {
    for order in [PersistOrder::BackupsFirst, PersistOrder::Parallel] {
        let mut seen = Seen::default();
        seeds(400).for_each(|seed| run(seed, order, false, &mut seen));
        println!("{order:?}: {} committed among faults, {} reads", seen.committed, seen.reads);
        assert!(
            std::env::var("REPLICA_SEED").is_ok() || seen.committed > 10_000 && seen.reads > 2_000,
            "too little went on"
        );
    }
}

#[test]
fn crashes_and_rival_coordinators_lose_nothing_committed() {
    for order in [PersistOrder::BackupsFirst, PersistOrder::Parallel] {
        let mut seen = Seen::default();
        seeds(1_500).for_each(|seed| run(seed, order, true, &mut seen));
        println!("{order:?}: {} committed among faults, {} epochs, {} reads", seen.committed, seen.epochs, seen.reads);
        assert!(
            std::env::var("REPLICA_SEED").is_ok() || seen.committed > 5_000 && seen.epochs > 3_000,
            "too little went on"
        );
    }
}

//! Random runs: everything that may go wrong does, in a random order, and the checks look on. Then the faults end, and all must converge.

use bytes::Bytes;
use replicator_chain::{PersistOrder, Role, Timing, Wish};

use crate::{
    disk::length,
    world::{Node, World},
};

/// Small numbers that a seed determines (splitmix64).
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound.max(1) as u64) as usize
    }
}

/// What came of a run, so that runs that test nothing are noticed.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Tally {
    pub(crate) committed: usize,
    pub(crate) epochs: u64,
    pub(crate) reads: u64,
    /// No disk of the last epoch was left.
    pub(crate) lost: usize,
}

/// Bounds that let much happen within few ticks.
fn timing(dice: &mut Dice) -> Timing {
    Timing {
        suspect_ticks: 3,
        answer_ticks: 2,
        alone_ticks: 6,
        cold_ticks: 12,
        stall_ticks: 12,
        patience_min_ticks: 2,
        patience_max_ticks: 10,
        join_lag_max: dice.below(6) as u64,
        window_entries_max: 1 + dice.below(6),
        message_bytes_max: 1 + dice.below(12),
    }
}

struct Run {
    world: World,
    dice: Dice,
    replicas: usize,
    payload: u64,
    /// What a kill costs, and how often: some runs have few faults, and get far.
    peace: usize,
}

/// Runs `seed` for `steps` random steps, then without faults until all is well. A failure prints the last lines of what happened, if `prints`.
///
/// # Panics
/// If an invariant doesn't hold, or the cluster doesn't converge.
pub(crate) fn run(seed: u64, steps: usize, prints: bool) -> Tally {
    let mut dice = Dice(seed);
    let order = [PersistOrder::BackupsFirst, PersistOrder::Parallel][dice.below(2)];
    let (replicas, witnesses) = (2 + dice.below(3), dice.below(3));
    let names = ["n1", "n2", "n3", "n4", "w1", "w2"];
    let names: Vec<&str> = names[..replicas].iter().chain(&names[4..4 + witnesses]).copied().collect();
    let timing = timing(&mut dice);
    let peace = [0, 1, 4, 16][dice.below(4)];
    let mut run = Run { world: World::new(&names, witnesses, order, timing), dice, replicas, payload: 0, peace };
    run.world.replays = !seed.is_multiple_of(4);
    run.world.lines = prints.then(Vec::new);
    run.world.prints_messages = true;
    for node in 0..names.len() {
        run.world.start(node);
    }
    let founders = 1 + run.dice.below(replicas);
    run.world.found(&(0..founders).collect::<Vec<_>>(), 1);
    run.lead_somewhere();
    for _ in 0..steps {
        run.step();
    }
    let lost = run.converge();
    let committed = run.world.checks.committed.len();
    let epochs = run.world.record().configuration.as_ref().map_or(0, |c| c.epoch.0);
    Tally { committed, epochs, reads: run.world.reads, lost: usize::from(lost) }
}

impl Run {
    fn node(&mut self) -> usize {
        self.dice.below(self.world.nodes.len())
    }

    fn step(&mut self) {
        match self.dice.below(100) {
            0..40 => self.arrive(),
            40..58 => self.fsync(),
            58..66 => self.tick(),
            66..76 => self.group(),
            76..88 => self.client(),
            88..91 => {
                let node = self.node();
                self.world.tell_leader(node);
            }
            91 => {
                let node = self.node();
                self.world.purge(node);
            }
            _ => {
                if self.dice.below(1 + self.peace) == 0 {
                    self.fault();
                }
            }
        }
    }

    fn arrive(&mut self) {
        for _ in 0..=self.dice.below(4) {
            let ready = self.world.network.ready();
            if ready.is_empty() {
                return;
            }
            let (way, connections) = ready[self.dice.below(ready.len())];
            let connection = self.dice.below(connections);
            if let Some(letter) = self.world.network.take(way, connection) {
                self.world.arrive(way.1, letter);
            }
        }
    }

    fn fsync(&mut self) {
        let node = self.node();
        for _ in 0..=self.dice.below(3) {
            self.world.fsync(node);
        }
    }

    fn tick(&mut self) {
        if self.dice.below(3) == 0 {
            let node = self.node();
            return self.world.tick(node);
        }
        for node in 0..self.world.nodes.len() {
            self.world.tick(node);
        }
    }

    fn group(&mut self) {
        let at = self.dice.below(self.world.proposals.len());
        if self.dice.below(3) > 0
            && let Some((_, command)) = self.world.proposals.remove(at)
            && self.dice.below(8) > 0
        {
            self.world.commit_command(command.clone());
            if self.dice.below(10) == 0 {
                self.world.commit_command(command); // Proposed again, as its first result was unknown.
            }
        }
        for _ in 0..=self.dice.below(4) {
            let node = self.node();
            self.world.apply_one(node);
        }
    }

    fn client(&mut self) {
        // Clients believe what they heard last: often a primary that was left behind.
        let primaries = self.primaries();
        let node = match self.dice.below(8) {
            0 => self.node(),
            1..4 => self.believed_primary(),
            _ if primaries.is_empty() => self.node(),
            _ => primaries[self.dice.below(primaries.len())],
        };
        match self.dice.below(12) {
            0..8 => self.propose(node),
            8..11 => self.world.read(node),
            _ => {
                let wish = self.dice.below(self.replicas);
                let disk = self.world.nodes[wish].disk.id;
                let wish = if self.dice.below(2) == 0 { Wish::Primary(disk) } else { Wish::Remove(disk) };
                let node = self.world.leader.unwrap_or(node);
                self.world.wish(node, wish);
            }
        }
    }

    fn propose(&mut self, node: usize) {
        let count = 1 + self.dice.below(4);
        let mut payloads = Vec::new();
        for _ in 0..count {
            self.payload += 1;
            payloads.push(Bytes::from(self.payload.to_string()));
        }
        self.world.propose(node, payloads);
    }

    fn primaries(&self) -> Vec<usize> {
        let is_primary = |node: &&Node| node.replica.as_ref().is_some_and(|r| r.standing().role == Role::Primary);
        let nodes = self.world.nodes.iter().enumerate();
        nodes.filter(|(_, node)| is_primary(node)).map(|(i, _)| i).collect()
    }

    fn believed_primary(&mut self) -> usize {
        let configuration = self.world.record().configuration.as_ref();
        let disk = configuration.map(|configuration| configuration.primary().disk);
        disk.and_then(|disk| self.world.owners.get(&disk).copied()).unwrap_or(0)
    }

    fn lead_somewhere(&mut self) {
        let node = self.node();
        self.world.lead(Some(node).filter(|node| self.world.nodes[*node].is_up()));
        if self.dice.below(2) == 0 {
            self.world.tell_leader(node);
        }
    }

    fn fault(&mut self) {
        let (node, other) = (self.node(), self.node());
        let up = self.world.nodes[node].is_up();
        match self.dice.below(26) {
            20..22 => self.isolate(node),
            22..25 => self.rejoin(node),
            25 => {
                let primary = self.believed_primary();
                self.isolate(primary);
            }
            0..3 if up => {
                let kept = self.dice.below(4);
                self.world.kill(node, kept);
            }
            3..8 if !up => self.world.start(node),
            8 => {
                for node in 0..self.world.nodes.len() {
                    let kept = self.dice.below(4);
                    self.world.kill(node, kept);
                }
            }
            9 if !up && self.dice.below(3) == 0 && !self.world.nodes[node].witness => self.world.wipe(node),
            10..12 if node != other => self.world.network.cut((node, other)),
            12..14 if node != other => self.heal(node, other),
            14..17 if node != other => {
                let dice = &mut self.dice;
                self.world.reconnect(node, other, |waiting| dice.below(waiting + 1));
            }
            17..19 => self.lead_somewhere(),
            19 => self.world.nodes[node].disk.held = !self.world.nodes[node].disk.held,
            _ => {}
        }
    }

    /// Nothing reaches the node, or nothing that it sends arrives, or both; and the group is slow to tell it.
    fn isolate(&mut self, node: usize) {
        let directions = 1 + self.dice.below(3);
        for other in 0..self.world.nodes.len() {
            if other != node && directions & 1 > 0 {
                self.world.network.cut((node, other));
            }
            if other != node && directions & 2 > 0 {
                self.world.network.cut((other, node));
            }
        }
        self.world.nodes[node].record_held = self.dice.below(2) == 0;
    }

    fn rejoin(&mut self, node: usize) {
        for other in 0..self.world.nodes.len() {
            self.heal(node, other);
        }
        self.world.nodes[node].record_held = false;
    }

    fn heal(&mut self, node: usize, other: usize) {
        // What was cut may have been only slow: then it comes late, and nothing is lost.
        if self.dice.below(3) == 0 {
            self.world.network.release((node, other));
            self.world.network.release((other, node));
        }
        if self.world.network.heal(node, other) {
            let dice = &mut self.dice;
            self.world.reconnect(node, other, |waiting| dice.below(waiting + 1));
        }
    }

    /// The faults end. Returns whether no disk of the last epoch is left, so that nothing may go on.
    fn converge(&mut self) -> bool {
        let nodes = self.world.nodes.len();
        for node in 0..nodes {
            self.world.nodes[node].disk.held = false;
            self.world.nodes[node].record_held = false;
            for other in 0..node {
                self.world.network.heal(node, other);
                self.world.reconnect(node, other, |_| 0);
            }
        }
        for node in 0..nodes {
            if !self.world.nodes[node].is_up() {
                self.world.start(node);
            }
        }
        self.world.lead(Some(nodes - 1));
        for node in 0..nodes {
            self.world.tell_leader(node);
        }
        self.world.welcome_all();
        for _ in 0..150 {
            self.round();
        }
        let configuration = self.world.record().configuration.clone().expect("founded");
        if configuration.chain.iter().all(|life| self.world.checks.is_wiped(life.disk)) {
            let trouble =
                self.world.nodes[nodes - 1].coordinator.as_ref().expect("up").phase().trouble.unwrap_or_default();
            assert!(trouble.contains("no disk of epoch"), "nothing can go on, and the status says {trouble:?}");
            return true;
        }
        let chain: Vec<_> = configuration.chain.clone();
        let progress = self.world.nodes[nodes - 1].coordinator.as_ref().expect("up").phase();
        assert_eq!(chain.len(), self.replicas, "not everybody is in the chain {chain:?}: {progress:?}");
        let primary = self.believed_primary();
        let before = self.world.checks.committed.len();
        self.propose(primary);
        self.world.read(primary);
        for _ in 0..20 {
            self.round();
        }
        let committed = self.world.checks.committed.len();
        assert!(committed > before, "the whole chain {chain:?} commits nothing: {progress:?}");
        for node in 0..self.replicas {
            let node = &self.world.nodes[node];
            assert_eq!(length(node.commit), committed, "{} doesn't know everything that is committed", node.name);
            assert_eq!(node.disk.durable.len(), committed, "{} has more than was committed", node.name);
        }
        false
    }

    /// A tick at all nodes, and all that follows from it.
    fn round(&mut self) {
        for node in 0..self.world.nodes.len() {
            self.world.tick(node);
        }
        self.world.settle();
    }
}

//! The configuration group: a list of commands, who leads, and what each node has heard of both; and how all comes to rest.

use replicator_chain::{Command, CoordinatorEvent, Event, Record, Verdict};
use replicator_types::{DiskId, Epoch};

use crate::{show, world::World};

impl World {
    pub(crate) fn record(&self) -> &Record {
        self.records.last().expect("the empty one is there")
    }

    pub(crate) fn found(&mut self, members: &[usize], least_chain: u32) {
        let chain = members.iter().map(|node| self.nodes[*node].life()).collect();
        self.commit_command(Command::Found { epoch: Epoch(1), chain, start: None, least_chain });
    }

    pub(crate) fn lead(&mut self, leader: Option<usize>) {
        self.leader = leader;
    }

    /// A node learns who leads: at once, or late.
    pub(crate) fn tell_leader(&mut self, node: usize) {
        let leads = self.leader == Some(node);
        let disk = self.leader.map(|leader| self.nodes[leader].disk.id);
        if self.nodes[node].leads != leads {
            self.nodes[node].leads = leads;
            self.step_coordinator(node, CoordinatorEvent::Leading(leads));
        }
        self.step_replica(node, Event::Coordinator(disk));
    }

    pub(crate) fn commit_command(&mut self, command: Command) {
        let mut record = self.record().clone();
        let before = record.clone();
        let verdict = record.apply(command.clone());
        self.checks.recorded(&before, &record, &command, verdict, &self.nodes, &self.owners);
        if verdict == Verdict::Done && record.configuration != before.configuration {
            self.say(|world| show::chain(world, &record));
        } else {
            let verdict = if verdict == Verdict::Done { "" } else { ", too late" };
            self.say(|world| format!("group: {}{verdict}", show::command(world, &command)));
        }
        self.records.push(record);
    }

    /// The node learns the next of the group's commands.
    pub(crate) fn apply_one(&mut self, node: usize) -> bool {
        let n = &mut self.nodes[node];
        if !n.is_up() || n.record_held || n.applied + 1 >= self.records.len() {
            return false;
        }
        n.applied += 1;
        self.tell_record(node);
        true
    }

    pub(crate) fn tell_record(&mut self, node: usize) {
        let record = self.records[self.nodes[node].applied].clone();
        if let Some(configuration) = record.configuration.clone() {
            self.step_replica(node, Event::Configured { configuration, least_chain: record.least_chain });
        }
        self.step_coordinator(node, CoordinatorEvent::Recorded(record));
    }

    pub(crate) fn tell_voters(&mut self) {
        let voters: Vec<DiskId> = self.nodes.iter().filter(|node| !node.witness).map(|node| node.disk.id).collect();
        for node in 0..self.nodes.len() {
            self.step_coordinator(node, CoordinatorEvent::Voters(voters.clone()));
        }
    }

    /// Removed disks stay out until they have left the voters: all leave, and come back.
    pub(crate) fn welcome_all(&mut self) {
        for node in 0..self.nodes.len() {
            self.step_coordinator(node, CoordinatorEvent::Voters(Vec::new()));
        }
        self.tell_voters();
    }
}

/// What led to a failure.
impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(lines) = &self.lines
        {
            let first = lines.len().saturating_sub(400);
            println!("... {first} lines before\n{}", lines[first..].join("\n"));
        }
    }
}

impl World {
    /// Carries out, in a fair order, all that is under way, except what a script holds up.
    ///
    /// # Panics
    /// If that doesn't end.
    pub(crate) fn settle(&mut self) {
        for _ in 0..100_000 {
            self.settle_nodes();
            let Some((way, _)) = self.network.ready().first().copied() else { return };
            if let Some(letter) = self.network.take_first(way) {
                self.arrive(way.1, letter);
            }
        }
        panic!("a hundred thousand messages, and there are more: {:?}", self.network.ready());
    }

    /// The same without the network.
    pub(crate) fn settle_nodes(&mut self) {
        for _ in 0..10_000 {
            let mut busy = false;
            for node in 0..self.nodes.len() {
                while self.fsync(node) || self.apply_one(node) {
                    busy = true;
                }
            }
            while !self.group_held
                && let Some((from, command)) = self.proposals.pop_front()
            {
                busy = true;
                if self.leader == Some(from) {
                    self.commit_command(command);
                }
            }
            if !busy {
                return;
            }
        }
        panic!("ten thousand commands of the group, and there are more: {:?}", self.proposals);
    }
}

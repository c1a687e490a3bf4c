//! Scripts: lines that begin with `> ` are commands, those with `# ` are remarks, all others are what followed.
//!
//! | command | does |
//! |---|---|
//! | `cluster n1 n2 n3 + w1 [least 2]` | starts nodes, those after the + without a log; the others found a chain. No leader yet |
//! | `leader w1`, `leader none`, `leader w1 unknown to w2` | the group's leader changes, and all that are up hear of it, but one |
//! | `propose n1 a b`, `read n1`, `wish w1 primary n2`, `wish w1 remove n2` | a client or an operator asks that node |
//! | `tick 6` | so many heartbeats at all nodes, each with all that follows |
//! | `tick undelivered` | one, and what it sends stays on its way |
//! | `deliver`, `deliver n1>n2`, `deliver n1>n2 drop` | all messages; the next one of a way; that one is lost. They are printed |
//! | `kill n1`, `kill n1 writes 1`, `restart n1`, `wipe n1`, `put-back n1 2` | what was written survives or doesn't; a new disk; an old copy with so many entries |
//! | `cut n1 n2`, `cut n1>n2`, `heal n1 n2` | what is under way is lost when it heals |
//! | `hold n1>n2`, `release n1>n2` | what is under way comes late |
//! | `purge n1` | it takes an image of what it knows to be committed, and drops the log before that |
//! | `reconnect n1 n2` | what is under way between them is lost |
//! | `fsync n2 hold`, `group hold`, `record n2 hold`, each with `go` | what is held up is not carried out until it goes on |
//! | `state`, `phase w1` | how nodes, or a coordinator, stand |
//!
//! After each command, all that needs no message is carried out: fsyncs, and the group's commands.

use bytes::Bytes;
use replicator_chain::{PersistOrder, Timing, Wish};

use crate::{show, transitions::Transitions, world::World};

/// The commands and remarks of a file.
pub(crate) fn commands(text: &str) -> Vec<String> {
    text.lines().filter(|line| line.starts_with("> ") || line.starts_with('#')).map(str::to_owned).collect()
}

/// Plays `commands`: the whole file as it should be, and the transitions that were taken.
///
/// # Panics
/// If a command is none, or an invariant doesn't hold.
pub(crate) fn play(commands: &[String], order: PersistOrder) -> (String, Transitions) {
    let mut remarks = String::new();
    let mut world: Option<World> = None;
    for line in commands {
        match (line.strip_prefix("> "), &mut world) {
            (Some(command), Some(world)) => {
                world.lines.as_mut().expect("asked for").push(line.clone());
                perform(world, &command.split_whitespace().collect::<Vec<_>>());
            }
            (Some(command), none) => {
                let line = format!("{remarks}{line}");
                *none = Some(begin(&command.split_whitespace().collect::<Vec<_>>(), order, line));
            }
            (None, Some(world)) => world.lines.as_mut().expect("asked for").push(line.clone()),
            (None, None) => remarks += &format!("{line}\n"),
        }
    }
    let mut world = world.expect("a script has commands");
    let transitions = world.transitions.take().unwrap_or_default();
    (world.lines.take().unwrap_or_default().join("\n") + "\n", transitions)
}

fn begin(words: &[&str], order: PersistOrder, line: String) -> World {
    let (names, least) = match words {
        ["cluster", names @ .., "least", least] => (names, least.parse().expect("a number of members")),
        ["cluster", names @ ..] => (names, 1),
        _ => panic!("a script begins with `cluster`, not with {words:?}"),
    };
    let replicas = names.iter().position(|name| *name == "+").unwrap_or(names.len());
    let all: Vec<&str> = names.iter().filter(|name| **name != "+").copied().collect();
    let mut world =
        World::new(&all, all.len() - replicas, order, Timing { cold_ticks: 30, join_lag_max: 4, ..Timing::default() });
    world.lines = Some(vec![line]);
    world.transitions = Some(Transitions::default());
    for node in 0..all.len() {
        world.start(node);
    }
    world.found(&(0..replicas).collect::<Vec<_>>(), least);
    world.settle();
    world
}

fn find(world: &World, name: &str) -> usize {
    world.nodes.iter().position(|node| node.name == name).unwrap_or_else(|| panic!("no node is called {name}"))
}

fn way(world: &World, text: &str) -> (usize, usize) {
    let (from, to) = text.split_once('>').unwrap_or_else(|| panic!("{text} is no way like n1>n2"));
    (find(world, from), find(world, to))
}

fn perform(world: &mut World, words: &[&str]) {
    let node = |world: &World| find(world, words[1]);
    match words {
        ["leader", name, unknown @ ..] => {
            world.lead((*name != "none").then(|| find(world, name)));
            for node in 0..world.nodes.len() {
                if unknown.last() != Some(&world.nodes[node].name.as_str()) {
                    world.tell_leader(node);
                }
            }
        }
        ["propose", _, payloads @ ..] => {
            let payloads = payloads.iter().map(|text| Bytes::from((*text).to_owned())).collect();
            world.propose(node(world), payloads);
        }
        ["read", _] => world.read(node(world)),
        ["wish", _, what, whom] => {
            let disk = world.nodes[find(world, whom)].disk.id;
            let wish = if *what == "primary" { Wish::Primary(disk) } else { Wish::Remove(disk) };
            world.wish(node(world), wish);
        }
        ["tick", "undelivered"] => (0..world.nodes.len()).for_each(|node| world.tick(node)),
        ["tick", count] => {
            for _ in 0..count.parse().expect("a number of ticks") {
                (0..world.nodes.len()).for_each(|node| world.tick(node));
                world.settle();
            }
        }
        ["deliver"] => {
            world.prints_messages = true;
            world.settle();
            world.prints_messages = false;
        }
        ["deliver", text, rest @ ..] => deliver(world, text, rest == ["drop"]),
        ["kill", _] => world.kill(node(world), 0),
        ["kill", _, "writes", kept] => world.kill(node(world), kept.parse().expect("a number of writes")),
        ["purge", _] => world.purge(node(world)),
        ["restart", _] => world.start(node(world)),
        ["wipe", _] => world.wipe(node(world)),
        ["put-back", _, entries] => {
            world.checks.allows_damage = true;
            let node = node(world);
            let disk = &mut world.nodes[node].disk;
            disk.durable.truncate(entries.parse().expect("a number of entries"));
            disk.crash(0);
        }
        ["cut", a, b] => {
            let (a, b) = (find(world, a), find(world, b));
            world.network.cut((a, b));
            world.network.cut((b, a));
        }
        ["cut", text] => world.network.cut(way(world, text)),
        ["hold", text] => world.network.cut(way(world, text)),
        ["release", text] => world.network.release(way(world, text)),
        ["heal" | "reconnect", a, b] => {
            let (a, b) = (find(world, a), find(world, b));
            world.network.heal(a, b);
            world.reconnect(a, b, |_| 0);
        }
        ["fsync", _, how] => {
            let node = node(world);
            world.nodes[node].disk.held = *how == "hold";
        }
        ["group", how] => world.group_held = *how == "hold",
        ["record", _, how] => {
            let node = node(world);
            world.nodes[node].record_held = *how == "hold";
        }
        ["state"] => {
            for node in 0..world.nodes.len() {
                world.say(|world| show::node(world, node));
            }
        }
        ["phase", _] => {
            let node = node(world);
            world.say(|world| phase(world, node));
        }
        _ => panic!("no command: {words:?}"),
    }
    world.settle_nodes();
}

fn deliver(world: &mut World, text: &str, lost: bool) {
    let way = way(world, text);
    let letter = world.network.take_first(way).unwrap_or_else(|| panic!("nothing is on its way {text}"));
    if lost {
        return world.say(|world| format!("lost: {}", show::message(world, &letter.1)));
    }
    world.prints_messages = true;
    world.arrive(way.1, letter);
    world.prints_messages = false;
}

fn phase(world: &World, node: usize) -> String {
    let n = &world.nodes[node];
    let Some(coordinator) = &n.coordinator else { return format!("{}: down", n.name) };
    let progress = coordinator.phase();
    let mut line = format!("{}: {:?} for {} ticks", n.name, progress.phase, progress.ticks);
    let waiting: Vec<String> = progress.waiting_for.iter().map(|disk| show::disk(world, *disk)).collect();
    if let Some(reason) = &progress.reason {
        line += &format!(", as {}", show::names(world, reason));
    }
    if !waiting.is_empty() {
        line += &format!(", waits for {}", waiting.join(", "));
    }
    if let Some(trouble) = &progress.trouble {
        line += &format!(": {}", show::names(world, trouble));
    }
    line
}

//! Whole nodes under scripts and under chance. See `golden/world.rs` for what a node is here.
//!
//! A script and what follows from it stand in one file of `golden/backups-first` and `golden/parallel`; `UPDATE_GOLDEN=1` writes what
//! follows anew, with the scripts of the former. `CHAIN_SEEDS=100000` runs so many random runs, and `CHAIN_SEED=7` that one alone.

#[path = "golden/checks.rs"]
mod checks;
#[path = "golden/disk.rs"]
mod disk;
#[path = "golden/group.rs"]
mod group;
#[path = "golden/network.rs"]
mod network;
#[path = "golden/random.rs"]
mod random;
#[path = "golden/script.rs"]
mod script;
#[path = "golden/show.rs"]
mod show;
#[path = "golden/transitions.rs"]
mod transitions;
#[path = "golden/world.rs"]
mod world;

use std::{collections::BTreeSet, env, fs, panic, path::PathBuf};

use replicator_chain::PersistOrder;

/// Steps of a random run: enough for some changes of epoch.
const STEPS: usize = 600;

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}, not a number")))
}

const AGAIN: &str = "UPDATE_GOLDEN=1 cargo test --release -p replicator-chain --test golden scripts";

fn folder(order: PersistOrder) -> PathBuf {
    let name = match order {
        PersistOrder::BackupsFirst => "backups-first",
        PersistOrder::Parallel => "parallel",
    };
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// The scripts, by name.
fn stories() -> Vec<(String, Vec<String>)> {
    let folder = folder(PersistOrder::BackupsFirst);
    let files = fs::read_dir(&folder).expect("the folder of scripts is there");
    let name = |file: fs::DirEntry| file.file_name().into_string().expect("names of scripts are text");
    let mut names: Vec<String> = files.map(|file| name(file.expect("the folder can be read"))).collect();
    names.sort();
    let read = |name: &String| fs::read_to_string(folder.join(name)).expect("the script can be read");
    names.iter().map(|name| (name.clone(), script::commands(&read(name)))).collect()
}

/// The first line in which they differ, and those around it.
fn difference(expected: &str, found: &str) -> String {
    let (expected, found): (Vec<&str>, Vec<&str>) = (expected.lines().collect(), found.lines().collect());
    let same = expected.iter().zip(&found).take_while(|(a, b)| a == b).count();
    let part = |lines: &[&str]| lines[same.saturating_sub(4).min(lines.len())..lines.len().min(same + 12)].join("\n");
    format!("line {}\n--- expected\n{}\n--- found\n{}", same + 1, part(&expected), part(&found))
}

#[test]
fn scripts_end_as_they_did() {
    let update = env::var_os("UPDATE_GOLDEN").is_some();
    let mut differences = Vec::new();
    for (name, commands) in stories() {
        for order in [PersistOrder::BackupsFirst, PersistOrder::Parallel] {
            let path = folder(order).join(&name);
            let played = panic::catch_unwind(|| script::play(&commands, order).0);
            let found = played.unwrap_or_else(|_| panic!("{} breaks off; what led to it is above", path.display()));
            if update {
                fs::write(&path, &found).unwrap();
                continue;
            }
            let expected = fs::read_to_string(&path).unwrap_or_default();
            if expected != found {
                differences.push(format!("{}: {}", path.display(), difference(&expected, &found)));
            }
        }
    }
    assert!(differences.is_empty(), "{}\n\nif this is right: {AGAIN}", differences.join("\n\n"));
}

#[test]
fn every_transition_of_the_document_is_in_a_script() {
    for order in [PersistOrder::BackupsFirst, PersistOrder::Parallel] {
        let mut taken = BTreeSet::new();
        for (_, commands) in stories() {
            taken.extend(script::play(&commands, order).1.0.into_keys());
        }
        // A primary whose own log comes last commits when that is durable, and one whose log comes first holds nothing.
        let of_the_other: &[&str] = match order {
            PersistOrder::BackupsFirst => {
                &["proposed: parallel appends and sends", "acknowledged: the primary commits"]
            }
            PersistOrder::Parallel => {
                &["proposed: backups first holds and sends", "acknowledged: held entries are appended"]
            }
        };
        let wanted = transitions::ALL.iter().filter(|name| !of_the_other.contains(name));
        let missing: Vec<_> = wanted.filter(|name| !taken.contains(*name)).collect();
        assert!(missing.is_empty(), "no script takes, with {order:?}: {missing:#?}");
    }
}

#[test]
fn every_row_of_what_a_crash_can_leave_is_a_script() {
    let rows = [
        "primary-dies.txt",
        "middle-dies.txt",
        "tail-dies.txt",
        "two-die.txt",
        "member-restarts-at-once.txt",
        "member-returns-later.txt",
        "wiped-disk-returns.txt",
        "all-die-files-out-of-step.txt",
        "all-die-some-return.txt",
        "none-of-the-last-epoch-returns.txt",
        "group-has-no-majority.txt",
        "primary-is-cut-off.txt",
    ];
    let document = fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/chain.md")).unwrap();
    let table = document.split("## What a crash can leave").nth(1).unwrap().split("\n## ").next().unwrap();
    let described = table.lines().filter(|line| line.starts_with("| ")).count() - 1;
    assert_eq!(described, rows.len(), "a row of docs/chain.md has no script, or the other way round");
    let stories: BTreeSet<String> = stories().into_iter().map(|(name, _)| name).collect();
    let missing: Vec<_> = rows.iter().filter(|row| !stories.contains(**row)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn random_faults_lose_nothing_and_all_converges() {
    let seeds = number("CHAIN_SEED").map_or(0..number("CHAIN_SEEDS").unwrap_or(300), |seed| seed..seed + 1);
    let count = seeds.end - seeds.start;
    let mut sum = random::Tally::default();
    for seed in seeds {
        let tally = panic::catch_unwind(|| random::run(seed, STEPS, count == 1)).unwrap_or_else(|_| {
            panic!("run it again: CHAIN_SEED={seed} cargo test --release -p replicator-chain --test golden random")
        });
        sum.committed += tally.committed;
        sum.epochs += tally.epochs;
        sum.reads += tally.reads;
        sum.lost += tally.lost;
    }
    println!("{count} runs: {sum:?}");
    if count >= 100 {
        assert!(sum.committed as u64 > 10 * count, "hardly anything was committed: {sum:?}");
        assert!(sum.epochs > 4 * count, "hardly any epoch began: {sum:?}");
        assert!((sum.lost as u64) < count / 4, "most runs ended in loss: {sum:?}");
    }
}

//! `replicator torture` and `replicator bench`, as programs: what they print, and how they end.

use anyhow::{Context as _, Result, ensure};
use replicator_tests::{Ran, Scenario, module, replicator, run, scenario};
use serde_json::Value;

/// Runs one that keeps its nodes' folders in the test's.
async fn here(s: &Scenario, args: &[&str]) -> Result<Ran> {
    s.turn().await?;
    let folder = s.dir().display().to_string();
    let ran = run(&replicator(), args.iter().copied().chain(["--data-dir", &folder]), &[]).await?;
    if ran.code == Some(0) {
        let left = std::fs::read_dir(s.dir())?.count();
        ensure!(left == 0, "`{}` succeeded, and left {left} things behind", ran.what);
    }
    Ok(ran)
}

async fn refused(args: &[&str], words: &[&str]) -> Result<()> {
    run(&replicator(), args, &[]).await?.exits(2)?.complains_of(words)?;
    Ok(())
}

fn above_zero(value: &Value, keys: &[&str]) -> Result<()> {
    for key in keys {
        let number = value[*key].as_f64().with_context(|| format!("no {key} in {value}"))?;
        ensure!(number > 0.0, "{key} is {number} in {value}");
    }
    Ok(())
}

fn is(value: &Value, expected: &[(&str, Value)]) -> Result<()> {
    for (key, expected) in expected {
        ensure!(value[*key] == *expected, "{key} is {}, not {expected}, in {value}", value[*key]);
    }
    Ok(())
}

#[test]
fn three_rounds_of_torture_break_no_promise() {
    scenario(async |s| {
        let ran = here(s, &["torture", "--rounds", "3", "--seed", "3", "-o", "json"]).await?.exits(0)?;
        let value = ran.json()?;
        above_zero(&value, &["acknowledged", "pushes", "reads", "seconds"])?;
        let none = ["lost", "doubled", "stale", "missing", "phantom", "disordered", "expired"]
            .map(|key| (key, Value::from(0)));
        is(&value, &none)?;
        is(&value, &[("digests", "equal".into()), ("seed", 3.into()), ("rounds", 3.into()), ("nodes", 3.into())])?;
        ensure!(
            ran.stderr.contains("--mode majority --nodes 3 --rounds 3 --seed 3"),
            "it didn't say how to run it again: {}",
            ran.stderr
        );
        Ok(())
    });
}

#[test]
fn chain_survives_torture_of_both_orders() {
    scenario(async |s| {
        for order in ["backups-first", "parallel"] {
            let args =
                ["torture", "--mode", "chain", "--persist-order", order, "--rounds", "3", "--seed", "4", "-o", "json"];
            let value = here(s, &args).await?.exits(0)?.json()?;
            let none = ["lost", "doubled", "stale", "missing", "phantom"].map(|key| (key, Value::from(0)));
            is(&value, &none)?;
            is(
                &value,
                &[("digests", "equal".into()), ("nodes", 5.into()), ("mode", format!("chain ({order})").into())],
            )?;
        }
        Ok(())
    });
}

#[test]
fn torture_of_five_nodes_plays_the_faults_that_were_chosen() {
    scenario(async |s| {
        let args = ["torture", "--rounds", "2", "--nodes", "5", "--faults", "stop-primary,all", "--writers", "5"];
        let ran = here(s, &args).await?.exits(0)?;
        ensure!(ran.stdout.starts_with("seed "), "the seed comes first: {}", ran.stdout);
        for words in
            ["acknowledged=", " lost=0 ", " doubled=0 ", " stale=0 ", " missing=0 ", " expired=0 ", " digests=equal "]
        {
            ensure!(ran.stdout.contains(words), "no {words:?} in {}", ran.stdout);
        }
        let last = ran.stderr.lines().find(|line| line.starts_with("round 2 of 2:")).context("no line of progress")?;
        let faults = ["stop n", "kill n1, kill n2, kill n3, kill n4, kill n5"];
        ensure!(faults.iter().any(|fault| last.contains(fault)), "another fault than those asked for: {last}");
        Ok(())
    });
}

#[test]
fn torture_that_reads_without_the_primary_finds_stale_reads_and_keeps_the_evidence() {
    scenario(async |s| {
        let args = ["torture", "--rounds", "3", "--seed", "4", "--consistency", "local", "-o", "json"];
        let ran = here(s, &args).await?.exits(3)?.complains_of(&["kept in", "--seed 4", "--consistency local"])?;
        let value = ran.json()?;
        above_zero(&value, &["stale", "acknowledged"])?;
        is(&value, &[("lost", 0.into()), ("doubled", 0.into()), ("missing", 0.into()), ("digests", "equal".into())])?;
        let kept = std::fs::read_dir(s.dir())?.next().context("no folder is kept")??.path();
        ensure!(kept.join("n1.log").is_file(), "no log in {}", kept.display());
        Ok(())
    });
}

#[test]
fn torture_with_wiped_nodes_tells_how_they_caught_up() {
    scenario(async |s| {
        let args = ["torture", "--mode", "chain", "--faults", "wipe", "--rounds", "2", "--seed", "2", "-o", "json"];
        let value = here(s, &args).await?.exits(0)?.json()?;
        is(&value, &[("wiped", 2.into()), ("lost", 0.into()), ("doubled", 0.into()), ("digests", "equal".into())])?;
        above_zero(&value, &["images", "folder_bytes_max"])?;
        let caught_up = &value["catch_ups"];
        is(caught_up, &[("untold", 0.into())])?;
        ensure!(caught_up["log"].as_u64() > Some(0) || caught_up["whole_state"].as_u64() > Some(0), "{caught_up}");
        refused(&["torture", "--mode", "chain", "--nodes", "1", "--witnesses", "2", "--wipe"], &["only replica"]).await
    });
}

#[test]
fn torture_fills_disks_or_says_that_it_can_not() {
    scenario(async |s| {
        let args = ["torture", "--full-disk", "--faults", "full-disk", "--rounds", "2", "--seed", "1", "-o", "json"];
        let ran = here(s, &args).await?;
        if ran.code == Some(2) {
            ran.complains_of(&["tmpfs", "as root", "--full-disk"])?;
            eprintln!("SKIPPED: only root can mount the small disks that are filled");
            return Ok(());
        }
        let value = ran.exits(0)?.json()?;
        above_zero(&value, &["disks_filled", "full_disks_noticed", "refused"])?;
        is(&value, &[("lost", 0.into()), ("doubled", 0.into()), ("digests", "equal".into())])?;
        let mounts = std::fs::read_to_string("/proc/self/mounts")?;
        ensure!(!mounts.contains(&s.dir().display().to_string()), "disks are still mounted: {mounts}");
        Ok(())
    });
}

#[test]
fn bench_measures_its_own_cluster() {
    scenario(async |s| {
        for (flags, transport) in [
            (&["--clients", "8"][..], "ExecuteStream"),
            (&["--clients", "8", "--unary"], "Execute"),
            (&["--clients", "8", "--query"], "QueryStream"),
            (&["--clients", "8", "--query", "--unary", "--consistency", "local"], "Query"),
        ] {
            let args = [&["bench", "--seconds", "1", "--bytes", "100", "-o", "json"], flags].concat();
            let value = here(s, &args).await?.exits(0)?.json()?;
            above_zero(
                &value,
                &["requests_per_sec", "p50_us", "p99_us", "max_us", "server_cpu_seconds", "client_threads"],
            )?;
            is(
                &value,
                &[
                    ("transport", transport.into()),
                    ("clients", 8.into()),
                    ("bytes", 100.into()),
                    ("errors", 0.into()),
                    ("mode", "majority".into()),
                    ("nodes", 3.into()),
                ],
            )?;
            ensure!(value["machine"]["cores"].as_u64() > Some(0), "no machine in {value}");
        }
        Ok(())
    });
}

#[test]
fn bench_runs_several_loads_on_a_cluster_that_is_there() {
    scenario(async |s| {
        let cluster = s.cluster(3, &module("journal")).await?;
        let endpoints = cluster.endpoints();
        let args = ["bench", "--endpoints", &endpoints, "--clients", "1,16", "--seconds", "1", "--module", "journal"];
        let table = run(&replicator(), args, &[]).await?.exits(0)?.stdout;
        ensure!(table.contains("app=journal"), "another module: {table}");
        ensure!(table.contains("; the load has "), "not how many threads make the load: {table}");
        let clients: Vec<&str> = table.lines().filter_map(|line| line.split_whitespace().next()).collect();
        ensure!(clients.contains(&"1") && clients.contains(&"16"), "not two rows: {table}");
        // Every append was a good one: no writer was answered with an error.
        let json = [&args[..], &["-o", "json"]].concat();
        let value = run(&replicator(), json, &[]).await?.exits(0)?.json()?;
        ensure!(value["runs"].as_array().is_some_and(|runs| runs.len() == 2), "not two runs: {value}");
        above_zero(&value["runs"][1], &["requests_per_sec", "p99_us"])?;
        is(&value["runs"][0], &[("server_cpu_seconds", Value::Null), ("errors", 0.into())])?;
        cluster.verify().await?;
        Ok(())
    });
}

/// An experiment's loads, by what they are, and its figures.
fn found(value: &Value) -> Result<(Vec<&Value>, Vec<&Value>)> {
    let list = |key: &str| value[key].as_array().with_context(|| format!("no {key} in {value}"));
    Ok((list("loads")?.iter().collect(), list("figures")?.iter().collect()))
}

#[test]
fn bench_experiments_compare_loads_and_find_figures() {
    scenario(async |s| {
        let small = ["--state-mib", "8", "--clients", "4", "--seconds", "1", "--rounds", "1", "-o", "json"];
        for (experiment, loads_expected, figures_expected) in [
            (&["images"][..], 4, 11),
            (&["lag"], 4, 3),
            (&["traps", "--trapping", "1,2"], 3, 4),
            (&["traps", "--trapping", "2", "--mode", "chain", "--nodes", "2"], 2, 2),
        ] {
            let args = [&["bench"], experiment, &small].concat();
            let value = here(s, &args).await?.exits(0)?.json()?;
            let (loads, figures) = found(&value)?;
            ensure!((loads.len(), figures.len()) == (loads_expected, figures_expected), "{experiment:?}: {value}");
            is(loads[0], &[("p99_ratio", 1.0.into())])?;
            for load in loads {
                above_zero(load, &["requests_per_sec", "p50_us", "p99_us", "p99_ratio"])?;
                is(load, &[("errors", 0.into())])?;
            }
            for figure in figures {
                above_zero(figure, &["median"])?;
                let compared = !figure["compared_with"].is_null();
                ensure!(figure["ratio"].is_number() == compared, "{figure}");
            }
        }
        Ok(())
    });
}

#[test]
fn bench_replay_applies_the_whole_log_and_soak_stays_under_its_bound() {
    scenario(async |s| {
        let replay = ["bench", "replay", "--entries", "20000", "--rounds", "1", "-o", "json"];
        let value = here(s, &replay).await?.exits(0)?.json()?;
        let (_, figures) = found(&value)?;
        is(figures[0], &[("what", "entries applied".into())])?;
        above_zero(figures[0], &["median"])?;

        let soak =
            ["bench", "soak", "--requests", "20000", "--clients", "64", "--state-mib", "2", "--log-bytes", "65536"];
        for flags in [&["--nodes", "3"][..], &["--nodes", "2", "--mode", "chain"]] {
            let value = here(s, &[&soak[..], flags, &["-o", "json"]].concat()).await?.exits(0)?.json()?;
            is(&value, &[("state_equal", true.into()), ("errors", 0.into())])?;
            ensure!(value["requests"].as_u64().is_some_and(|requests| requests > 0), "nothing was measured: {value}");
            let bound = value["bound_bytes"].as_u64().context("no bound")?;
            let nodes = value["nodes"].as_array().context("no nodes")?;
            ensure!(nodes.len() == flags[1].parse::<usize>()?, "{value}");
            for node in nodes {
                above_zero(node, &["log_bytes_max", "images_bytes_max", "last_image_log_index"])?;
                ensure!(node["bytes_max"].as_u64().is_some_and(|bytes| bytes <= bound), "over the bound: {value}");
            }
        }
        Ok(())
    });
}

#[test]
fn what_cannot_be_asked_for_is_refused_with_a_reason() {
    scenario(async |_| {
        refused(&["torture", "--mode", "ring"], &["ring", "majority", "chain"]).await?;
        refused(&["bench", "--witnesses", "1"], &["only a chain", "--mode chain"]).await?;
        refused(&["torture", "--nodes", "4"], &["1, 3 or 5"]).await?;
        refused(&["torture", "--nodes", "1"], &["at least 3 nodes"]).await?;
        refused(&["demo", "--mode", "chain", "--nodes", "9"], &["at most 9 nodes"]).await?;
        refused(&["torture", "--faults", "flood"], &["flood", "stop-primary"]).await?;
        refused(&["bench", "--module", "journal", "--bytes", "10"], &["64 bytes"]).await?;
        refused(&["bench", "--consistency", "local"], &["--query"]).await?;
        refused(&["bench", "--clients", "0"], &["--clients"]).await?;
        refused(&["bench", "--clients", "4", "images"], &["images"]).await?;
        refused(&["bench", "soak", "--nodes", "2"], &["1, 3 or 5"]).await?;
        refused(&["bench", "images", "--state-mib", "5000"], &["--state-mib"]).await?;
        let nobody = run(&replicator(), ["bench", "--endpoints", "127.0.0.1:1", "--seconds", "1"], &[]).await?;
        nobody.exits(1)?.complains_of(&["no primary is known"])?;
        Ok(())
    });
}

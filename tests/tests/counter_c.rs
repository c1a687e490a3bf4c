//! The counter in C in a cluster: its nodes die, and agree.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use replicator_tests::{Scenario, module, run, scenario, source};

/// The module; none, said so, where nothing builds it.
async fn counter_in_c(s: &Scenario) -> Result<Option<PathBuf>> {
    let script = source().join("statemachine/examples/counter-c/build.sh");
    let wasm = s.dir().join("counter-c.wasm");
    let built = run(&script, [&wasm], &[]).await?;
    if built.code == Some(77) {
        // Past the test harness, which shows nothing of a test that passes.
        let why = format!("skipped: the counter in C is not tested, because {}", built.stderr);
        let _ = std::io::Write::write_all(&mut std::io::stderr(), why.as_bytes());
        return Ok(None);
    }
    built.exits(0)?;
    Ok(Some(wasm))
}

#[test]
fn counter_in_c_counts_once_while_its_nodes_die() {
    scenario(async |s| {
        let Some(module) = counter_in_c(s).await? else { return Ok(()) };
        let mut cluster = s.cluster(3, &module).await?;
        let status = cluster.status(0).await?;
        ensure!(status.module_description.starts_with("app=counter version=0.1.0-c "), "{status:?}");
        for round in 1..=3_u64 {
            let primary = cluster.wait_primary().await?;
            let told = cluster.replicator(&["call", "add apples 5"]).await?.exits(0)?;
            ensure!(told.stdout == format!("{}\n", 5 * round), "{told:?}");
            cluster.kill(&[primary])?;
            let told = cluster.replicator(&["query", "get apples"]).await?.exits(0)?;
            ensure!(told.stdout == format!("{}\n", 5 * round), "{told:?}");
            cluster.restart(primary).await?;
        }
        cluster.expect_counter("apples", 15).await?;
        cluster.verify().await?;
        Ok(())
    });
}

#[test]
fn chain_runs_the_counter_in_c_too() {
    scenario(async |s| {
        let Some(in_c) = counter_in_c(s).await? else { return Ok(()) };
        let cluster = s.chain(3, 2, "parallel", &in_c).await?;
        for (request, answer) in [("add a 2", "2"), ("add b 9223372036854775807", "9223372036854775807")] {
            let told = cluster.replicator(&["call", request]).await?.exits(0)?;
            ensure!(told.stdout.trim() == answer, "{told:?}");
        }
        let told = cluster.replicator(&["call", "add b 1"]).await?.exits(0)?;
        ensure!(told.stdout == "error: b would overflow\n", "{told:?}");
        cluster.expect_counter("a", 2).await?;
        // The one in Rust reads what it writes, and the other way round.
        for next in [module("counter"), in_c] {
            cluster.replicator(&["module", "activate", &next.display().to_string()]).await?.exits(0)?;
            cluster.expect_counter("a", 2).await?;
        }
        cluster.verify().await?;
        Ok(())
    });
}

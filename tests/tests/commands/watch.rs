//! `replicator status --watch`.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use replicator_tests::{Cluster, Load, Scenario, module, prepared, replicator, scenario, until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// A `replicator status --watch`, whose standard output is a file.
struct Watch {
    child: Child,
    out: PathBuf,
}

impl Watch {
    fn start(s: &Scenario, cluster: &Cluster, name: &str, args: &[&str]) -> Result<Self> {
        let out = s.dir().join(name);
        let args = ["status", "--watch"].iter().chain(args);
        let mut command = prepared(&replicator(), args, &[("REPLICATOR_ENDPOINTS", &cluster.endpoints())]);
        let child = command.stdin(Stdio::null()).stdout(fs::File::create(&out)?).stderr(Stdio::null()).spawn()?;
        Ok(Self { child, out })
    }

    /// Waits until the samples so far are as wanted.
    async fn until(&self, what: &str, wanted: impl Fn(&str) -> bool) -> Result<String> {
        until(what, async || {
            let told = fs::read_to_string(&self.out)?;
            ensure!(wanted(&told), "{told}");
            Ok(told)
        })
        .await
    }

    async fn interrupt(&mut self) -> Result<()> {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::INT)?;
        let status = until("it ends", async || self.child.try_wait()?.context("it runs")).await?;
        ensure!(status.code() == Some(0), "it ended with {status}");
        Ok(())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn watched_status_shows_rates_and_the_dead_and_ends_well_on_interrupt() {
    scenario(async |s| {
        let mut cluster = s.cluster(3, &module("counter")).await?;
        let mut text = Watch::start(s, &cluster, "text", &["0.2"])?;
        let mut json = Watch::start(s, &cluster, "json", &["0.2", "-o", "json"])?;
        // The samples that are whole.
        let samples = |told: &str| -> Vec<Value> {
            let whole = told.rfind('\n').map_or("", |end| &told[..end]);
            whole.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
        };
        let load = Load::start(&cluster, "x", 16).await?;
        json.until("a rate is told", |told| {
            samples(told).iter().any(|sample| {
                let nodes = sample["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
                nodes.len() == 3
                    && sample["primary_node_id"].is_string()
                    && nodes.iter().all(|node| node["applied_per_sec"].as_f64() > Some(20.0))
                    && nodes.iter().all(|node| node["behind"].is_u64())
            })
        })
        .await?;
        // One is gone, and one stands still with its sockets open: it is waited for by itself, a second at most.
        cluster.kill(&[2])?;
        load.stop().await?;
        let primary = cluster.wait_primary_among(&[0, 1]).await?;
        let still = 1 - primary;
        cluster[still].pause()?;
        let gone = |sample: &Value| {
            let nodes = sample["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
            let reached: Vec<_> = nodes.iter().filter(|node| node["error"].is_null()).collect();
            nodes.len() == 3 && reached.len() == 1
        };
        let told = json.until("three samples with one node that answers", |told| {
            samples(told).iter().filter(|sample| gone(sample)).count() >= 3
        });
        let told = told.await?;
        let times: Vec<u64> = samples(&told)
            .iter()
            .filter(|sample| gone(sample))
            .filter_map(|sample| sample["elapsed_ms"].as_u64())
            .collect();
        ensure!(times.windows(2).all(|pair| pair[1] - pair[0] < 3_000), "the dead held up the others: {times:?}");
        let told = text.until("the text shows them too", |told| told.contains("1 of 3 nodes answer")).await?;
        ensure!(told.contains("unreachable") && told.contains("ENTRIES/S") && !told.contains('\u{1b}'), "{told}");
        cluster[still].resume()?;
        text.interrupt().await?;
        json.interrupt().await
    });
}

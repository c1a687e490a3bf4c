//! The operator's override: what is left after a loss for ever goes on under a new lineage, keeps what its disk held, and nobody of the old
//! lineage gets in by mistake.

use std::{fs, time::Duration};

use anyhow::{Result, ensure};
use replicator_client::proto::{NodeState, StatusResponse};
use replicator_tests::{Cluster, Load, OldHistory, Ran, advance, module, replicator, run, scenario, until};
use serde_json::Value;

/// Runs `replicator recover` with a node's folder.
async fn recover(cluster: &Cluster, index: usize, flags: &[&str]) -> Result<Ran> {
    let folder = cluster[index].data_dir.display().to_string();
    run(&replicator(), ["recover", "--data-dir", &folder].into_iter().chain(flags.iter().copied()), &[]).await
}

/// What JSON `recover` printed.
async fn recovered(cluster: &Cluster, index: usize, dead: &str) -> Result<Value> {
    recover(cluster, index, &["--dead", dead, "--yes", "-o", "json"]).await?.exits(0)?.json()
}

/// Waits until a node that isn't served by anybody names the way out.
async fn wait_names_recover(cluster: &Cluster, indexes: &[usize], words: &str) -> Result<()> {
    until("a node names `replicator recover`", async || {
        let mut told = Vec::new();
        for &index in indexes {
            told.push(cluster.status(index).await?.detail);
        }
        let named = told.iter().any(|detail| detail.contains("`replicator recover`") && detail.contains(words));
        ensure!(named, "{told:?}");
        Ok(())
    })
    .await
}

/// Waits until a node of the old lineage is refused, and says so itself.
async fn wait_left_behind(cluster: &Cluster, index: usize, by: &str, since: usize) -> Result<StatusResponse> {
    let told = cluster
        .wait_status(index, "is told that its lineage was replaced", |status| {
            status.detail.contains(by) && status.detail.contains("lineage") && status.detail.contains("--rejoin")
        })
        .await?;
    let log = cluster[index].told(since)?;
    ensure!(log.contains("--rejoin") && log.contains("replicator recover"), "its log doesn't tell: {log}");
    Ok(told)
}

/// Adds to `x` in a new session.
async fn add(cluster: &Cluster, count: u64) -> Result<()> {
    let session = cluster.client()?.open_session(None).await?;
    for _ in 0..count {
        session.execute("add x 1").await?;
    }
    Ok(())
}

#[test]
fn majority_lost_for_ever_goes_on_from_the_disk_that_is_left() {
    scenario(async |s| {
        let mut cluster = s.cluster(3, &module("counter")).await?;
        let load = Load::start(&cluster, "x", 8).await?;
        load.advance(100).await?;
        let old = OldHistory::take(&cluster, 0).await?;
        let acknowledged = load.settle(&cluster).await?;
        let before = cluster.status(0).await?;
        cluster.kill(&[0, 1, 2])?;
        fs::remove_dir_all(&cluster[2].data_dir)?;

        // Alone it waits, and says what would help. A folder that is in use isn't touched.
        cluster[0].start(&[])?;
        cluster.wait_answers(0).await?;
        wait_names_recover(&cluster, &[0], "1 of 3 agree").await?;
        recover(&cluster, 0, &["--dead", "n2,n3", "--yes"]).await?.exits(1)?.complains_of(&["is in use by process"])?;
        cluster[0].kill()?;
        let told = recover(&cluster, 0, &["--dead", "n3", "--yes"]).await?.exits(2)?;
        ensure!(told.stdout.contains("entries after") && told.stdout.contains("n2"), "{}", told.stdout);
        told.complains_of(&["doesn't name n2", "Nothing was changed"])?;
        recover(&cluster, 0, &["--dead", "n2,n3,n4", "--yes"]).await?.exits(2)?.complains_of(&["n4"])?;
        recover(&cluster, 0, &["--dead", "n2,n3"]).await?.exits(2)?.complains_of(&["no terminal", "--yes"])?;
        recover(&cluster, 2, &["--yes"]).await?.exits(1)?.complains_of(&["holds no node"])?;
        ensure!(!cluster[2].data_dir.exists(), "a refusal made a folder");

        let told = recovered(&cluster, 0, "n2,n3").await?;
        ensure!(told["recovered"]["rejoin"] == serde_json::json!(["n2", "n3"]), "{told}");
        cluster[0].start(&[])?;
        cluster.wait_primary_among(&[0]).await?;
        let after = cluster.status(0).await?;
        ensure!(after.cluster_id == before.cluster_id && after.disk_id != before.disk_id, "{before:?} {after:?}");
        ensure!(told["recovered"]["lineage"] == format!("{:016x}", after.lineage), "{told} {after:?}");
        ensure!(after.lineage != before.lineage, "the lineage is the old one");
        ensure!(cluster.counter_at(0, "x").await? == acknowledged, "an acknowledged write is lost");
        old.is_refused(&cluster, 0).await?;
        add(&cluster, 10).await?;

        // A member with its old folder is left out and told so; anew, it is let in.
        let since = cluster[1].log_bytes();
        cluster[1].start(&[])?;
        cluster.wait_answers(1).await?;
        let refused = wait_left_behind(&cluster, 1, "n1", since).await?;
        ensure!(refused.state() == NodeState::Checking, "{refused:?}");
        cluster[1].kill()?;
        cluster[1].start(&["--rejoin"])?;
        cluster.wait_serves(1).await?;
        cluster.restart(2).await?;
        add(&cluster, 10).await?;
        cluster.expect_counter("x", acknowledged + 20).await?;
        cluster.verify().await?;
        old.is_refused(&cluster, 1).await?;

        // Their votes count: the first one may die. And the places of the old disks are gone.
        until("three voters and nobody else", async || {
            let members = cluster.status(cluster.wait_primary().await?).await?.members;
            ensure!(members.len() == 3 && members.iter().all(|member| member.voter), "{members:?}");
            Ok(())
        })
        .await?;
        cluster.kill(&[0])?;
        cluster.wait_primary_among(&[1, 2]).await?;
        add(&cluster, 5).await?;
        cluster.restart(0).await?;
        cluster.expect_counter("x", acknowledged + 25).await?;
        cluster.verify().await?;
        Ok(())
    });
}

#[test]
fn chain_without_its_configuration_group_goes_on_from_a_member() {
    scenario(async |s| {
        let mut cluster = s.chain(3, 2, "backups-first", &module("counter")).await?;
        let load = Load::start(&cluster, "x", 8).await?;
        load.advance(100).await?;
        let old = OldHistory::take(&cluster, 1).await?;
        let acknowledged = load.settle(&cluster).await?;
        // n1 and both witnesses, for ever. n2 and n3 have everything, and can decide nothing.
        cluster.kill(&[0, 3, 4])?;
        for index in [0, 3, 4] {
            fs::remove_dir_all(&cluster[index].data_dir)?;
        }
        wait_names_recover(&cluster, &[1, 2], "no majority of the 5 nodes").await?;
        cluster.kill(&[1])?;
        let since = cluster[2].log_bytes();
        let told = recovered(&cluster, 1, "n1,n3,w1,w2").await?;
        ensure!(told["account"]["chain"]["holds_this_disk"] == true, "{told}");
        cluster[1].start(&[])?;
        cluster.wait_primary_among(&[1]).await?;
        ensure!(cluster.counter_at(1, "x").await? == acknowledged, "an acknowledged write is lost");
        old.is_refused(&cluster, 1).await?;

        // n3 runs on in the old lineage: it hears that it was left behind.
        let left = wait_left_behind(&cluster, 2, "n2", since).await?;
        ensure!(left.state() != NodeState::Primary, "{left:?}");
        let loads = Load::several(&cluster, 1).await?;
        advance(&loads, 50).await?;
        cluster[2].kill()?;
        cluster[2].start(&["--rejoin"])?;
        for index in [0, 3, 4] {
            cluster[index].start(&[])?;
        }
        cluster.wait_all_serve().await?;
        advance(&loads, 50).await?;
        // The witnesses vote again: two replicas may die.
        until("all five vote", async || {
            let members = cluster.status(1).await?.members;
            ensure!(members.len() == 5 && members.iter().all(|member| member.voter), "{members:?}");
            Ok(())
        })
        .await?;
        cluster.kill(&[0, 1])?;
        advance(&loads, 50).await?;
        cluster.restart(0).await?;
        cluster.restart(1).await?;
        cluster.expect_counter("x", acknowledged).await?;
        replicator_tests::settle(&cluster, loads).await
    });
}

#[test]
fn chain_without_a_disk_of_its_last_epoch_goes_on_from_an_earlier_member() {
    scenario(async |s| {
        let mut cluster = s.chain(3, 2, "parallel", &module("counter")).await?;
        add(&cluster, 40).await?;
        cluster.expect_counter("x", 40).await?;
        cluster.kill(&[0])?;
        cluster.wait_primary_among(&[1, 2]).await?;
        // Only n2 and n3 have these.
        add(&cluster, 7).await?;
        cluster.kill(&[1, 2])?;
        for index in [1, 2] {
            fs::remove_dir_all(&cluster[index].data_dir)?;
        }
        cluster[0].start(&[])?;
        wait_names_recover(&cluster, &[0, 3, 4], "others hold less than was acknowledged").await?;
        recover(&cluster, 3, &["--yes"]).await?.exits(1)?.complains_of(&["in use"])?;
        // Its folder knows of the epoch that it missed once the witnesses' log has reached it, which only the folder shows.
        let mut lives = 0;
        let account = until("its folder knows that it was left out", async || {
            // From life to life it has longer to get and write that log; nothing but the folder of a dead node tells.
            tokio::time::sleep(Duration::from_millis(50 * lives)).await;
            lives += 1;
            cluster[0].kill()?;
            let account = recover(&cluster, 0, &[]).await?.exits(2)?;
            cluster[0].start(&[])?;
            cluster
                .wait_status(0, "hears of a coordinator", |status| {
                    status.chain.as_ref().is_some_and(|chain| !chain.coordinator_node_id.is_empty() && chain.epoch > 1)
                })
                .await?;
            ensure!(account.stdout.contains("this disk was not in epoch"), "{}", account.stdout);
            Ok(account)
        })
        .await?;
        cluster[0].kill()?;
        account.complains_of(&["doesn't name n2, n3, w1, w2"])?;
        let told = recovered(&cluster, 0, "n2,n3,w1,w2").await?;
        ensure!(told["account"]["chain"]["holds_this_disk"] == false, "{told}");
        let since = [cluster[3].log_bytes(), cluster[4].log_bytes()];
        cluster[0].start(&[])?;
        cluster.wait_primary_among(&[0]).await?;
        ensure!(cluster.counter_at(0, "x").await? == 40, "what its disk held isn't there, or more");
        add(&cluster, 2).await?;

        for (index, since) in [3, 4].into_iter().zip(since) {
            wait_left_behind(&cluster, index, "n1", since).await?;
            cluster[index].kill()?;
        }
        let folder = recover(&cluster, 3, &["--yes"]).await?.exits(1)?;
        folder.complains_of(&["w1", "witness"])?;
        for index in 1..5 {
            cluster[index].start(&["--rejoin"])?;
        }
        cluster.wait_all_serve().await?;
        cluster.expect_counter("x", 42).await?;
        cluster.verify().await?;
        Ok(())
    });
}

#[test]
fn recovered_folder_is_recovered_again() {
    scenario(async |s| {
        for chain in [false, true] {
            let mut cluster = match chain {
                true => s.chain(2, 1, "backups-first", &module("counter")).await?,
                false => s.cluster(3, &module("counter")).await?,
            };
            let others = if chain { "n2,w1" } else { "n2,n3" };
            add(&cluster, 5).await?;
            cluster.expect_counter("x", 5).await?;
            cluster.kill(&[0, 1, 2])?;
            let mut lineages = Vec::new();
            for round in 1..=3 {
                let told = recovered(&cluster, 0, others).await?;
                lineages.push(told["recovered"]["lineage"].to_string());
                // Once without a start between, so that the recoveries follow one another in the log.
                if round > 1 {
                    cluster[0].start(&[])?;
                    cluster.wait_primary_among(&[0]).await?;
                    add(&cluster, 1).await?;
                    ensure!(cluster.counter_at(0, "x").await? == 4 + round, "in round {round}");
                    cluster.kill(&[0])?;
                }
            }
            lineages.dedup();
            ensure!(lineages.len() == 3, "{lineages:?}");
        }
        Ok(())
    });
}

//! A voter is its disk: wiped, copied, swapped and doubled folders are let in anew, fenced or refused.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use replicator_client::{
    ErrorReason,
    proto::{NodeState, QueryRequest, StatusResponse},
};
use replicator_tests::{Cluster, Load, NodeProcess, Scenario, free_ports, module, reason, run, scenario, until};

/// A counter cluster that has done something.
async fn used_cluster(s: &Scenario) -> Result<Cluster> {
    let cluster = s.cluster(3, &module("counter")).await?;
    let load = Load::start(&cluster, "before", 8).await?;
    load.advance(100).await?;
    load.settle(&cluster).await?;
    Ok(cluster)
}

async fn use_more(cluster: &Cluster, name: &str) -> Result<()> {
    let load = Load::start(cluster, name, 8).await?;
    load.advance(50).await?;
    load.settle(cluster).await?;
    Ok(())
}

/// The disks of the voters, as the primary knows them, and whether there is anybody else.
async fn voters(cluster: &Cluster) -> Result<(Vec<u64>, bool)> {
    let primary = cluster.wait_primary().await?;
    let members = cluster.status(primary).await?.members;
    let learners = members.iter().any(|member| !member.voter);
    Ok((members.iter().filter(|member| member.voter).map(|member| member.disk_id).collect(), learners))
}

/// A node like `of`, with other ports and another folder.
fn twin(cluster: &Cluster, of: usize, dir: &Path) -> Result<NodeProcess> {
    fs::create_dir_all(dir)?;
    let ports = free_ports(2)?;
    let twin = NodeProcess::new(dir, &cluster[of].name, ports[0], ports[1]);
    twin.configure(cluster.others(of).into_iter().map(|index| &cluster[index]), "")?;
    Ok(twin)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let copied = Command::new("cp").arg("-a").args([from, to]).status().context("can't start cp")?;
    ensure!(copied.success(), "cp ended with {copied}");
    Ok(())
}

#[test]
fn wiped_node_joins_as_a_new_disk_in_place_of_the_old_one() {
    scenario(async |s| {
        let mut cluster = used_cluster(s).await?;
        for wiped in [cluster.wait_primary().await?, (cluster.wait_primary().await? + 1) % 3] {
            let old = cluster.status(wiped).await?.disk_id;
            cluster.kill(&[wiped])?;
            fs::remove_dir_all(&cluster[wiped].data_dir)?;
            cluster[wiped].start(&[])?;
            let session = cluster.client()?.open_session(None).await?;
            for _ in 0..50 {
                session.execute("add while-it-joins 1").await?;
            }
            let new = cluster.wait_serves(wiped).await?.disk_id;
            ensure!(new != old, "the wiped node came back as the same disk {old:016x}");
            let told = "tells of its peers' clocks, and that it has caught up";
            let by_the_log = |status: &StatusResponse| {
                status.restart.as_ref().is_some_and(|restart| {
                    let known = restart.peers.iter().any(|peer| peer.log_index > 0);
                    restart.caught_up && known && restart.own_log_index == 0 && restart.whole_state.is_none()
                })
            };
            cluster.wait_status(wiped, told, by_the_log).await?;
            until("the new disk is a voter and the old one is gone", async || {
                let (disks, learners) = voters(&cluster).await?;
                ensure!(disks.len() == 3 && disks.contains(&new) && !disks.contains(&old) && !learners, "{disks:x?}");
                Ok(())
            })
            .await?;
            use_more(&cluster, &format!("with{wiped}")).await?;
            cluster.verify().await?;
        }
        // The new voters count: with two of them, the third isn't needed.
        let primary = cluster.wait_primary().await?;
        cluster.kill(&[primary])?;
        cluster.wait_primary_among(&cluster.others(primary)).await?;
        cluster.restart(primary).await?;
        cluster.verify().await?;
        Ok(())
    });
}

#[test]
fn blank_twin_is_let_in_only_when_the_living_node_is_gone_which_then_is_refused() {
    scenario(async |s| {
        let mut cluster = used_cluster(s).await?;
        let primary = cluster.wait_primary().await?;
        let of = cluster.others(primary)[0];
        let (before, _) = voters(&cluster).await?;
        let mut twin = twin(&cluster, of, &s.dir().join("twin"))?;
        twin.start(&[])?;
        let client = cluster.client()?;
        until("the twin is told why it isn't let in", async || {
            let status = client.status(&twin.client_address, false).await?;
            ensure!(status.state() == NodeState::Blank, "{status:?}");
            ensure!(status.detail.contains("has just answered; stop that process"), "{}", status.detail);
            Ok(())
        })
        .await?;
        use_more(&cluster, "meanwhile").await?;
        ensure!(voters(&cluster).await? == (before.clone(), false), "the twin got in");

        cluster.kill(&[of])?;
        let joined = until("the twin takes the place", async || {
            let status = client.status(&twin.client_address, false).await?;
            ensure!(status.state() == NodeState::Follower, "{:?} {}", status.state(), status.detail);
            Ok(status)
        })
        .await?;
        ensure!(!before.contains(&joined.disk_id), "{:016x} was there before", joined.disk_id);
        let since = cluster[of].log_bytes();
        cluster[of].start(&[])?;
        cluster[of].exits(1, since, &["no longer a member", "--rejoin"]).await?;
        Ok(())
    });
}

#[test]
fn old_copy_of_a_folder_is_refused_and_rejoin_sets_it_aside() {
    scenario(async |s| {
        let mut cluster = used_cluster(s).await?;
        let node = (cluster.wait_primary().await? + 1) % 3;
        let folder = cluster[node].data_dir.clone();
        let saved = s.dir().join("saved");
        cluster[node].shut_down().await?;
        copy(&folder, &saved)?;
        cluster.restart(node).await?;
        let disk = cluster.status(node).await?.disk_id;
        use_more(&cluster, "after-the-copy").await?;
        cluster[node].shut_down().await?;
        fs::remove_dir_all(&folder)?;
        copy(&saved, &folder)?;

        let since = cluster[node].log_bytes();
        cluster[node].start(&[])?;
        cluster[node].exits(3, since, &["old copy", &folder.display().to_string(), "--rejoin"]).await?;
        cluster.client()?.open_session(None).await?.execute("add meanwhile 1").await?;
        cluster.verify_some(2).await?;
        // It doesn't change its mind at the next start either.
        let since = cluster[node].log_bytes();
        cluster[node].start(&[])?;
        cluster[node].exits(3, since, &["old copy"]).await?;

        cluster[node].start(&["--rejoin"])?;
        let status = cluster.wait_serves(node).await?;
        ensure!(status.disk_id != disk, "it rejoined as the same disk");
        let aside = folder.join("set-aside-1");
        ensure!(aside.join("meta").is_file() && aside.join("log").is_dir(), "{} is not whole", aside.display());
        use_more(&cluster, "after-the-rejoin").await?;
        cluster.verify().await?;
        Ok(())
    });
}

#[test]
fn two_processes_cannot_share_a_folder() {
    scenario(async |s| {
        let cluster = s.cluster(1, &module("counter")).await?;
        let mut second = twin(&cluster, 0, &s.dir().join("second"))?;
        let config = fs::read_to_string(&second.config)?;
        let folder = cluster[0].data_dir.display().to_string();
        fs::write(&second.config, config.replace(&second.data_dir.display().to_string(), &folder))?;
        second.start(&[])?;
        let pid = cluster[0].pid().context("no pid")?.to_string();
        second.exits(1, 0, &[&folder, &pid, "can't share a folder"]).await?;
        cluster.counter_at(0, "x").await?;
        Ok(())
    });
}

#[test]
fn folder_of_another_node_is_refused() {
    scenario(async |s| {
        let mut cluster = s.cluster(1, &module("counter")).await?;
        cluster[0].shut_down().await?;
        let since = cluster[0].log_bytes();
        cluster[0].start(&["--name", "n9"])?;
        cluster[0].exits(1, since, &["\"n1\"", "\"n9\"", "belongs to the node"]).await?;
        cluster.restart(0).await?;
        Ok(())
    });
}

#[test]
fn init_of_a_cluster_that_is_there_is_refused() {
    scenario(async |s| {
        let cluster = used_cluster(s).await?;
        let before = cluster.status(0).await?;
        cluster.try_init(&module("echo"), &[]).await?.exits(1)?.complains_of(&["belongs to cluster", "already"])?;
        // Nor does it take a node away from its cluster for another one.
        let blank = s.blank(3).await?;
        let three = [&blank[0], &blank[1], &cluster[2]].map(|node| node.client_address.as_str());
        let endpoints = three.join(",");
        let module = module("echo").display().to_string();
        let init = ["init", "--endpoints", &endpoints, "--module", &module];
        let refused = run(&replicator_tests::replicator(), init, &[]).await?;
        refused.exits(1)?.complains_of(&["n3", "belongs to cluster"])?;
        let after = cluster.status(0).await?;
        ensure!((after.cluster_id, after.module_sha256) == (before.cluster_id, before.module_sha256), "it changed");
        cluster.verify().await?;
        Ok(())
    });
}

#[test]
fn node_led_to_the_peers_of_another_cluster_takes_no_part_and_says_why() {
    scenario(async |s| {
        let mut ours = s.cluster(3, &module("counter")).await?;
        let theirs = s.cluster(3, &module("counter")).await?;
        ours.kill(&[0, 1, 2])?;
        let before = voters(&theirs).await?;
        // n3 of ours, with n1 and n2 of theirs as its peers.
        ours[2].configure([&theirs[0], &theirs[1]].into_iter(), "")?;
        ours[2].start(&[])?;
        let status =
            ours.wait_status(2, "hears the refusal", |status| status.detail.contains("belongs to cluster")).await?;
        ensure!(status.state() == NodeState::Checking, "{status:?}");
        let refused = ours.node(2).await?.query(QueryRequest::default()).await.expect_err("it answered a query");
        ensure!(reason(&refused) == Some(ErrorReason::NotReady), "{refused:?}");
        ensure!(voters(&theirs).await? == before, "it got into the other cluster");
        theirs.verify().await?;
        // With its own peers again, all is well.
        ours[2].shut_down().await?;
        ours[2].configure([&ours[0], &ours[1]].into_iter(), "")?;
        ours.start_all().await?;
        ours.wait_all_serve().await?;
        ours.verify().await?;
        Ok(())
    });
}

#[test]
fn blank_node_without_peers_waits_and_serves_nobody() {
    scenario(async |s| {
        let mut cluster = s.prepare(3).await?;
        cluster[0].start(&[])?;
        let status = cluster.wait_answers(0).await?;
        ensure!(status.state() == NodeState::Blank && status.cluster_id.is_empty(), "{status:?}");
        until("it says what it waits for", async || {
            let detail = cluster.status(0).await?.detail;
            ensure!(detail.contains("replicator init"), "{detail}");
            Ok(())
        })
        .await?;
        let refused = cluster.node(0).await?.query(QueryRequest::default()).await.expect_err("it answered a query");
        ensure!(reason(&refused) == Some(ErrorReason::NotReady), "{refused:?}");
        // Without the others there is no cluster either; with them there is.
        cluster.try_init(&module("counter"), &[]).await?.exits(1)?.complains_of(&["doesn't answer"])?;
        cluster[1].start(&[])?;
        cluster[2].start(&[])?;
        cluster.wait_answers(1).await?;
        cluster.wait_answers(2).await?;
        cluster.init(&module("counter"), &[]).await?;
        cluster.verify().await?;
        Ok(())
    });
}

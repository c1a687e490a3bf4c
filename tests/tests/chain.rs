//! Chain mode, with real processes: members die, stand still, are wiped and come back under load, and nothing acknowledged is lost, nothing is
//! done twice, nothing stale is read.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use replicator_client::{
    ErrorReason,
    proto::{Chain, Consistency, NodeState, QueryRequest},
};
use replicator_tests::{
    Cluster, Load, Requests as _, advance, module, reason, replicator, request, run, scenario, settle, until, within,
};
use tonic::Code;

const ORDERS: [&str; 2] = ["backups-first", "parallel"];

/// The newest chain that any node knows, as names from primary to tail.
async fn chain(cluster: &Cluster) -> Result<(u64, Vec<String>)> {
    let mut newest = Chain::default();
    for index in 0..cluster.len() {
        if let Ok(status) = cluster.status(index).await
            && let Some(chain) = status.chain
            && chain.epoch >= newest.epoch
        {
            newest = chain;
        }
    }
    Ok((newest.epoch, newest.members.into_iter().map(|member| member.node_id).collect()))
}

/// Waits until the chain has so many members, which all take part.
async fn whole(cluster: &Cluster, length: usize) -> Result<Vec<String>> {
    until(&format!("a chain of {length}"), async || {
        let (epoch, names) = chain(cluster).await?;
        ensure!(names.len() == length, "epoch {epoch}: {names:?}");
        for name in &names {
            let index = index_of(cluster, name)?;
            let status = cluster.status(index).await?;
            let takes_part = matches!(status.state(), NodeState::Primary | NodeState::Follower);
            ensure!(takes_part && status.epoch == epoch, "{name} is {:?} in epoch {}", status.state(), status.epoch);
        }
        Ok(names)
    })
    .await
}

fn index_of(cluster: &Cluster, name: &str) -> Result<usize> {
    (0..cluster.len()).find(|index| cluster[*index].name == name).with_context(|| format!("no node {name}"))
}

fn query(request: impl Into<bytes::Bytes>) -> QueryRequest {
    QueryRequest { request: request.into(), consistency: Consistency::Linearizable.into(), ..QueryRequest::default() }
}

#[test]
fn chain_begins_with_the_lowest_port_and_shows_itself() {
    scenario(async |s| {
        let cluster = s.chain(3, 2, "backups-first", &module("counter")).await?;
        ensure!(whole(&cluster, 3).await? == ["n1", "n2", "n3"], "{:?}", chain(&cluster).await?);
        let told = cluster.replicator(&["status"]).await?.exits(0)?.stdout;
        ensure!(told.contains("client → n1(primary) → n2 → n3(tail)  epoch 1"), "{told}");
        ensure!(told.contains("n1 → n2: sent") && told.contains("witness"), "{told}");
        Ok(())
    });
}

#[test]
fn head_middle_and_tail_killed_in_turn_lose_and_double_nothing() {
    scenario(async |s| {
        for order in ORDERS {
            let mut cluster = s.chain(3, 2, order, &module("counter")).await?;
            let loads = Load::several(&cluster, 2).await?;
            for place in 0..3 {
                advance(&loads, 50).await?;
                let names = whole(&cluster, 3).await?;
                let victim = index_of(&cluster, &names[place])?;
                cluster.kill(&[victim])?;
                advance(&loads, 50).await?;
                whole(&cluster, 2).await?;
                cluster.restart(victim).await?;
                whole(&cluster, 3).await?;
            }
            settle(&cluster, loads).await?;
        }
        Ok(())
    });
}

#[test]
fn two_killed_at_once_leave_a_chain_of_one_that_goes_on() {
    scenario(async |s| {
        let mut cluster = s.chain(3, 2, "backups-first", &module("counter")).await?;
        let loads = Load::several(&cluster, 1).await?;
        advance(&loads, 50).await?;
        cluster.kill(&[0, 1])?;
        ensure!(whole(&cluster, 1).await? == ["n3"], "{:?}", chain(&cluster).await?);
        advance(&loads, 50).await?;
        cluster.restart(0).await?;
        cluster.restart(1).await?;
        whole(&cluster, 3).await?;
        advance(&loads, 50).await?;
        settle(&cluster, loads).await
    });
}

#[test]
fn all_killed_at_once_keep_every_acknowledged_write() {
    scenario(async |s| {
        for order in ORDERS {
            let mut cluster = s.chain(3, 2, order, &module("counter")).await?;
            let loads = Load::several(&cluster, 2).await?;
            for _ in 0..2 {
                advance(&loads, 100).await?;
                cluster.kill(&[0, 1, 2, 3, 4])?;
                for index in 0..5 {
                    cluster[index].start(&[])?;
                }
                cluster.wait_all_serve().await?;
            }
            advance(&loads, 50).await?;
            settle(&cluster, loads).await?;
        }
        Ok(())
    });
}

#[test]
fn wiped_member_returns_as_a_new_disk_and_becomes_tail() {
    scenario(async |s| {
        let mut cluster = s.chain(3, 2, "backups-first", &module("counter")).await?;
        let loads = Load::several(&cluster, 1).await?;
        advance(&loads, 50).await?;
        let disk = cluster.status(0).await?.disk_id;
        cluster.kill(&[0])?;
        advance(&loads, 50).await?;
        fs::remove_dir_all(&cluster[0].data_dir)?;
        cluster.restart(0).await?;
        ensure!(whole(&cluster, 3).await?.last().is_some_and(|tail| tail == "n1"), "{:?}", chain(&cluster).await?);
        ensure!(cluster.status(0).await?.disk_id != disk, "an empty folder has the old disk's identity");
        advance(&loads, 50).await?;
        settle(&cluster, loads).await
    });
}

#[test]
fn witness_asked_first_to_found_leaves_that_to_a_replica_and_folders_keep_their_kind() {
    scenario(async |s| {
        let mut cluster = s.prepare_with(2, 1, "mode = \"chain\"\n").await?;
        cluster.start_all().await?;
        let turned: Vec<&str> = [2, 0, 1].map(|node| cluster[node].client_address.as_str()).to_vec();
        let module = module("counter").display().to_string();
        run(&replicator(), &["init", "--endpoints", &turned.join(","), "--module", &module], &[]).await?.exits(0)?;
        cluster.wait_all_serve().await?;
        cluster.kill(&[1])?;
        cluster[1].witness = true;
        let since = cluster[1].log_bytes();
        cluster[1].start(&[])?;
        cluster[1].exits(1, since, &["mode chain", "chain (witness)"]).await?;
        Ok(())
    });
}

#[test]
fn without_witnesses_two_deaths_of_three_stop_writes_and_say_why() {
    scenario(async |s| {
        let mut cluster = s.chain(3, 0, "backups-first", &module("counter")).await?;
        let mut survivor = cluster.node(2).await?;
        let session = survivor.session(0).await?;
        survivor.execute(request(&session, 1, "add x 1")).await?;
        cluster.kill(&[0, 1])?;
        let told = cluster
            .wait_status(2, "says what it waits for", |status| {
                status.detail.contains("no majority")
                    && status.detail.contains("n1, n2 away")
                    && status.detail.contains("witness")
            })
            .await?;
        ensure!(told.state() != NodeState::Primary, "{told:?}");
        let refused = survivor.execute(within(Duration::from_secs(2), request(&session, 2, "add x 1"))).await;
        let refused = refused.err().context("it was acknowledged by one of three")?;
        ensure!(matches!(refused.code(), Code::Unavailable | Code::DeadlineExceeded), "{refused:?}");
        let stale = survivor.query(within(Duration::from_secs(2), query("get x"))).await;
        ensure!(stale.is_err(), "{stale:?}");
        for index in [0, 1] {
            cluster.restart(index).await?;
        }
        whole(&cluster, 3).await?;
        until("the write is acknowledged", async || Ok(survivor.execute(request(&session, 2, "add x 1")).await?))
            .await?;
        cluster.expect_counter("x", 2).await?;
        Ok(())
    });
}

#[test]
fn stopped_primary_reads_nothing_stale_when_it_goes_on_and_doubles_no_write() {
    scenario(async |s| {
        let mut cluster = s.chain(3, 2, "parallel", &module("counter")).await?;
        let mut old = cluster.node(0).await?;
        let session = old.session(0).await?;
        old.execute(request(&session, 1, "add x 1")).await?;
        cluster[0].pause()?;
        let next = cluster.wait_primary_among(&[1, 2]).await?;
        let mut new = cluster.node(next).await?;
        let held_write = tokio::spawn({
            let (mut old, message) = (old.clone(), request(&session, 2, "add x 10"));
            async move { old.execute(within(Duration::from_secs(20), message)).await }
        });
        let answered = until("another node executes the same write", async || {
            Ok(new.execute(request(&session, 2, "add x 10")).await?.into_inner())
        })
        .await?;
        ensure!(answered.response == "11", "{answered:?}");
        new.execute(request(&session, 3, "add x 100")).await?;
        let held_reads: Vec<_> = (0..10)
            .map(|_| {
                let mut old = old.clone();
                tokio::spawn(async move { old.query(within(Duration::from_secs(20), query("get x"))).await })
            })
            .collect();
        cluster[0].resume()?;
        let late = held_write.await?.map(|answer| answer.into_inner().response);
        ensure!(late.as_ref().map_or(true, |late| late == "11"), "the held write came to {late:?}");
        for read in held_reads {
            if let Ok(answer) = read.await? {
                ensure!(answer.get_ref().response == "111", "a stale read: {answer:?}");
            }
        }
        whole(&cluster, 3).await?;
        cluster.expect_counter("x", 111).await?;
        cluster.verify().await?;
        Ok(())
    });
}

#[test]
fn transfer_under_load_fails_no_request() {
    scenario(async |s| {
        let cluster = s.chain(3, 2, "backups-first", &module("counter")).await?;
        let loads = Load::several(&cluster, 2).await?;
        for target in ["n2", "n3", "n1"] {
            advance(&loads, 50).await?;
            cluster.replicator(&["member", "transfer", target]).await?.exits(0)?;
            ensure!(whole(&cluster, 3).await?[0] == target, "{:?}", chain(&cluster).await?);
        }
        // Two operators at once: one after the other.
        let (one, other) = tokio::join!(
            cluster.replicator(&["member", "transfer", "n2"]),
            cluster.replicator(&["member", "transfer", "n3"])
        );
        one?.exits(0)?;
        other?.exits(0)?;
        advance(&loads, 50).await?;
        settle(&cluster, loads).await
    });
}

#[test]
fn removal_under_load_fails_no_request_and_lasts() {
    scenario(async |s| {
        let mut cluster = s.chain(3, 2, "backups-first", &module("counter")).await?;
        let loads = Load::several(&cluster, 1).await?;
        advance(&loads, 50).await?;
        // The primary of all: the others must go on without it at once.
        cluster.replicator(&["member", "remove", "n1"]).await?.exits(0)?;
        ensure!(whole(&cluster, 2).await? == ["n2", "n3"], "{:?}", chain(&cluster).await?);
        until("n1 is no member", async || {
            let members = cluster.status(1).await?.members;
            ensure!(members.iter().all(|member| member.node_id != "n1"), "{members:?}");
            Ok(())
        })
        .await?;
        cluster[0].kill()?;
        advance(&loads, 50).await?;
        cluster.kill(&[1])?;
        ensure!(whole(&cluster, 1).await? == ["n3"], "{:?}", chain(&cluster).await?);
        advance(&loads, 50).await?;
        cluster.restart(1).await?;
        whole(&cluster, 2).await?;
        for load in loads {
            load.stop().await?;
        }
        cluster.verify_some(2).await?;
        let refused = cluster.replicator(&["member", "remove", "n9"]).await?.exits(1)?;
        refused.complains_of(&["n9", "n2, n3"])?;
        // The removed one comes back, and is the first to be asked: that changes nothing, and it is told of.
        cluster[0].start(&[])?;
        cluster.wait_answers(0).await?;
        until("n1 is told of as removed", async || {
            let shown = cluster.replicator(&["status"]).await?;
            ensure!(shown.stdout.contains("n1 is no member any more"), "{}", shown.stdout);
            Ok(())
        })
        .await?;
        cluster.replicator(&["member", "remove", "n3"]).await?.exits(0)?;
        ensure!(whole(&cluster, 1).await? == ["n2"], "{:?}", chain(&cluster).await?);
        let alone = cluster.replicator(&["member", "remove", "n2"]).await?.exits(1)?;
        alone.complains_of(&["without n2", "add a replica"])?;
        Ok(())
    });
}

#[test]
fn demo_tells_the_story_of_a_chain_and_accounts_for_every_message() {
    scenario(async |s| {
        s.turn().await?;
        let told = run(&replicator(), ["demo", "--mode", "chain", "--script"], &[]).await?.exits(0)?.stdout;
        for words in [
            "client → n1(primary) → n2 → n3(tail)  epoch 1",
            "(primary, alone)",
            "the freshest log won",
            "lost=0 doubled=0",
        ] {
            ensure!(told.contains(words), "no {words:?} in {told}");
        }
        Ok(())
    });
}

#[test]
fn votes_and_all_reads_are_answered_by_every_replica() {
    scenario(async |s| {
        let cluster = s.chain(3, 2, "parallel", &module("counter")).await?;
        let told = cluster.replicator(&["call", "--vote", "add x 1"]).await?.exits(0)?;
        ensure!(told.stderr.contains("AGREED 3/3"), "{told:?}");
        let written = cluster.client()?.open_session(None).await?.execute("add x 1").await?;
        for index in cluster.replicas() {
            let mut node = cluster.node(index).await?;
            for consistency in [Consistency::Linearizable, Consistency::Session] {
                let read = QueryRequest {
                    consistency: consistency.into(),
                    min_log_index: written.log_index.0,
                    ..query("get x")
                };
                let answer = node.query(within(Duration::from_secs(10), read)).await?.into_inner();
                ensure!(answer.response == "2" && answer.node_id == cluster[index].name, "{consistency:?}: {answer:?}");
            }
            until("the replica has applied it", async || {
                let local = QueryRequest { consistency: Consistency::Local.into(), ..query("get x") };
                let answer = node.query(local).await?.into_inner();
                ensure!(answer.response == "2", "{answer:?}");
                Ok(())
            })
            .await?;
        }
        Ok(())
    });
}

#[test]
fn witness_tells_its_part_and_sends_clients_on() {
    scenario(async |s| {
        let cluster = s.chain(3, 2, "backups-first", &module("counter")).await?;
        let witness = cluster.status(3).await?;
        ensure!(witness.state() == NodeState::Witness && witness.witness, "{witness:?}");
        ensure!(witness.primary_node_id == "n1", "{witness:?}");
        let refused = cluster.node(3).await?.session(0).await.err().context("a witness has opened a session")?;
        ensure!(reason(&refused) == Some(ErrorReason::NotReady), "{refused:?}");
        ensure!(refused.message().contains("witness") && refused.message().contains("replica"), "{refused:?}");
        Ok(())
    });
}

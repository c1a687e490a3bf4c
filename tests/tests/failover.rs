//! Nodes die, stand still and come back under load: nothing acknowledged is lost, nothing is done twice, nothing stale is read.

use std::time::Duration;

use anyhow::ensure;
use replicator_client::{
    ErrorReason,
    proto::{Consistency, ExecuteResponse, QueryRequest},
};
use replicator_tests::{Load, Requests as _, advance, module, reason, request, scenario, settle, until, within};
use tonic::Code;

fn query(request: impl Into<bytes::Bytes>, consistency: Consistency) -> QueryRequest {
    QueryRequest { request: request.into(), consistency: consistency.into(), ..QueryRequest::default() }
}

#[test]
fn primary_killed_under_load_loses_and_doubles_nothing() {
    scenario(async |s| {
        let mut cluster = s.cluster(3, &module("counter")).await?;
        let loads = Load::several(&cluster, 2).await?;
        for _ in 0..2 {
            advance(&loads, 100).await?;
            let primary = cluster.wait_primary().await?;
            cluster.kill(&[primary])?;
            let next = cluster.wait_primary_among(&cluster.others(primary)).await?;
            ensure!(next != primary, "the dead primary leads on");
            advance(&loads, 100).await?;
            cluster.restart(primary).await?;
        }
        advance(&loads, 50).await?;
        settle(&cluster, loads).await
    });
}

#[test]
fn follower_killed_under_load_is_not_noticed_and_catches_up() {
    scenario(async |s| {
        let mut cluster = s.cluster(3, &module("counter")).await?;
        let loads = Load::several(&cluster, 1).await?;
        advance(&loads, 50).await?;
        let primary = cluster.wait_primary().await?;
        let epoch = cluster.status(primary).await?.epoch;
        let follower = cluster.others(primary)[0];
        cluster.kill(&[follower])?;
        advance(&loads, 200).await?;
        cluster.restart(follower).await?;
        advance(&loads, 50).await?;
        let after = cluster.status(primary).await?;
        ensure!(after.epoch == epoch, "the term went from {epoch} to {} for a follower's sake", after.epoch);
        settle(&cluster, loads).await
    });
}

#[test]
fn five_nodes_survive_two_killed_at_once() {
    scenario(async |s| {
        let mut cluster = s.cluster(5, &module("counter")).await?;
        let loads = Load::several(&cluster, 1).await?;
        advance(&loads, 100).await?;
        let primary = cluster.wait_primary().await?;
        let killed = [primary, (primary + 1) % 5];
        cluster.kill(&killed)?;
        let left: Vec<usize> = (0..5).filter(|index| !killed.contains(index)).collect();
        cluster.wait_primary_among(&left).await?;
        advance(&loads, 100).await?;
        for index in killed {
            cluster.restart(index).await?;
        }
        advance(&loads, 50).await?;
        settle(&cluster, loads).await
    });
}

#[test]
fn primary_stopped_and_continued_reads_nothing_stale_and_doubles_no_write() {
    scenario(async |s| {
        let mut cluster = s.cluster(3, &module("counter")).await?;
        let primary = cluster.wait_primary().await?;
        let others = cluster.others(primary);
        let mut old = cluster.node(primary).await?;
        let session = old.session(0).await?;
        old.execute(request(&session, 1, "add x 1")).await?;

        cluster[primary].pause()?;
        let next = cluster.wait_primary_among(&others).await?;
        let mut new = cluster.node(next).await?;
        // A write and reads reach the old primary while it stands still; it finds them when it goes on.
        let held_write = tokio::spawn({
            let (mut old, message) = (old.clone(), request(&session, 2, "add x 10"));
            async move { old.execute(within(Duration::from_secs(20), message)).await }
        });
        let answered = until("another node executes the same write", async || {
            Ok(new.execute(request(&session, 2, "add x 10")).await?.into_inner())
        })
        .await?;
        ensure!(answered.response == "11", "{answered:?}");
        let third = new.execute(request(&session, 3, "add x 100")).await?.into_inner();
        ensure!(third.response == "111", "{third:?}");
        let held_reads: Vec<_> = (0..10)
            .map(|_| {
                let mut old = old.clone();
                let read = within(Duration::from_secs(20), query("get x", Consistency::Linearizable));
                tokio::spawn(async move { old.query(read).await })
            })
            .collect();
        // By the time that this is answered, those are on their way.
        let read = new.query(query("get x", Consistency::Linearizable)).await?.into_inner();
        ensure!(read.response == "111", "{read:?}");
        cluster[primary].resume()?;
        let mut fresh_reads = 0;
        until("the old primary serves again", async || {
            let read = within(Duration::from_secs(1), query("get x", Consistency::Linearizable));
            let answer = old.query(read).await?.into_inner();
            assert_eq!(answer.response, "111", "a stale linearizable read at {}", answer.log_index);
            fresh_reads += 1;
            ensure!(fresh_reads >= 20, "{fresh_reads} reads were good");
            Ok(())
        })
        .await?;
        for read in held_reads {
            match read.await? {
                Ok(answer) => ensure!(answer.get_ref().response == "111", "a stale held read: {answer:?}"),
                Err(status) => ensure!(status.code() == Code::Unavailable, "{status:?}"),
            }
        }
        match held_write.await? {
            Ok(held) => {
                let ExecuteResponse { response, log_index, state_digest, .. } = held.into_inner();
                let same = (response, log_index, state_digest)
                    == (answered.response.clone(), answered.log_index, answered.state_digest);
                ensure!(
                    same,
                    "the repeat was answered otherwise, at {log_index} with {state_digest}, not {answered:?}"
                );
            }
            Err(status) => ensure!(status.code() == Code::Unavailable, "{status:?}"),
        }
        cluster.expect_counter("x", 111).await?;
        cluster.verify().await?;
        Ok(())
    });
}

#[test]
fn primary_stopped_under_load_loses_and_doubles_nothing() {
    scenario(async |s| {
        let mut cluster = s.cluster(3, &module("counter")).await?;
        let loads = Load::several(&cluster, 1).await?;
        for _ in 0..2 {
            advance(&loads, 50).await?;
            let primary = cluster.wait_primary().await?;
            cluster[primary].pause()?;
            cluster.wait_primary_among(&cluster.others(primary)).await?;
            advance(&loads, 100).await?;
            cluster[primary].resume()?;
            advance(&loads, 50).await?;
            cluster.wait_serves(primary).await?;
        }
        settle(&cluster, loads).await
    });
}

#[test]
fn without_a_majority_writes_and_reads_fail_typed_and_all_goes_on_afterwards() {
    scenario(async |s| {
        let mut cluster = s.cluster(3, &module("counter")).await?;
        let primary = cluster.wait_primary().await?;
        // Once with the primary left, once with a follower.
        for left in [primary, (primary + 1) % 3] {
            let mut node = cluster.node(left).await?;
            let session = node.session(0).await?;
            let value = node.execute(request(&session, 1, "add x 1")).await?.into_inner().response;
            let killed = cluster.others(left);
            cluster.kill(&killed)?;

            let write = node.execute(within(Duration::from_secs(2), request(&session, 2, "add x 1"))).await;
            let status = write.expect_err("a write without a majority was acknowledged");
            ensure!(status.code() == Code::Unavailable, "{status:?}");
            let unknown_or_nothing = [Some(ErrorReason::OutcomeUnknown), Some(ErrorReason::NotReady)];
            ensure!(unknown_or_nothing.contains(&reason(&status)), "{status:?}");
            let read = within(Duration::from_secs(2), query("get x", Consistency::Linearizable));
            let status = node.query(read).await.expect_err("a linearizable read without a majority was answered");
            ensure!((status.code(), reason(&status)) == (Code::Unavailable, Some(ErrorReason::NotReady)), "{status:?}");
            let local = node.query(query("get x", Consistency::Local)).await?.into_inner();
            ensure!(local.response == value, "LOCAL: {local:?}, and {value:?} was acknowledged");

            for index in killed {
                cluster[index].start(&[])?;
            }
            cluster.wait_all_serve().await?;
            // Under its number, the write of the unknown outcome happens once.
            let again = until("the write is repeated", async || {
                Ok(node.execute(request(&session, 2, "add x 1")).await?.into_inner())
            })
            .await?;
            ensure!(again.response != value, "{again:?}");
            let third = node.execute(request(&session, 3, "get x")).await?.into_inner();
            ensure!(third.response == again.response, "{third:?} after {again:?}");
        }
        cluster.expect_counter("x", 4).await?;
        cluster.verify().await?;
        Ok(())
    });
}

#[test]
fn whole_cluster_killed_at_once_keeps_every_acknowledged_write() {
    scenario(async |s| {
        let mut cluster = s.cluster(3, &module("counter")).await?;
        let loads = Load::several(&cluster, 2).await?;
        for _ in 0..2 {
            advance(&loads, 150).await?;
            cluster.kill(&[0, 1, 2])?;
            let acknowledged: Vec<u64> = loads.iter().map(Load::acknowledged).collect();
            cluster.start_all().await?;
            cluster.wait_all_serve().await?;
            for (number, load) in loads.iter().enumerate() {
                let name = if number == 0 { "unary".to_owned() } else { format!("pipelined{}", number - 1) };
                let found = cluster.counter_at(number, &name).await?;
                ensure!(found >= acknowledged[number], "{name}: {} acknowledged, {found} found", acknowledged[number]);
                load.advance(10).await?;
            }
        }
        settle(&cluster, loads).await
    });
}

#[test]
fn restarts_one_after_the_other_under_load_fail_no_request() {
    scenario(async |s| {
        let mut cluster = s.cluster(3, &module("counter")).await?;
        let loads = Load::several(&cluster, 1).await?;
        for index in 0..3 {
            advance(&loads, 50).await?;
            cluster[index].shut_down().await?;
            advance(&loads, 50).await?;
            cluster.restart(index).await?;
        }
        settle(&cluster, loads).await
    });
}

#[test]
fn transfer_under_load_fails_no_request() {
    scenario(async |s| {
        let cluster = s.cluster(3, &module("counter")).await?;
        let loads = Load::several(&cluster, 2).await?;
        for _ in 0..3 {
            advance(&loads, 50).await?;
            let primary = cluster.wait_primary().await?;
            let next = (primary + 1) % 3;
            let name = cluster[next].name.clone();
            let moved = cluster.replicator(&["member", "transfer", &name]).await?.exits(0)?;
            ensure!(moved.stdout.contains(&name), "{}", moved.stdout);
            let leads = cluster.wait_primary().await?;
            ensure!(leads == next, "{} leads after a transfer to {name}", cluster[leads].name);
        }
        advance(&loads, 50).await?;
        settle(&cluster, loads).await?;
        let same = cluster.replicator(&["member", "transfer", &cluster[cluster.wait_primary().await?].name]).await?;
        ensure!(same.exits(0)?.stdout.contains("already"), "a transfer to the primary itself");
        cluster.replicator(&["member", "transfer", "n9"]).await?.exits(1)?.complains_of(&["n9", "n1, n2, n3"])?;
        Ok(())
    });
}

/// A connection that fails without asking for a request was tried again at once, 50,000 times a second, each with a line of openraft's.
#[test]
fn a_dead_follower_is_tried_again_at_a_bounded_rate() {
    scenario(async |s| {
        let mut cluster = s.cluster(3, &module("counter")).await?;
        cluster.kill(&[0, 1, 2])?;
        for index in 0..3 {
            cluster[index].start(&["--log", "info,openraft=warn"])?;
        }
        cluster.wait_all_serve().await?;
        let primary = cluster.wait_primary().await?;
        let victim = cluster.others(primary)[0];
        cluster.kill(&[victim])?;
        let before = cluster[primary].log_bytes();
        let load = Load::start(&cluster, "x", 1).await?;
        load.advance(500).await?;
        let lines = cluster[primary].told(before)?.lines().count();
        // Twenty heartbeats a second fail too.
        ensure!((1..2_000).contains(&lines), "{} wrote {lines} lines while a follower was dead", cluster[primary].name);
        cluster.restart(victim).await?;
        settle(&cluster, vec![load]).await
    });
}

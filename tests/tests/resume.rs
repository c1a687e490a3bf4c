//! Subscriptions across images, in both modes (safety rule 23): what was pushed is part of the state, so a subscriber resumes at any replica after its
//! cursor, without a gap or a repeat, though the log of that time is gone and the replica had nothing but a peer's image; or is told that its place
//! is no longer kept, by the same rule at each.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use replicator_client::{
    Error, ErrorReason as Reason,
    proto::{Cursor, SubscribeRequest, SubscribeResponse, subscribe_response::Item},
};
use replicator_tests::{Cluster, Scenario, Writes, module, reason, scenario, until};
use tonic::{Code, Status, Streaming};

const MODES: [&str; 2] = ["majority", "chain"];

/// Three replicas whose images follow some hundred requests after one another, with these settings of images too.
async fn cluster(s: &Scenario, mode: &str, images: &str, flags: &[&str]) -> Result<Cluster> {
    let witnesses = if mode == "chain" { 2 } else { 0 };
    let settings = format!("mode = \"{mode}\"\n[images]\nlog_bytes = 65536\n{images}");
    let mut cluster = s.prepare_with(3, witnesses, &settings).await?;
    cluster.start_all().await?;
    cluster.init(&module("counter"), flags).await?;
    Ok(cluster)
}

type Events = Streaming<SubscribeResponse>;

async fn subscribe(cluster: &Cluster, replica: usize, after: Option<Cursor>) -> Result<Result<Events, Status>> {
    let request = SubscribeRequest { topics: vec!["counters".into()], after, ..SubscribeRequest::default() };
    Ok(cluster.node(replica).await?.subscribe(request).await.map(tonic::Response::into_inner))
}

/// The next push: its place, and the number in it.
async fn next_push(events: &mut Events) -> Result<(Cursor, usize)> {
    loop {
        let message = tokio::time::timeout(Duration::from_secs(20), events.message()).await.context("no event")?;
        match message?.context("the events ended")?.item.context("an empty message")? {
            Item::Progress(_) => {}
            Item::Push(push) => {
                let text = String::from_utf8_lossy(&push.payload).into_owned();
                let number = text.strip_prefix("written ").and_then(|number| number.parse().ok());
                return Ok((
                    push.cursor.context("no cursor")?,
                    number.with_context(|| format!("{text:?} was pushed"))?,
                ));
            }
            Item::Ephemeral(push) => bail!("no query pushes: {push:?}"),
        }
    }
}

/// Checks that after write `from` come exactly the ones after it, `written` being the log index of each.
async fn check_resumes(cluster: &Cluster, replica: usize, lineage: u64, written: &[u64], from: usize) -> Result<()> {
    let after = Cursor { lineage, log_index: written[from - 1], ordinal: 0 };
    let mut events = subscribe(cluster, replica, Some(after)).await??;
    for (place, log_index) in written.iter().enumerate().skip(from) {
        let (at, number) = next_push(&mut events).await?;
        let right = at == Cursor { lineage, log_index: *log_index, ordinal: 0 } && number == place + 1;
        ensure!(right, "replica {replica}, after {from}: {number} at {at:?}, not {} at {log_index}", place + 1);
    }
    Ok(())
}

/// Waits until the log up to `index` is gone at each of the replicas, into images.
async fn purged(cluster: &Cluster, replicas: &[usize], index: u64) -> Result<()> {
    for &replica in replicas {
        cluster.wait_status(replica, "drops its log", |status| status.purged_log_index > index).await?;
    }
    Ok(())
}

/// Kills a replica, deletes its folder, and waits until it goes on from a peer's image that holds `index`.
async fn wipe(cluster: &mut Cluster, replica: usize, index: u64) -> Result<()> {
    cluster.kill(&[replica])?;
    fs::remove_dir_all(&cluster[replica].data_dir)?;
    cluster.restart(replica).await?;
    let whole = cluster.wait_whole_state(replica).await?;
    ensure!(whole.log_index > index, "it could have replayed what was pushed: {whole:?}");
    Ok(())
}

#[test]
fn subscriber_resumes_at_a_node_that_has_its_pushes_from_an_image_alone() {
    scenario(async |s| {
        for mode in MODES {
            let mut cluster = cluster(s, mode, "", &[]).await?;
            let lineage = cluster.status(2).await?.lineage;
            let mut events = subscribe(&cluster, 2, None).await??;
            let writes = Writes::start(&cluster, 0).await?;
            let mut seen = (Cursor::default(), 0);
            for number in 1..=100 {
                seen = next_push(&mut events).await?;
                ensure!(seen.1 == number, "{mode}: {seen:?} is event {number}");
            }
            drop(events); // It goes away, and takes its cursor with it.
            purged(&cluster, &[0, 1, 2], seen.0.log_index).await?;
            wipe(&mut cluster, 2, seen.0.log_index).await?;
            // While writes go on, so that what is retained and what comes meet.
            let mut events = subscribe(&cluster, 2, Some(seen.0)).await??;
            for number in 101..=writes.acknowledged() + 200 {
                let (at, found) = next_push(&mut events).await?;
                ensure!(found == number && at.lineage == lineage, "{mode}: {found} at {at:?} is event {number}");
            }
            let written = writes.stop().await?;
            ensure!(written[99] == seen.0.log_index, "{mode}: {seen:?} is not where write 100 is");
            for replica in 0..3 {
                for from in [1, 100, written.len() / 2, written.len() - 1] {
                    check_resumes(&cluster, replica, lineage, &written, from)
                        .await
                        .with_context(|| format!("in {mode} mode"))?;
                }
            }
            cluster.verify().await?;
        }
        Ok(())
    });
}

#[test]
fn places_no_longer_kept_are_the_same_at_a_node_that_came_back_by_an_image() {
    scenario(async |s| {
        for mode in MODES {
            let mut cluster = cluster(s, mode, "", &["--retained-push-bytes", "20000"]).await?;
            let lineage = cluster.status(0).await?.lineage;
            let writes = Writes::start(&cluster, 0).await?;
            writes.advance(100).await?;
            let early = cluster.status(0).await?.applied_log_index;
            purged(&cluster, &[0, 1, 2], early).await?;
            wipe(&mut cluster, 2, early).await?;
            let written = writes.stop().await?;
            // Nothing is written any more, so each replica comes to keep the same.
            cluster.verify().await?;
            let mut oldest = Vec::new();
            for replica in 0..3 {
                let at = |write: usize| Some(Cursor { lineage, log_index: written[write], ordinal: 0 });
                let (mut expired, mut kept) = (0, written.len() - 1);
                while kept - expired > 1 {
                    let middle = usize::midpoint(expired, kept);
                    match subscribe(&cluster, replica, at(middle)).await? {
                        Ok(_) => kept = middle,
                        Err(status) => {
                            let told = (status.code(), reason(&status));
                            ensure!(told == (Code::OutOfRange, Some(Reason::CursorExpired)), "{mode}: {status:?}");
                            expired = middle;
                        }
                    }
                }
                let refused = subscribe(&cluster, replica, at(expired)).await?.err().context("it was kept")?;
                ensure!(reason(&refused) == Some(Reason::CursorExpired), "{mode}: {refused:?}");
                check_resumes(&cluster, replica, lineage, &written, kept + 1).await?;
                oldest.push(kept);
            }
            ensure!(oldest.iter().all(|kept| *kept == oldest[0]), "{mode}: kept from {oldest:?} on");
            ensure!(oldest[0] > 100, "{mode}: all is kept, and nothing was tried");
        }
        Ok(())
    });
}

#[test]
fn subscriber_from_now_on_at_a_node_that_catches_up_is_told_nothing_of_before() {
    scenario(async |s| {
        for mode in MODES {
            // Slow, so that the node is asked while the image is still on its way. More is kept than the node applies
            // after it, faster than any subscriber reads.
            let images = "transfer_bytes_per_sec = 500000\n";
            let mut cluster = cluster(s, mode, images, &["--retained-push-bytes", "8000000"]).await?;
            let writes = Writes::start(&cluster, 0).await?;
            purged(&cluster, &[0, 1, 2], 1_000).await?;
            cluster.kill(&[2])?;
            fs::remove_dir_all(&cluster[2].data_dir)?;
            cluster[2].start(&[])?;
            cluster.wait_answers(2).await?;
            let (acknowledged, mut events) = until("the node takes a subscription", async || {
                let acknowledged = writes.acknowledged();
                Ok((acknowledged, subscribe(&cluster, 2, None).await??))
            })
            .await?;
            let first = next_push(&mut events).await?.1;
            ensure!(first > acknowledged, "{mode}: it begins with {first}, after {acknowledged} were acknowledged");
            for number in first + 1..first + 100 {
                let (at, found) = next_push(&mut events).await?;
                ensure!(found == number, "{mode}: {found} at {at:?} is event {number}");
            }
            writes.stop().await?;
        }
        Ok(())
    });
}

#[test]
fn subscription_goes_on_over_an_image_that_its_node_enters_beneath_it() {
    scenario(async |s| {
        for mode in MODES {
            let mut cluster = cluster(s, mode, "", &[]).await?;
            let mut events = cluster.client_of(2)?.subscribe(None, ["counters"], None);
            events.established().await?;
            let writes = Writes::start(&cluster, 0).await?;
            let mut seen = 0;
            let mut see_up_to = async |goal: usize| {
                while seen < goal {
                    let push = match events.next().await.context("the events ended")? {
                        // Its only node stood still; the next call tries again.
                        Err(Error::Unavailable { .. }) => continue,
                        push => push?,
                    };
                    seen += 1;
                    ensure!(push.payload == format!("written {seen}"), "{mode}: {push:?} came as event {seen}");
                }
                Ok(())
            };
            see_up_to(100).await?;
            cluster[2].pause()?;
            let last = cluster.status(0).await?.last_log_index;
            purged(&cluster, &[0, 1], last + 10_000).await?;
            cluster[2].resume()?;
            cluster
                .wait_status(2, "goes on from the whole state, or had the log up to there on its way", |status| {
                    let whole = status.restart.as_ref().and_then(|restart| restart.whole_state.as_ref());
                    whole.is_some_and(|whole| whole.entered || status.applied_log_index >= whole.log_index)
                })
                .await?;
            see_up_to(writes.acknowledged() + 100).await?;
            let written = writes.stop().await?;
            see_up_to(written.len()).await?;
        }
        Ok(())
    });
}

//! A large transfer, cut at random points, between real processes: never half installed, it goes on where it was, and it always completes.
//!
//! A transfer of 64 KiB is cut at every byte in process, by `replicator/src/node/images/transfer_tests.rs`. This one is run by `make faults`: it takes
//! minutes. `RUNS=2` cuts twice as often, `SEED=7` elsewhere.

use std::{fs, time::Instant};

use anyhow::{Context as _, Result, ensure};
use replicator_tests::{
    Cluster, NodeProcess, PATIENCE, Proxy, Requests as _, module, number, replicator, request, run, scenario,
    until_within,
};

/// Cuts in all, for each of `RUNS`.
const CUTS: u64 = 200;
/// The state: sessions that keep so many answers of so many bytes each.
const SESSIONS: u64 = 13;
const ANSWERS: u64 = 8;
const ANSWER_BYTES: usize = 1_000_000;
const DAY_MS: u64 = 24 * 3_600_000;
/// A connection is cut before it has carried this, at random: some carry less than a piece of the image (1 MiB), and so nothing.
const CARRIED_BYTES_MAX: u64 = 4 << 20;
/// What a connection may carry in vain: a part of a piece, and what of the chunk before it can't be gone on with.
const IN_VAIN_BYTES_MAX: u64 = (2 << 20) + (64 << 10);
/// The receiver is killed at every so many looks.
const KILL_AT: u64 = 40;

/// The next number of a small generator.
fn next(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
    (*seed ^ (*seed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 8
}

/// Fills the session table with answers that nobody acknowledges, and that nothing compresses.
async fn fill(cluster: &Cluster, seed: &mut u64) -> Result<()> {
    let mut node = cluster.node(0).await?.max_decoding_message_size(4 << 20).max_encoding_message_size(4 << 20);
    for _ in 0..SESSIONS {
        let session = node.session(DAY_MS).await?;
        for sequence in 1..=ANSWERS {
            let bytes: Vec<u8> = (0..ANSWER_BYTES / 8).flat_map(|_| next(seed).to_le_bytes()).collect();
            node.execute(request(&session, sequence, bytes)).await?;
        }
    }
    Ok(())
}

/// What `replicator snapshot list` finds in the folder of a node that is down.
async fn images(node: &NodeProcess) -> Result<usize> {
    let data_dir = node.data_dir.display().to_string();
    let listed = run(&replicator(), ["snapshot", "list", "--data-dir", &data_dir, "-o", "json"], &[]).await?;
    let listed = listed.exits(0)?.json()?;
    Ok(listed["images"].as_array().with_context(|| format!("no images in {listed}"))?.len())
}

/// The third node, without a folder, takes the state over connections that break. Returns how often they did, and how often it was killed.
async fn take(cluster: &mut Cluster, proxies: &[Proxy], limits: &[u64]) -> Result<(u64, u64)> {
    let count = |of: fn(&Proxy) -> u64| proxies.iter().map(of).sum::<u64>();
    let (cuts, carried) = (count(Proxy::cuts), count(Proxy::carried));
    for (at, limit) in limits.iter().enumerate() {
        proxies[at % proxies.len()].cut_after([*limit]);
    }
    if cluster[2].data_dir.exists() {
        cluster.kill(&[2])?;
        fs::remove_dir_all(&cluster[2].data_dir)?;
    }
    cluster[2].start(&[])?;
    let (mut looks, mut kills) = (0, 0);
    let whole = until_within(8 * PATIENCE, "it goes on from the whole state", async || {
        looks += 1;
        let status = cluster.status(2).await;
        let restart = status.ok().and_then(|status| status.restart);
        if let Some(whole) = restart.and_then(|restart| restart.whole_state).filter(|whole| whole.entered) {
            return Ok(whole);
        }
        if looks % KILL_AT == 0 && kills < 5 {
            cluster.kill(&[2])?;
            kills += 1;
            // Whole or not there: a listing reads no more than manifests, so the start that follows is what checks its bytes.
            let found = images(&cluster[2]).await?;
            ensure!(found <= 1, "{found} images");
            cluster[2].start(&[])?;
        }
        anyhow::bail!("{looks} looks")
    })
    .await;
    let whole = whole?;
    ensure!(whole.bytes == whole.bytes_total && whole.bytes > 100_000_000, "{whole:?}");
    let (cuts, carried) = (count(Proxy::cuts) - cuts, count(Proxy::carried) - carried);
    // Killing the receiver breaks connections too.
    let most = whole.bytes_total + (cuts + kills + 2) * IN_VAIN_BYTES_MAX;
    ensure!(carried <= most, "{carried} bytes came for {} with {cuts} cuts and {kills} kills", whole.bytes_total);
    cluster.wait_serves(2).await?;
    cluster.verify().await?;
    Ok((cuts, kills))
}

#[test]
#[ignore = "takes minutes: make faults"]
fn transfer_of_100_mib_cut_at_random_points_completes_from_where_it_was() {
    let (runs, first) = (number("RUNS", 1), number("SEED", 1));
    scenario(async |s| {
        s.run_again_by(format!("make faults TEST=transfer_of_100_mib SEED={first} RUNS={runs}"));
        s.may_take(u32::try_from(5 * runs)?);
        let mut cluster = s.prepare_with(3, 0, "[images]\nlog_bytes = 67108864\n").await?;
        let proxies = [Proxy::start(&cluster[0].peer_address).await?, Proxy::start(&cluster[1].peer_address).await?];
        // The third node reaches the others through them.
        let ways = [0, 1].map(|index| NodeProcess::new(s.dir(), &cluster[index].name, 1, proxies[index].port));
        cluster[2].configure(ways.iter(), "[images]\nlog_bytes = 67108864\n")?;
        cluster.start_all().await?;
        cluster.init(&module("echo"), &[]).await?;
        let (mut seed, began) = (first, Instant::now());
        fill(&cluster, &mut seed).await?;
        for node in ["n1", "n2"] {
            // Twice: the log goes only behind the older one.
            for _ in 0..2 {
                cluster.replicator(&["snapshot", "take", node]).await?.exits(0)?;
                cluster.client()?.open_session(None).await?;
            }
        }
        println!("the state is there after {:.1} s", began.elapsed().as_secs_f64());
        let (mut cuts, mut kills, mut transfers) = (0, 0, 0);
        while cuts < CUTS * runs {
            let limits: Vec<u64> = (0..70).map(|_| next(&mut seed) % CARRIED_BYTES_MAX).collect();
            let (some, killed) = take(&mut cluster, &proxies, &limits).await?;
            ensure!(some > 0, "nothing was cut");
            (cuts, kills, transfers) = (cuts + some, kills + killed, transfers + 1);
        }
        println!(
            "{transfers} transfers of 100 MiB, cut {cuts} times, their receiver killed {kills} times: all complete and equal, {:.1} s",
            began.elapsed().as_secs_f64()
        );
        Ok(())
    });
}

//! Rounds: each does one thing to the cluster, heals it, and waits until all writers have got on.

use std::time::Instant;

use anyhow::{Context as _, bail};

use super::{
    arena::{Arena, Deeds, POLL},
    chance::Chance,
    disks::Disks,
    faults::Fault,
    world::World,
    writers::Way,
};
use crate::cli::cluster::{Cluster, PATIENCE};

/// Acknowledgements that every writer must get between two rounds.
pub(super) const ADVANCE: u64 = 10;

/// Plays one round. Says what it did.
pub(super) async fn play(
    cluster: &mut Cluster,
    disks: Option<&Disks>,
    world: &World,
    faults: &[Fault],
    mut chance: Chance,
    deeds: &mut Deeds,
) -> anyhow::Result<String> {
    let fault = Fault::choose(faults, &mut chance);
    let mut arena = Arena::new(cluster, disks, world, deeds);
    let done = async {
        fault.strike(&mut arena, &mut chance).await?;
        if let Some(second) = fault.choose_second(faults, &mut chance) {
            second.strike(&mut arena, &mut chance).await?;
        }
        arena.heal().await
    };
    let done = done.await;
    let told = arena.told();
    done.with_context(|| format!("after {told}"))?;
    advance(world).await.with_context(|| format!("after {told}"))?;
    Ok(told)
}

/// Waits until every writer has got on, and every reader has been answered.
pub(super) async fn advance(world: &World) -> anyhow::Result<()> {
    writers_advance(world).await?;
    readers_advance(world).await
}

/// Readers give up after a moment: unless each is answered between two rounds, reads without an answer would pass for good ones.
async fn readers_advance(world: &World) -> anyhow::Result<()> {
    let before = world.account().answered_reads();
    let began = Instant::now();
    loop {
        let now = world.account().answered_reads();
        let silent = before.iter().find(|(reader, count)| now.get(*reader) <= Some(*count));
        match silent {
            None => return Ok(()),
            Some((reader, _)) if began.elapsed() > PATIENCE => {
                bail!("no progress: within {} s of health, no read at {reader} was answered there", PATIENCE.as_secs())
            }
            Some(_) => tokio::time::sleep(POLL).await,
        }
    }
}

async fn writers_advance(world: &World) -> anyhow::Result<()> {
    let before = world.account().progress();
    let began = Instant::now();
    loop {
        let now = world.account().progress();
        let stuck = before.iter().zip(&now).position(|(before, now)| now - before < ADVANCE);
        match stuck {
            None => return Ok(()),
            Some(writer) if began.elapsed() > PATIENCE => bail!(
                "no progress: within {} s of health, writer {writer} ({:?}) got {} acknowledgements, of {ADVANCE} that it had to",
                PATIENCE.as_secs(),
                Way::of(writer),
                now[writer] - before[writer]
            ),
            Some(_) => tokio::time::sleep(POLL).await,
        }
    }
}

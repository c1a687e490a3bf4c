//! `replicator torture`: nodes die, stand still, lose their disks and fill them under load, again and again, and afterwards every request, read
//! and push is accounted for.
//!
//! The load is the journal module's: writers number their requests, so that at the end it is known of each whether it was lost or
//! doubled. A seed decides what is done to the cluster and when; what the machine's scheduling does in between, it can't decide.

mod account;
#[cfg(test)]
mod account_tests;
mod arena;
mod catch_ups;
mod chance;
mod copies;
mod disks;
mod faults;
mod listeners;
mod members;
mod numbers;
mod report;
mod rounds;
mod swaps;
mod usage;
mod world;
mod writers;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, bail};
use clap::{Args, ValueEnum as _};
use indicatif::{ProgressBar, ProgressStyle};
use replicator_client::{Client, Consistency};
use tokio::signal::unix::{SignalKind, signal};

use self::{
    arena::Deeds,
    chance::Chance,
    disks::Disks,
    faults::Fault,
    listeners::{Reading, read, subscribe},
    report::Report,
    swaps::Swaps,
    usage::Usage,
    world::{Tasks, World, failure},
};
use super::{
    Failure, Output,
    cluster::{Cluster, PATIENCE, Place, Setup, Storage, bundled_module},
    journal::Runs,
    output::Format,
    shape::{ModeFlags, Shape},
    status,
};

/// Without a terminal, so often a line says how far it is.
const LINE_EACH: u32 = 10;
const POLL: Duration = Duration::from_millis(20);
/// So that the moments of swaps are others than those of faults.
const SWAP_SEED: u64 = 0x5357_4150;
/// Where disks are lost or full: bytes of log between two images, the fewest that can be, so that logs are purged within a second.
const IMAGE_LOG_BYTES: u64 = 64 << 10;

/// What the readers ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Reads {
    /// Everything acknowledged before the read began
    Linearizable,
    /// Whatever the node has
    Local,
}

impl From<Reads> for Consistency {
    fn from(reads: Reads) -> Self {
        match reads {
            Reads::Linearizable => Self::Linearizable,
            Reads::Local => Self::Local,
        }
    }
}

#[derive(Debug, Args)]
#[command(
    after_help = "Exit code 0: nothing acknowledged was lost or doubled, no read was stale, every push came, all replicas are equal,
and every replica that was started again told how it caught up. 3: one of that is not so. 1: it could not be told, or the cluster made no progress. Then
the nodes' folders and logs are kept. 2: wrong usage, or disks for --full-disk can't be mounted.

  acknowledged  requests answered, each exactly once
  lost          acknowledged, and not there at the end
  doubled       executed or pushed more than once, or answered with two different executions
  unknown       sent, and never answered in a way that tells what became of them: no defect
  stale         linearizable reads that missed what was acknowledged, or read, before they began
  missing       executed, and never pushed to the subscriber
  phantom       there or pushed, though never sent, or refused as without effect
  disordered    answers or pushes whose places in the log contradict each other
  expired       sessions that were said to have expired, long before they could
  refused       answers of a node that the primary's disk is full, to copies: not executed, and sent again

A wipe waits until all nodes are full members, voters and in the chain, so that what the deleted folder held is elsewhere too; the next one waits until
its node is. With --wipe or --full-disk the nodes take images after each 64 KiB of log, so that those who come back often find the log gone."
)]
pub(super) struct TortureArgs {
    #[command(flatten)]
    mode: ModeFlags,
    /// Faults, one after the other; each takes a second or two
    #[arg(long, value_name = "N", default_value = "50", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Decides what is done to the cluster. Default: another one each time
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// How many replicas. A majority of the nodes must survive a death: 3 or 5 in majority mode
    #[arg(long, value_name = "N", default_value_t = 3)]
    nodes: usize,
    /// Writers, each with a session of its own, in turn: a pipeline, unary calls, shared streams, and copies to all nodes at once
    #[arg(long, value_name = "W", default_value = "8", value_parser = clap::value_parser!(u16).range(1..=256))]
    writers: u16,
    /// Which faults may be chosen. Default: all but the last two
    #[arg(long, value_name = "FAULT,…", value_enum, value_delimiter = ',')]
    faults: Vec<Fault>,
    /// Delete a node's folder now and then: one at a time, a witness's too
    #[arg(long)]
    wipe: bool,
    /// Fill nodes' disks now and then: each has a small one of its own (tmpfs), which only root can mount
    #[arg(long)]
    full_disk: bool,
    /// In each round swap the journal for its second version, and roll back, while the round goes on
    #[arg(long)]
    swap: bool,
    /// What reads ask for. With local ones, stale reads are expected: they show that stale ones are found
    #[arg(long, value_enum, default_value_t = Reads::Linearizable)]
    consistency: Reads,
    /// Where the nodes' folders go, to be removed at the end. Default: where temporary files go
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

impl TortureArgs {
    /// The command that does the same again.
    fn again(&self, shape: &Shape, seed: u64) -> String {
        let Self { rounds, writers, faults, wipe, full_disk, swap, consistency, .. } = self;
        let shape = shape.flags();
        let mut command = format!("replicator torture {shape} --rounds {rounds} --seed {seed} --writers {writers}");
        if !faults.is_empty() {
            let names = faults.iter().filter_map(|fault| Some(fault.to_possible_value()?.get_name().to_owned()));
            command = format!("{command} --faults {}", names.collect::<Vec<_>>().join(","));
        }
        let flags = [
            (*wipe, " --wipe"),
            (*full_disk, " --full-disk"),
            (*swap, " --swap"),
            (*consistency == Reads::Local, " --consistency local"),
        ];
        flags.iter().filter(|(given, _)| *given).for_each(|(_, flag)| command.push_str(flag));
        command
    }

    /// The faults that may be chosen.
    fn allowed(&self) -> Vec<Fault> {
        Fault::allowed(&self.faults, self.wipe, self.full_disk)
    }
}

/// How the nodes use their disks while such faults strike.
fn storage(faults: &[Fault]) -> Storage {
    let (wipe, full_disk) = (faults.contains(&Fault::Wipe), faults.contains(&Fault::FullDisk));
    let image_log_bytes = (wipe || full_disk).then_some(IMAGE_LOG_BYTES);
    Storage { image_log_bytes, within_disks: full_disk, ..Storage::default() }
}

pub(super) async fn run(args: TortureArgs) -> Result<(), Failure> {
    let seed = match args.seed {
        Some(seed) => seed,
        None => random_seed()?,
    };
    let shape = args.mode.shape(args.nodes)?;
    if shape.deaths_survived() == 0 {
        return Err(Failure::Usage(
            "a cluster that goes on after a death has at least 3 nodes, witnesses counted".into(),
        ));
    }
    let faults = args.allowed();
    if faults.contains(&Fault::Wipe) && shape.replicas < 2 {
        return Err(Failure::Usage("the only replica's folder can't be wiped: what it holds is nowhere else".into()));
    }
    let again = args.again(&shape, seed);
    // With JSON, standard output is for that alone.
    match args.output.output {
        Format::Table => println!("seed {seed}: {again}"),
        Format::Json => eprintln!("seed {seed}: {again}"),
    }
    let mut interrupt = signal(SignalKind::interrupt()).context("can't listen for signals")?;
    let mut terminate = signal(SignalKind::terminate()).context("can't listen for signals")?;
    let place = Place::Temporary { within: args.data_dir.as_deref(), command: "torture" };
    let storage = storage(&faults);
    let mut cluster = Cluster::prepare_with(Setup { shape, place }, storage)?;
    let disks = match storage.within_disks.then(|| mount_disks(&cluster)).transpose() {
        Ok(disks) => disks,
        Err(refused) => {
            cluster.remove_temporary();
            return Err(refused);
        }
    };
    let ended = tokio::select! {
        ended = torture(&args, &shape, seed, &faults, &mut cluster, disks.as_ref()) => ended,
        _ = interrupt.recv() => Err(anyhow!("interrupted")),
        _ = terminate.recv() => Err(anyhow!("terminated")),
    };
    let mut fallen = cluster.fallen();
    cluster.stop().await;
    // Nothing is planted here: whoever was found to differ did differ, or was wronged.
    fallen.extend(cluster.found_out());
    let mut kept = format!("the nodes' folders and logs are kept in {}; again: {again}", cluster.dir().display());
    let is_clean = fallen.is_empty() && ended.as_ref().is_ok_and(Report::is_clean);
    if let Some(disks) = disks.filter(|_| !is_clean)
        && let Err(error) = disks.keep()
    {
        kept = format!("{kept}; not all of them, though: {error:#}");
    }
    let report = match ended {
        Ok(report) => report,
        Err(error) if fallen.is_empty() => return Err(Failure::Failed(error.context(kept))),
        Err(error) => return Err(Failure::Damage(error.context(format!("{}; {kept}", fallen.join(", "))))),
    };
    report.print(args.output.output)?;
    if !fallen.is_empty() {
        return Err(Failure::Damage(anyhow!("{}; {kept}", fallen.join(", "))));
    }
    if !report.is_clean() {
        return Err(Failure::Damage(anyhow!("the cluster broke a promise; {kept}")));
    }
    cluster.remove_temporary();
    Ok(())
}

fn mount_disks(cluster: &Cluster) -> Result<Disks, Failure> {
    let folders = (0..cluster.len()).map(|index| cluster.node_dir(index)).collect();
    Disks::mount(folders).map_err(|error| {
        Failure::Usage(format!(
            "can't mount a small disk (tmpfs) for each node, which filling disks needs: {error}. Run it as root, where mounting is allowed, or leave \
             out --full-disk"
        ))
    })
}

fn random_seed() -> anyhow::Result<u64> {
    let mut seed = [0; 4]; // Short enough to be typed.
    getrandom::fill(&mut seed).map_err(|error| anyhow!("no random bytes: {error}"))?;
    Ok(u32::from_le_bytes(seed).into())
}

async fn torture(
    args: &TortureArgs,
    shape: &Shape,
    seed: u64,
    faults: &[Fault],
    cluster: &mut Cluster,
    disks: Option<&Disks>,
) -> anyhow::Result<Report> {
    let began = Instant::now();
    cluster.start_all().await?;
    cluster.found(&bundled_module("journal")?).await?;
    let writers = usize::from(args.writers);
    let (world, conductor) = World::new(writers, cluster.endpoints());

    let mut listeners = Tasks::new();
    for writer in 0..writers {
        // From before the first request on.
        listeners.spawn(subscribe(&world, writer).await?.listen());
    }
    let mut load = Tasks::new();
    for (writer, connection) in writers::connections(&world, writers)?.into_iter().enumerate() {
        load.spawn(writers::write(world.clone(), connection, writer));
    }
    for node in (0..cluster.len()).filter(|&node| !cluster.is_witness(node)) {
        for streams in [false, true] {
            let node_id = cluster.name(node).to_owned();
            let how = Reading { node, node_id, streams, consistency: args.consistency.into() };
            world.account().reader(&how.name());
            load.spawn(read(world.clone(), how, writers));
        }
    }

    let mut deeds = Deeds::default();
    let usage = Usage::default();
    let mut watchers = Tasks::new();
    usage.watch(cluster, &mut watchers);
    let mut swaps = if args.swap { Some(Swaps::prepare(&world).await?) } else { None };
    let rounds = async {
        rounds::advance(&world).await?;
        let progress = Progress::start(args.rounds);
        for round in 0..args.rounds {
            conductor.move_subscribers();
            let chance = Chance::new(seed, round.into());
            let mut moments = Chance::new(seed ^ SWAP_SEED, round.into());
            let swapping = async {
                match &mut swaps {
                    Some(swaps) => swaps.there_and_back(&world, &mut moments).await,
                    None => Ok(()),
                }
            };
            let playing = rounds::play(cluster, disks, &world, faults, chance, &mut deeds);
            let played = futures::future::try_join(playing, swapping).await;
            let (told, ()) = played.with_context(|| format!("round {}", round + 1))?;
            let fallen = cluster.fallen();
            if !fallen.is_empty() {
                bail!("in round {}, after {told}: {}", round + 1, fallen.join(", "));
            }
            progress.round(round + 1, &told, world.account().progress().iter().sum());
        }
        anyhow::Ok(())
    };
    tokio::select! {
        done = rounds => done?,
        error = failure(&mut load) => return Err(error),
        error = failure(&mut listeners) => return Err(error),
    }

    conductor.stop();
    while let Some(ended) = load.join_next().await {
        ended.context("a part of the load panicked")??;
    }
    let ending = async {
        drain(&world, cluster, writers).await?;
        let verdict = status::verify(cluster.client(), &cluster.survey().await).await;
        // Once more, now that every replica has come to the same index: a late execution counts too.
        anyhow::Ok((drain(&world, cluster, writers).await?, verdict))
    };
    let (held, verdict) = tokio::select! {
        ended = ending => ended?,
        error = failure(&mut listeners) => return Err(error),
    };
    listeners.shutdown().await;
    watchers.shutdown().await;
    let mut swap_defect = None;
    if let Some(swaps) = &swaps {
        swap_defect = swaps.check(&world).await?;
    }
    let (tally, told) = world.into_account()?.close(&held);
    Ok(Report {
        seed,
        rounds: args.rounds,
        nodes: cluster.len(),
        replicas: shape.replicas,
        mode: shape.to_string(),
        tally,
        told,
        verdict,
        deeds,
        swaps: swaps.map(|swaps| swaps.tally),
        swap_defect,
        images: usage.images(),
        folder_bytes_max: usage.folder_bytes_max(),
        seconds: began.elapsed().as_secs_f64(),
    })
}

/// What the cluster holds of each writer at the end, once the subscribers have heard it, or won't.
async fn drain(world: &World, cluster: &Cluster, writers: usize) -> anyhow::Result<Vec<Runs>> {
    let client = Client::builder().endpoints(cluster.endpoints()).deadline(PATIENCE).build()?;
    let began = Instant::now();
    loop {
        let mut held = Vec::new();
        for writer in 0..writers {
            // Again each time: a request of which nobody waits for the answer may still come to the log.
            let answer = client.query(Runs::query(&writers::name(writer)), Consistency::Linearizable, None).await?;
            held.push(Runs::parse(&answer.response)?);
        }
        if world.account().all_heard(&held) || began.elapsed() > PATIENCE {
            return Ok(held);
        }
        tokio::time::sleep(POLL).await;
    }
}

/// A bar on standard error if that is a terminal, and a line now and then if not.
struct Progress(ProgressBar);

impl Progress {
    fn start(rounds: u32) -> Self {
        let style = ProgressStyle::with_template("{wide_bar} round {pos}/{len}, {msg}");
        let bar = ProgressBar::new(rounds.into());
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self(bar)
    }

    fn round(&self, round: u32, told: &str, acknowledged: u64) {
        self.0.set_position(round.into());
        self.0.set_message(format!("{acknowledged} acknowledged; {told}"));
        let rounds = self.0.length().unwrap_or_default();
        if self.0.is_hidden() && (round.is_multiple_of(LINE_EACH) || u64::from(round) == rounds) {
            eprintln!("round {round} of {rounds}: {acknowledged} acknowledged; last: {told}");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

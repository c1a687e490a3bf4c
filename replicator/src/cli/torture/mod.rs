//! `replicator torture`: nodes die and stand still under load, again and again, and afterwards every request, read and push is accounted for.
//!
//! The load is the journal module's: writers number their requests, so that at the end it is known of each whether it was lost or
//! doubled. A seed decides what is done to the cluster and when; what the machine's scheduling does in between, it can't decide.

mod account;
#[cfg(test)]
mod account_tests;
mod chance;
mod copies;
mod faults;
mod listeners;
mod numbers;
mod report;
mod rounds;
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
    chance::Chance,
    faults::Fault,
    listeners::{Reading, read, subscribe},
    report::Report,
    rounds::Played,
    world::{Tasks, World, failure},
};
use super::{
    Failure, Output,
    cluster::{Cluster, PATIENCE, Place, Setup, bundled_module},
    journal::Runs,
    output::Format,
    shape::{ModeFlags, Shape},
    status,
};

/// Without a terminal, so often a line says how far it is.
const LINE_EACH: u32 = 10;
const POLL: Duration = Duration::from_millis(20);

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
    after_help = "Exit code 0: nothing acknowledged was lost or doubled, no read was stale, every push came, all replicas are equal.
3: one of that is not so. 1: it could not be told, or the cluster made no progress. Then the nodes' folders and logs are kept.

  acknowledged  requests answered, each exactly once
  lost          acknowledged, and not there at the end
  doubled       executed or pushed more than once, or answered with two different executions
  unknown       sent, and never answered in a way that tells what became of them: no defect
  stale         linearizable reads that missed what was acknowledged, or read, before they began
  missing       executed, and never pushed to the subscriber
  phantom       there or pushed, though never sent, or refused as without effect
  disordered    answers or pushes whose places in the log contradict each other
  expired       sessions that were said to have expired, long before they could"
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
    /// Which faults may be chosen. Default: all
    #[arg(long, value_name = "FAULT,…", value_enum, value_delimiter = ',')]
    faults: Vec<Fault>,
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
        let Self { rounds, writers, faults, consistency, .. } = self;
        let shape = shape.flags();
        let mut command = format!("replicator torture {shape} --rounds {rounds} --seed {seed} --writers {writers}");
        if !faults.is_empty() {
            let names = faults.iter().filter_map(|fault| Some(fault.to_possible_value()?.get_name().to_owned()));
            command = format!("{command} --faults {}", names.collect::<Vec<_>>().join(","));
        }
        if *consistency == Reads::Local {
            command.push_str(" --consistency local");
        }
        command
    }
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
    let again = args.again(&shape, seed);
    // With JSON, standard output is for that alone.
    match args.output.output {
        Format::Table => println!("seed {seed}: {again}"),
        Format::Json => eprintln!("seed {seed}: {again}"),
    }
    let mut interrupt = signal(SignalKind::interrupt()).context("can't listen for signals")?;
    let mut terminate = signal(SignalKind::terminate()).context("can't listen for signals")?;
    let place = Place::Temporary { within: args.data_dir.as_deref(), command: "torture" };
    let mut cluster = Cluster::prepare(Setup { shape, place })?;
    let ended = tokio::select! {
        ended = torture(&args, &shape, seed, &mut cluster) => ended,
        _ = interrupt.recv() => Err(anyhow!("interrupted")),
        _ = terminate.recv() => Err(anyhow!("terminated")),
    };
    let fallen = cluster.fallen();
    cluster.stop().await;
    let kept = format!("the nodes' folders and logs are kept in {}; again: {again}", cluster.dir().display());
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

fn random_seed() -> anyhow::Result<u64> {
    let mut seed = [0; 4]; // Short enough to be typed.
    getrandom::fill(&mut seed).map_err(|error| anyhow!("no random bytes: {error}"))?;
    Ok(u32::from_le_bytes(seed).into())
}

async fn torture(args: &TortureArgs, shape: &Shape, seed: u64, cluster: &mut Cluster) -> anyhow::Result<Report> {
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

    let mut outages = Vec::new();
    let rounds = async {
        rounds::advance(&world).await?;
        let progress = Progress::start(args.rounds);
        for round in 0..args.rounds {
            conductor.move_subscribers();
            let faults = if args.faults.is_empty() { Fault::value_variants() } else { &args.faults };
            let chance = Chance::new(seed, round.into());
            let played = rounds::play(cluster, &world, faults, chance).await;
            let Played { deeds, outage } = played.with_context(|| format!("round {}", round + 1))?;
            outages.extend(outage);
            let fallen = cluster.fallen();
            if !fallen.is_empty() {
                bail!("in round {}, after {deeds}: {}", round + 1, fallen.join(", "));
            }
            progress.round(round + 1, &deeds, world.account().progress().iter().sum());
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
        outages,
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

    fn round(&self, round: u32, deeds: &str, acknowledged: u64) {
        self.0.set_position(round.into());
        self.0.set_message(format!("{acknowledged} acknowledged; {deeds}"));
        let rounds = self.0.length().unwrap_or_default();
        if self.0.is_hidden() && (round.is_multiple_of(LINE_EACH) || u64::from(round) == rounds) {
            eprintln!("round {round} of {rounds}: {acknowledged} acknowledged; last: {deeds}");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

//! `replicator bench swap`: for how long an activation holds up the clients.
//!
//! The module is swapped for itself under another hash, so that both write and read the same state. What snapshot and restore take alone is what the machine is held up
//! for when nobody else wants anything; what clients see is the longest time without an acknowledgement while a load goes on.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use clap::Args;
use indicatif::ProgressBar;
use replicator_client::Client;
use replicator_proto::replicator::v1 as pb;

use super::{
    comparison::{Comparison, Figure, Loads},
    load::{Measured, WARM_UP},
    machine::Machine,
    own::Own,
    state::{Filled, MODULE, NO_IMAGES},
};
use crate::cli::{
    Failure,
    cluster::{Cluster, bundled_module},
    module::upload,
};

#[derive(Debug, Args)]
#[command(
    after_help = "The aim: the longest gap is at most 1.2 times what snapshot and restore take alone, and 20 ms more; and at most 250 ms for 64 MiB.

  replicator bench swap
  replicator bench swap --mode chain --state-mib 256 -o json"
)]
pub(super) struct SwapArgs {
    /// Bytes of state, in MiB, in values of 1 KiB
    #[arg(long, value_name = "MIB", default_value = "64", value_parser = clap::value_parser!(u32).range(1..=900))]
    state_mib: u32,
    /// Clients, each with one write in flight
    #[arg(long, value_name = "N", default_value = "64", value_parser = clap::value_parser!(u32).range(1..=50_000))]
    clients: u32,
    /// Seconds of each load
    #[arg(long, value_name = "S", default_value = "4", value_parser = clap::value_parser!(u32).range(2..=3_600))]
    seconds: u32,
    /// How often all of it is measured, in turn
    #[arg(long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    #[command(flatten)]
    own: Own,
}

/// Bytes of each write.
const WRITE_BYTES: usize = 128;
/// How finely gaps are measured.
const POLL: Duration = Duration::from_micros(500);
/// How long an activation may take in all.
const ACTIVATE_MAX: Duration = Duration::from_secs(60);

pub(super) async fn run(args: SwapArgs) -> Result<(), Failure> {
    let measured = args.own.run(3, MODULE, NO_IMAGES, async |cluster| measure(&args, cluster).await).await?;
    Ok(measured.print(args.own.output.output)?)
}

async fn measure(args: &SwapArgs, cluster: &mut Cluster) -> anyhow::Result<Comparison> {
    let machine = Machine::here(Some(cluster.dir()));
    let mut filled = Filled::new(cluster, args.state_mib).await?;
    let mut swapper = Swapper::prepare(cluster, filled.primary).await?;
    let mut loads = [("no swap", Vec::new()), ("one swap", Vec::new())];
    let (mut alone, mut quiet_gaps, mut gaps, mut machines) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..args.rounds {
        alone.push(ms(swapper.swap().await?));
        filled.refresh(cluster).await?;
        let (measured, quiet, _) = load_with_swap(args, &filled, None).await?;
        loads[0].1.push(measured);
        quiet_gaps.push(ms(quiet));
        let (measured, gap, paused) = load_with_swap(args, &filled, Some(&mut swapper)).await?;
        loads[1].1.push(measured);
        gaps.push(ms(gap));
        machines.push(ms(paused.context("a swap was asked for")?));
    }
    let allowed: Vec<f64> = alone.iter().map(|alone| 1.2 * alone + 20.0).collect();
    let worst = gaps.iter().copied().fold(0.0, f64::max);
    let kept = gaps.iter().zip(&allowed).filter(|(gap, allowed)| gap <= allowed).count();
    let mut notes: Vec<String> = machine.memory_only().into_iter().collect();
    notes.push(format!(
        "{kept} of {} swaps kept clients waiting for at most 1.2 times snapshot and restore alone and 20 ms more; the longest gap was {worst:.0} ms",
        gaps.len()
    ));
    let figures = vec![
        Figure::new("snapshot and restore alone: the machine stood still", "ms", alone),
        Figure::new("under load: the machine stood still", "ms", machines),
        Figure::new("under load, no swap: longest time without an acknowledgement", "ms", quiet_gaps),
        Figure::new("under load, one swap: longest time without an acknowledgement", "ms", gaps)
            .against("what is allowed", allowed),
    ];
    let about = format!(
        "swaps of {} MiB of state in values of 1 KiB; {} clients, one write of {WRITE_BYTES} bytes in flight each",
        args.state_mib, args.clients
    );
    let loads = loads.into_iter().map(|(what, runs)| Loads { what: what.into(), runs }).collect();
    Ok(Comparison { machine, about, notes, loads, figures })
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// One load, in whose middle a swap happens if there is a swapper. Returns the longest time without an acknowledgement in its second half too, and for how
/// long the machine stood still.
async fn load_with_swap(
    args: &SwapArgs,
    filled: &Filled,
    swapper: Option<&mut Swapper>,
) -> anyhow::Result<(Measured, Duration, Option<Duration>)> {
    let done = Arc::new(AtomicU64::new(0));
    let load = filled.load_counted(args.clients, WRITE_BYTES, args.seconds, Arc::clone(&done));
    let half = WARM_UP + Duration::from_secs(args.seconds.into()) / 2;
    let quarter = Duration::from_secs(args.seconds.into()) / 4;
    let gap = async {
        tokio::time::sleep(half - Duration::from_millis(100)).await;
        longest_gap(&done, quarter + Duration::from_millis(100)).await
    };
    let swap = async {
        tokio::time::sleep(half).await;
        match swapper {
            Some(swapper) => swapper.swap().await.map(Some),
            None => Ok(None),
        }
    };
    let (measured, gap, paused) = futures::future::join3(load, gap, swap).await;
    Ok((measured?, gap, paused?))
}

/// The longest time in which `done` doesn't rise, watched for so long, and until it rises again.
async fn longest_gap(done: &AtomicU64, watched: Duration) -> Duration {
    let began = Instant::now();
    let (mut count, mut at, mut longest) = (done.load(Ordering::Relaxed), began, Duration::ZERO);
    while began.elapsed() < watched {
        tokio::time::sleep(POLL).await;
        let (now, time) = (done.load(Ordering::Relaxed), Instant::now());
        longest = longest.max(time - at);
        if now > count {
            (count, at) = (now, time);
        }
    }
    longest
}

/// Swaps the module for itself under another hash, and back.
struct Swapper {
    client: Client,
    endpoint: String,
    running: Bytes,
    other: Bytes,
}

impl Swapper {
    async fn prepare(cluster: &Cluster, primary: usize) -> anyhow::Result<Self> {
        let endpoint = cluster.endpoint(primary).to_owned();
        let client = Client::builder().endpoints([&endpoint]).deadline(ACTIVATE_MAX).build()?;
        let mut module = fs::read(bundled_module(MODULE)?).context("can't read the module")?;
        // A section of no meaning, with the name "x".
        module.extend([0, 2, 1, b'x']);
        let mut admin = client.admin(&endpoint).await?;
        let uploaded = upload::send(&mut admin, module.into(), &ProgressBar::hidden()).await;
        let other = uploaded.map_err(|status| anyhow!("{}", status.message()))?.sha256;
        let running = client.status(&endpoint, false).await?.module_sha256;
        Ok(Self { client, endpoint, running, other })
    }

    /// Returns for how long the machine stood still.
    async fn swap(&mut self) -> anyhow::Result<Duration> {
        let (sha256, expected_sha256) = (self.other.clone(), self.running.clone());
        let mut request = tonic::Request::new(pb::ActivateModuleRequest { sha256, expected_sha256 });
        request.set_timeout(ACTIVATE_MAX);
        let swapped = self.client.admin(&self.endpoint).await?.activate_module(request).await;
        let swapped = swapped.map_err(|status| anyhow!("{}", status.message()))?.into_inner();
        if swapped.already {
            bail!("the module was active already");
        }
        std::mem::swap(&mut self.running, &mut self.other);
        Ok(Duration::from_micros(swapped.paused_us))
    }
}

//! `replicator node`: one node, until it is told to stop or can't go on.

use std::io::{self, IsTerminal};

use anyhow::Context as _;
use clap::Args;
use replicator_storage::{NodeDir, restrict_umask};
use tokio::{
    io::AsyncReadExt,
    signal::unix::{SignalKind, signal},
};

use super::Failure;
use crate::{
    config::{NodeConfig, NodeFlags},
    node::{Node, StartError},
    seams::Seams,
    service,
};

#[derive(Debug, Args)]
#[command(after_help = "The file, TOML:
  name = \"n1\"
  data_dir = \"/var/lib/replicator/n1\"
  client_address = \"127.0.0.1:7101\"
  peer_address = \"127.0.0.1:7201\"
  peers = [
      { name = \"n2\", peer_address = \"127.0.0.1:7202\" },
      { name = \"n3\", peer_address = \"127.0.0.1:7203\" },
  ]

A new node is blank: it waits for `replicator init`, or for its peers' cluster to let it in.")]
pub(super) struct NodeArgs {
    #[command(flatten)]
    flags: NodeFlags,
    /// End when standard input ends: the parent process has gone
    #[arg(long, hide = true)]
    exit_with_stdin: bool,
    /// Set by `replicator witness`.
    #[arg(skip)]
    witness: bool,
}

pub(super) async fn run_witness(args: NodeArgs) -> Result<(), Failure> {
    run(NodeArgs { witness: true, ..args }).await
}

pub(super) async fn run(args: NodeArgs) -> Result<(), Failure> {
    if args.exit_with_stdin {
        // A node that is stopped, as `torture` stops some, can't see that its standard input ends.
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::CONT))
            .context("can't ask to be woken when the parent process dies")?;
    }
    let config = NodeConfig::load(&args.flags, args.witness).map_err(|error| Failure::Usage(error.to_string()))?;
    log_to_stderr(&config.log)?;
    restrict_umask();
    if args.flags.rejoin {
        match NodeDir::set_aside(&config.data_dir)? {
            Some(aside) => tracing::warn!(to = %aside.display(), "set the data folder's content aside"),
            None => tracing::info!("nothing to set aside: the data folder is empty"),
        }
    }
    let mut interrupt = signal(SignalKind::interrupt()).context("can't listen for signals")?;
    let mut terminate = signal(SignalKind::terminate()).context("can't listen for signals")?;
    let stdin = stdin_ended();
    tokio::pin!(stdin);
    // It may take as long as its peers are away: a damaged log is mended first.
    let node = tokio::select! {
        started = Node::start(config, Seams::real()) => started.map_err(failure)?,
        _ = interrupt.recv() => return Ok(()),
        _ = terminate.recv() => return Ok(()),
        () = &mut stdin, if args.exit_with_stdin => return Ok(()),
    };
    let served = service::serve(node.clone()).await?;
    tracing::info!(
        clients = served.client_address,
        peers = served.peer_address,
        version = env!("CARGO_PKG_VERSION"),
        "serving"
    );

    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        () = &mut stdin, if args.exit_with_stdin => {}
        // The first storage error ends the process: after a failed fsync nothing that follows can be trusted.
        failed = node.failed() => {
            let reason = anyhow::anyhow!(failed.reason);
            return Err(if failed.damage { Failure::Damage(reason) } else { Failure::Failed(reason) });
        }
    }
    tracing::info!("stopping");
    Ok(())
}

fn failure(error: StartError) -> Failure {
    if error.is_damage() { Failure::Damage(error.into()) } else { Failure::Failed(error.into()) }
}

async fn stdin_ended() {
    let mut byte = [0];
    while !matches!(tokio::io::stdin().read(&mut byte).await, Ok(0) | Err(_)) {}
}

fn log_to_stderr(levels: &str) -> Result<(), Failure> {
    // openraft tells a long story at each start and election, and each failed heartbeat; it is there for those who ask.
    let levels = if levels.contains(['=', ',']) { levels.to_owned() } else { format!("{levels},openraft=error") };
    let filter = tracing_subscriber::EnvFilter::try_new(&levels)
        .map_err(|error| Failure::Usage(format!("log = {levels:?}: {error}; try info, or info,replicator=debug")))?;
    let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(colour)
        .with_target(false)
        .init();
    Ok(())
}

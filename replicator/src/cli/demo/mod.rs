//! `replicator demo`: a cluster on this machine, real processes and all, to play with or to watch.

mod chain_story;
mod story;
mod swap;
mod talk;

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anstyle::AnsiColor;
use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::{
    Failure,
    cluster::{Cluster, Place, Setup, bundled_module},
    module::nodes::word,
    output,
    shape::ModeFlags,
    status,
};

#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    #[command(flatten)]
    mode: ModeFlags,
    /// How many replicas; a majority cluster has 1, 3 or 5
    #[arg(long, default_value_t = 3, value_name = "N")]
    nodes: usize,
    /// Let the demo tell its story by itself, and exit with 0 only if every step held
    #[arg(long)]
    script: bool,
    /// The module to run, instead of the chat application
    #[arg(long, value_name = "FILE.wasm", conflicts_with = "script")]
    module: Option<PathBuf>,
    /// Keep the nodes' data in this folder, and use again what is there. Default: a temporary folder, removed at the end
    #[arg(long, value_name = "DIR", conflicts_with = "script")]
    data_dir: Option<PathBuf>,
}

/// The two versions of the chat, of which a story has the first one replaced by the second.
struct Versions {
    first: PathBuf,
    second: PathBuf,
}

/// What is played.
enum Play {
    Story(Versions),
    Live(PathBuf),
}

pub(super) async fn run(args: DemoArgs) -> Result<(), Failure> {
    let play = match args.module {
        _ if args.script => {
            Play::Story(Versions { first: bundled_module("chat-v1")?, second: bundled_module("chat")? })
        }
        Some(module) => Play::Live(module),
        None => Play::Live(bundled_module("chat")?),
    };
    let shape = args.mode.shape(args.nodes)?;
    if args.script && args.nodes < 3 {
        return Err(Failure::Usage("--script kills nodes and goes on, so it needs at least --nodes 3".into()));
    }
    if let Play::Live(module) = &play
        && !module.is_file()
    {
        return Err(Failure::Usage(format!("{} is no file", module.display())));
    }
    let mut interrupt = signal(SignalKind::interrupt()).context("can't listen for signals")?;
    let mut terminate = signal(SignalKind::terminate()).context("can't listen for signals")?;
    let mut cluster = Cluster::prepare(Setup {
        shape,
        place: args.data_dir.as_deref().map_or(Place::Temporary { within: None, command: "demo" }, Place::Kept),
    })?;
    let played = tokio::select! {
        played = async {
            match &play {
                Play::Story(versions) if shape.is_chain() => chain_story::tell(&mut cluster, versions).await,
                Play::Story(versions) => story::tell(&mut cluster, versions).await,
                Play::Live(module) => live(&mut cluster, module).await,
            }
        } => played,
        _ = interrupt.recv() => Err(anyhow!("interrupted")).or_else(|error| if args.script { Err(error) } else { Ok(()) }),
        _ = terminate.recv() => Err(anyhow!("terminated")).or_else(|error| if args.script { Err(error) } else { Ok(()) }),
    };
    let fallen = cluster.fallen();
    cluster.stop().await;
    let played = played.map_err(|error| match fallen.is_empty() {
        true => error,
        false => error.context(fallen.join("; ")),
    });
    match played {
        Ok(()) => {
            cluster.remove_temporary();
            Ok(())
        }
        Err(error) => {
            let kept = cluster.dir().display().to_string();
            Err(Failure::Failed(
                error.context(format!("the demo failed; the nodes' folders and logs are kept in {kept}")),
            ))
        }
    }
}

/// Says a step that has held.
fn step(text: &str) {
    let green = output::paint(AnsiColor::Green);
    let _ = writeln!(anstream::stdout(), "{green}✓{green:#} {text}");
}

/// Says something done to the cluster.
fn blow(text: &str) {
    let red = output::paint(AnsiColor::Red);
    let _ = writeln!(anstream::stdout(), "{red}✗{red:#} {text}");
}

/// What to try with the chat.
const CHAT_TRIES: &str = "  chat register alice; chat login alice
  chat register bob; chat login bob
  chat --user bob listen &
  chat --user alice send bob 'Are you there?'
";
/// What to try with any other module.
const CALL_TRIES: &str =
    "  replicator call 'REQUEST'     # executed once, whatever dies meanwhile; the bytes are the module's to understand
  replicator query 'REQUEST'    # reads
";

async fn live(cluster: &mut Cluster, module: &Path) -> anyhow::Result<()> {
    cluster.start_all().await?;
    cluster.found(module).await?;
    let nodes = cluster.survey().await;
    status::print(&nodes)?;
    let endpoints = cluster.endpoints().join(",");
    let app =
        nodes.iter().find_map(|node| word(&node.status.as_ref().ok()?.module_description, "app")).unwrap_or_default();
    let tries = if app == "chat" { CHAT_TRIES } else { CALL_TRIES };
    let programs = std::env::current_exe()?.parent().map(Path::to_owned).unwrap_or_default();
    let kill = match nodes.len() {
        1 => "Kill it; it comes back after five seconds, with everything that it had acknowledged:",
        _ => "Kill any minority of them and go on; each comes back after five seconds:",
    };
    let pids: Vec<String> = cluster.pids().map(|(node, pid)| format!("kill -9 {pid}    # {node}")).collect();
    println!(
        "
{} serve in {}. In other terminals:

  export PATH={}:$PATH
  export {}REPLICATOR_ENDPOINTS={endpoints}
{tries}  replicator status --verify

{}

  {}

Ctrl-C ends it all.",
        output::count(nodes.len(), "node"),
        cluster.dir().display(),
        programs.display(),
        if app == "chat" { format!("CHAT_ENDPOINTS={endpoints} ") } else { String::new() },
        kill,
        pids.join("\n  ")
    );
    loop {
        let died = cluster.wait_for_death().await?;
        blow(&format!("{} died ({}); the others go on, and it comes back in 5 s", died.node, died.how));
        tokio::time::sleep(Duration::from_secs(5)).await;
        let pid = cluster.restart(died.index).await?;
        step(&format!("{} is back (pid {pid})", died.node));
    }
}

/// Fails with `what` if `held` isn't.
fn ensure(held: bool, what: impl FnOnce() -> String) -> anyhow::Result<()> {
    if held {
        return Ok(());
    }
    bail!(what())
}

//! `replicator snapshot restore`.

use std::{
    io::{self, Write as _},
    path::PathBuf,
};

use clap::Args;
use replicator_storage::restrict_umask;
use serde_json::json;

use super::saved;
use crate::{
    cli::{
        Failure, Output,
        output::{self, Format},
        recover,
    },
    config::{NodeConfig, NodeFlags},
    node::{Restore, RestoreError, Restored},
    seams::Seams,
};

#[derive(Debug, Args)]
#[command(
    mut_arg("rejoin", |arg| arg.hide(true)),
    mut_arg("log", |arg| arg.hide(true)),
    mut_arg("persist_order", |arg| arg.hide(true)),
    after_help = "Give it what you will start the node with, best its configuration file. The node becomes the first one of a new cluster, with a new id and history; \
the cluster that was saved isn't touched. Its mode may be another than that of the saved one. The other nodes that the configuration names join by \
themselves when they are started with empty folders.

Interrupted, it leaves a folder that no node starts in; the same command carries on."
)]
pub(in crate::cli) struct RestoreArgs {
    /// The saved file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    flags: NodeFlags,
    /// The peers that are witnesses, by name: a chain's voters without data
    #[arg(long = "witness", value_name = "NAME,…", value_delimiter = ',')]
    witnesses: Vec<String>,
    #[command(flatten)]
    output: Output,
}

fn failure(error: RestoreError) -> Failure {
    match error {
        RestoreError::Settings(_) => Failure::Usage(error.to_string()),
        error if error.is_damage() => Failure::Damage(error.into()),
        error => Failure::Failed(error.into()),
    }
}

pub(super) fn run(args: &RestoreArgs) -> Result<(), Failure> {
    restrict_umask();
    if args.flags.rejoin {
        return Err(Failure::Usage("--rejoin is for `replicator node`: restore into an empty folder".into()));
    }
    let config = NodeConfig::load(&args.flags, false).map_err(|error| Failure::Usage(error.to_string()))?;
    let restore = Restore::open(&args.file).map_err(failure)?;
    let bar = saved::bar("restoring", restore.head().manifest.data_bytes);
    let restored = restore.carry_out(&config, &args.witnesses, &Seams::real(), &mut |bytes, _| bar.set_position(bytes));
    bar.finish_and_clear();
    let restored = restored.map_err(failure)?;
    let format = args.output.output;
    if restored.carried_on {
        output::note(format, "a restore was begun here before, and had not ended: it was carried on");
    }
    match format {
        Format::Json => output::print_json(&json!({
            "saved": saved::described(restore.head()),
            "restored": {
                "node_id": restored.node,
                "disk_id": restored.disk.to_string(),
                "cluster_id": restored.cluster.to_string(),
                "lineage": restored.lineage.to_string(),
                "mode": config.mode.to_string(),
                "least_chain": restored.least_chain,
                "join": restored.others.iter().map(|(name, _)| name).collect::<Vec<_>>(),
                "carried_on": restored.carried_on,
            },
        }))?,
        Format::Table => tell(&restored, &restore)?,
    }
    Ok(())
}

fn tell(restored: &Restored, restore: &Restore) -> io::Result<()> {
    let Restored { node, disk, cluster, lineage, others, least_chain, .. } = restored;
    let (old, mut out) = (&restore.head().manifest.info, anstream::stdout().lock());
    writeln!(
        out,
        "{node} is the first node of the new cluster {cluster}, lineage {lineage}, as disk {disk}, with all of {} up to entry {}. Next:",
        old.cluster, old.position.index
    )?;
    writeln!(out, "- start {node} as ever")?;
    let (replicas, witnesses) = recover::by_kind(others);
    if !replicas.is_empty() {
        writeln!(out, "- start {} with empty folders: they join by themselves", replicas.join(", "))?;
    }
    if !witnesses.is_empty() {
        writeln!(out, "- start {} with `replicator witness`, with empty folders too", witnesses.join(", "))?;
    }
    recover::tell_least_chain(&mut out, *least_chain)?;
    writeln!(
        out,
        "- clients with a session, an event cursor or a log index of the old cluster get LINEAGE_MISMATCH here: they open a new session, and read the \
         state anew"
    )
}

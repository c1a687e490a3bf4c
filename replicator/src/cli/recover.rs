//! `replicator recover`: the operator's override, after a loss that nothing else brings the cluster back from.

use std::{
    io::{self, BufRead, IsTerminal as _, Write as _},
    path::PathBuf,
};

use clap::Args;
use replicator_storage::restrict_umask;
use serde_json::{Value, json};

use super::{
    Failure, Output,
    output::{self, Format},
};
use crate::{
    node::{Account, Recovered, Recovery, RecoveryError},
    replication::Member,
    seams::Seams,
};

#[derive(Debug, Args)]
#[command(
    after_help = "Use it only if enough of the others are lost for ever; else start them again. Of several folders that are \
left, recover the one with the most: the command tells what each has before it changes anything, and without --dead it always stops there.

The node becomes the only member of a new history (lineage) of the same cluster, with all that its log holds. The others join it anew, each \
started with --rejoin; none of them may go on with its old folder."
)]
pub(super) struct RecoverArgs {
    /// The stopped node's data folder
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// The other members, witnesses too, each by its name: you attest that they are dead, or will be started only with --rejoin
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    dead: Vec<String>,
    /// Don't ask
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    output: Output,
}

fn failure(error: RecoveryError) -> Failure {
    if error.is_damage() { Failure::Damage(error.into()) } else { Failure::Failed(error.into()) }
}

pub(super) async fn run(args: RecoverArgs) -> Result<(), Failure> {
    restrict_umask();
    let format = args.output.output;
    let recovery = Recovery::open(&args.data_dir, &Seams::real()).map_err(failure)?;
    let account = recovery.account().cloned();
    match &account {
        None => output::note(
            format,
            "a recovery of this folder was begun and attested before, and has not ended: carrying it on",
        ),
        Some(account) => {
            if format == Format::Table {
                print(account)?;
            }
            attested(account, &args).inspect_err(|_| {
                if format == Format::Json {
                    let _ = output::print_json(&json!({ "account": described(account), "recovered": null }));
                }
            })?;
        }
    }
    let recovered = recovery.carry_out().map_err(failure)?;
    match format {
        Format::Table => tell(&recovered)?,
        Format::Json => output::print_json(&json!({
            "account": account.as_ref().map(described),
            "recovered": {
                "node_id": recovered.node,
                "disk_id": recovered.disk.to_string(),
                "lineage": recovered.lineage.to_string(),
                "least_chain": recovered.least_chain,
                "rejoin": recovered.others.iter().map(|(name, _)| name).collect::<Vec<_>>(),
            },
        }))?,
    }
    Ok(())
}

/// Whether the operator has named every other member, and means it.
fn attested(account: &Account, args: &RecoverArgs) -> Result<(), Failure> {
    let (strangers, missing) = account.unattested(&args.dead);
    if !strangers.is_empty() {
        let why =
            format!("--dead names {}: no other member of this folder's cluster is called so", strangers.join(", "));
        return Err(Failure::Usage(why));
    }
    if !missing.is_empty() {
        return Err(Failure::Usage(format!(
            "--dead doesn't name {}. Nothing was changed. If one of these can still be started with its folder, start it instead; if all of them are \
             lost for ever, name each",
            missing.join(", ")
        )));
    }
    if args.yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        return Err(Failure::Usage(
            "nobody is there to ask: standard input is no terminal. Nothing was changed. Give --yes".into(),
        ));
    }
    let mut stderr = io::stderr();
    write!(stderr, "\nThis can't be undone. To go on, type the node's name or the cluster's id: ")?;
    stderr.flush()?;
    if confirms(&mut io::stdin().lock(), account)? {
        Ok(())
    } else {
        Err(Failure::Failed(anyhow::anyhow!("it was not confirmed; nothing was changed")))
    }
}

fn confirms(input: &mut impl BufRead, account: &Account) -> io::Result<bool> {
    let mut typed = String::new();
    input.read_line(&mut typed)?;
    let cluster = account.cluster.map(|cluster| cluster.to_string());
    Ok(typed.trim() == account.node || cluster.is_some_and(|cluster| typed.trim() == cluster))
}

fn print(account: &Account) -> io::Result<()> {
    let mut out = anstream::stdout().lock();
    let cluster = account.cluster.map_or_else(|| "none".to_owned(), |cluster| cluster.to_string());
    writeln!(out, "node        {}, disk {}", account.node, account.disk)?;
    writeln!(out, "cluster     {cluster}, lineage {}, {} mode", account.lineage, account.mode)?;
    writeln!(out, "log         ends at entry {} of epoch {}", account.last.index, account.last.epoch)?;
    match account.committed {
        Some(committed) => writeln!(out, "committed   known up to entry {committed}")?,
        None => writeln!(out, "committed   not known")?,
    }
    if let Some(peers) = account.peers_durable {
        writeln!(out, "others      had entry {peers} durably when they last told")?;
    }
    let own = account.own.as_ref().map_or_else(|| format!("not this disk of {}", account.node), member_words);
    let members: Vec<String> = [own].into_iter().chain(account.others.iter().map(member_words)).collect();
    writeln!(out, "members     {}", members.join("; "))?;
    if let Some(chain) = &account.chain {
        let start =
            chain.start.map_or_else(|| "on empty logs".to_owned(), |start| format!("after entry {}", start.index));
        writeln!(out, "chain       epoch {}: {}, begun {start}", chain.epoch, chain.members.join(" → "))?;
    }
    writeln!(out, "\nWhat a recovery of this folder means:")?;
    account.losses.iter().try_for_each(|loss| writeln!(out, "- {loss}"))
}

fn member_words(member: &Member) -> String {
    let part = match (member.witness, member.voter) {
        (true, _) => " (witness)",
        (false, true) => "",
        (false, false) => " (no voter)",
    };
    format!("{}{part} on disk {}", member.node, member.disk)
}

fn tell(recovered: &Recovered) -> io::Result<()> {
    let Recovered { node, disk, lineage, others, least_chain } = recovered;
    let mut out = anstream::stdout().lock();
    writeln!(out, "\n{node} is the only member of lineage {lineage} now, as disk {disk}. Next:")?;
    writeln!(out, "- start {node} as ever")?;
    let (replicas, witnesses) = by_kind(others);
    if !replicas.is_empty() {
        writeln!(
            out,
            "- start {} with `replicator node --rejoin`, one after the other, on new or old machines",
            replicas.join(", ")
        )?;
    }
    if !witnesses.is_empty() {
        writeln!(out, "- start {} with `replicator witness --rejoin`", witnesses.join(", "))?;
    }
    tell_least_chain(&mut out, *least_chain)?;
    writeln!(
        out,
        "- clients with a session, an event cursor or a log index of before get LINEAGE_MISMATCH: they open a new session and read the state anew. \
         Whether a request without an answer was executed, they can find out by reading only"
    )
}

/// The names of replicas, and of witnesses.
pub(super) fn by_kind(others: &[(String, bool)]) -> (Vec<&str>, Vec<&str>) {
    let names = |witness: bool| others.iter().filter(|(_, is)| *is == witness).map(|(name, _)| name.as_str()).collect();
    (names(false), names(true))
}

/// What a chain that begins anew needs, if that is more than its first member.
pub(super) fn tell_least_chain(out: &mut impl io::Write, least_chain: u32) -> io::Result<()> {
    if least_chain > 1 {
        writeln!(
            out,
            "- the chain takes writes from {least_chain} members on (chain.least_length): until then it only reads"
        )?;
    }
    Ok(())
}

fn described(account: &Account) -> Value {
    let member = |member: &Member| json!({ "node_id": member.node, "disk_id": member.disk.to_string(), "voter": member.voter, "witness": member.witness });
    json!({
        "node_id": account.node,
        "disk_id": account.disk.to_string(),
        "cluster_id": account.cluster.map(|cluster| cluster.to_string()),
        "lineage": account.lineage.to_string(),
        "mode": account.mode.to_string(),
        "last": { "epoch": account.last.epoch.0, "log_index": account.last.index.0 },
        "committed_log_index": account.committed.map(|index| index.0),
        "peers_durable_log_index": account.peers_durable.map(|index| index.0),
        "member": account.own.as_ref().map(member),
        "others": account.others.iter().map(member).collect::<Vec<_>>(),
        "chain": account.chain.as_ref().map(|chain| json!({
            "epoch": chain.epoch.0,
            "members": chain.members,
            "start_log_index": chain.start.map(|start| start.index.0),
            "holds_this_disk": chain.holds,
        })),
        "losses": account.losses,
    })
}

#[cfg(test)]
mod tests {
    use replicator_types::{ClusterId, DiskId, Lineage, Position};

    use super::*;
    use crate::config::Mode;

    #[test]
    fn only_the_nodes_name_or_the_clusters_id_confirms() {
        let cluster = ClusterId([0xab; 16]);
        let account = Account {
            node: "n1".into(),
            disk: DiskId(1),
            cluster: Some(cluster),
            lineage: Lineage(2),
            mode: Mode::Chain,
            last: Position::new(1, 1),
            committed: None,
            peers_durable: None,
            own: None,
            others: Vec::new(),
            chain: None,
            losses: Vec::new(),
        };
        let said = |typed: &str| confirms(&mut typed.as_bytes(), &account).unwrap();
        assert!(said("n1\n") && said(&format!("  {cluster}  \n")) && said("n1"));
        for typed in ["", "\n", "y\n", "yes\n", "n2\n", "N1\n", "0000000000000001\n"] {
            assert!(!said(typed), "{typed:?} was taken");
        }
    }
}

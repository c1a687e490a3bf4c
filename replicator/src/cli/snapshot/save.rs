//! `replicator snapshot save`.

use std::{
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, anyhow};
use clap::Args;
use replicator_client::Client;
use replicator_proto::replicator::v1 as pb;
use replicator_storage::{NodeDir, SavedHead, SavedWriter, SnapshotPiece, restrict_umask};
use replicator_types::LogIndex;

use super::saved;
use crate::cli::{
    Failure, Output, log,
    output::{self, Format},
    status::{Surveyed, survey},
};

/// Bytes that are copied at once.
const PIECE_BYTES: usize = 1 << 20;

#[derive(Debug, Args)]
#[command(
    after_help = "The file holds everything that clients have stored, and the ids of their sessions: keep it as you keep the nodes' folders. It is \
written beside its place, checked, and then given its name."
)]
pub(in crate::cli) struct SaveArgs {
    /// The file to make
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Client addresses of one or more nodes
    #[arg(
        long,
        env = "REPLICATOR_ENDPOINTS",
        value_name = "HOST:PORT,…",
        value_delimiter = ',',
        required_unless_present = "data_dir"
    )]
    endpoints: Vec<String>,
    /// Which node's state; if not given, a replica that isn't the primary
    #[arg(long, value_name = "NAME", conflicts_with = "data_dir")]
    node: Option<String>,
    /// Save the node's newest image as it is, rather than one taken now
    #[arg(long, conflicts_with = "data_dir")]
    newest: bool,
    /// Save an image from this folder of a stopped node, rather than ask a running one
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// With --data-dir: the index of the image's last entry; the newest image, if not given
    #[arg(long, value_name = "INDEX", requires = "data_dir")]
    index: Option<u64>,
    /// Replace the file, if there is one
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(args: SaveArgs) -> Result<(), Failure> {
    restrict_umask();
    if !args.force && args.file.symlink_metadata().is_ok() {
        let file = args.file.display();
        return Err(Failure::Usage(format!("{file} exists already; name another file, or replace it with --force")));
    }
    let (head, up_to_date) = match &args.data_dir {
        Some(_) => (from_folder(&args)?, None),
        None => {
            let saving = from_node(&args);
            let (head, up_to_date) = tokio::select! {
                saved = saving => saved?,
                // Dropped, it leaves nothing behind.
                _ = tokio::signal::ctrl_c() => return Err(anyhow!("interrupted; nothing was saved").into()),
            };
            (head, Some(up_to_date))
        }
    };
    let format = args.output.output;
    if up_to_date == Some(false) && !args.newest {
        output::note(
            format,
            "no primary has confirmed that this replica holds all that was acknowledged: the snapshot may lack what others have",
        );
    }
    match format {
        Format::Json => {
            let mut described = saved::described(&head);
            described["file"] = args.file.display().to_string().into();
            described["up_to_date"] = up_to_date.filter(|_| !args.newest).into();
            output::print_json(&described)?;
        }
        Format::Table => {
            let (info, bytes) = (&head.manifest.info, output::bytes(head.manifest.data_bytes));
            println!(
                "saved {} of {} up to entry {} ({bytes}) into {}",
                info.cluster,
                head.origin.node,
                info.position.index,
                args.file.display()
            );
        }
    }
    Ok(())
}

fn from_folder(args: &SaveArgs) -> Result<SavedHead, Failure> {
    let folder = args.data_dir.as_deref().expect("the caller has looked");
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
    let now_us = i64::try_from(since_1970).unwrap_or(i64::MAX);
    let index = args.index.map(LogIndex);
    let source = NodeDir::saved(folder, index, env!("CARGO_PKG_VERSION"), now_us).map_err(log::unreadable)?;
    let source = source.with_context(|| match index {
        Some(index) => format!("there is no image of index {index}; `replicator snapshot list` shows those there are"),
        None => {
            "there is no image in this folder: its log has everything, and only a running node can make an image of that. Start it, and save \
             from it"
                .to_owned()
        }
    })?;
    let mut writer = SavedWriter::begin(&args.file, args.force)?;
    let bar = saved::bar("saving", source.bytes());
    while writer.written() < source.bytes() {
        writer.take(&source.read_at(writer.written(), PIECE_BYTES)?)?;
        bar.set_position(writer.written());
    }
    let head = writer.finish().map_err(log::unreadable)?;
    bar.finish_and_clear();
    Ok(head)
}

/// What was saved, and whether it holds all that was acknowledged before.
async fn from_node(args: &SaveArgs) -> Result<(SavedHead, bool), Failure> {
    let client = Client::builder().endpoints(args.endpoints.iter().cloned()).build()?;
    let nodes = survey(&client, &args.endpoints).await;
    let endpoint = choose(&nodes, args.node.as_deref())?;
    fetch(&client, endpoint, args.newest, &args.file, args.force).await
}

/// Saves the state of the node at `endpoint` into a file: its newest image, or one that it takes now.
pub(in crate::cli) async fn fetch(
    client: &Client,
    endpoint: &str,
    newest: bool,
    file: &Path,
    force: bool,
) -> Result<(SavedHead, bool), Failure> {
    let request = pb::SaveSnapshotRequest { newest };
    let words = |status: tonic::Status| anyhow!("{}", status.message());
    let mut pieces = client.admin(endpoint).await?.save_snapshot(request).await.map_err(words)?.into_inner();
    let cut = || anyhow!("the node ended the transfer early; nothing was saved");
    let first = pieces.message().await.map_err(words)?.ok_or_else(cut)?;
    let mut writer = SavedWriter::begin(file, force)?;
    let bar = saved::bar("saving", first.total_bytes);
    while let Some(pb::SaveSnapshotResponse { offset, piece, checksum, .. }) = pieces.message().await.map_err(words)? {
        writer.take(&SnapshotPiece { offset, bytes: piece, checksum })?;
        bar.set_position(writer.written());
    }
    if writer.written() != first.total_bytes {
        return Err(cut().into());
    }
    let head = writer.finish().map_err(log::unreadable)?;
    bar.finish_and_clear();
    Ok((head, first.up_to_date))
}

/// The node that was named; or a replica that serves, not the primary if there is another, and the furthest one.
pub(in crate::cli) fn choose<'a>(nodes: &'a [Surveyed], named: Option<&str>) -> anyhow::Result<&'a str> {
    let answers = nodes.iter().filter_map(|node| Some((node, node.status.as_ref().ok()?)));
    let chosen = match named {
        Some(name) => {
            let found = answers.clone().find(|(_, status)| status.node_id == name);
            found.with_context(|| format!("no node called {name:?} answers"))?
        }
        None => {
            let has_state = answers.filter(|(_, status)| !status.module_sha256.is_empty() && !status.witness);
            let rank = |status: &pb::StatusResponse| {
                let part = match status.state() {
                    pb::NodeState::Follower => 3,
                    pb::NodeState::Primary => 2,
                    pb::NodeState::Learner | pb::NodeState::Candidate => 1,
                    _ => 0,
                };
                (part, status.applied_log_index)
            };
            let best = has_state.max_by_key(|(_, status)| rank(status));
            best.context("no replica of a cluster answers; from a stopped node's folder, save with --data-dir")?
        }
    };
    Ok(&chosen.0.endpoint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, state: pb::NodeState, applied: u64) -> Surveyed {
        let status = pb::StatusResponse {
            node_id: name.into(),
            state: state.into(),
            applied_log_index: applied,
            module_sha256: vec![1; 32].into(),
            ..pb::StatusResponse::default()
        };
        Surveyed { endpoint: format!("at-{name}"), status: Ok(status) }
    }

    #[test]
    fn furthest_follower_is_saved_before_the_primary_and_whoever_is_named_before_all() {
        use pb::NodeState::{Follower, Halted, Learner, Primary};
        let down = Surveyed { endpoint: "at-n5".into(), status: Err("down".into()) };
        let nodes = vec![
            node("n1", Primary, 9),
            node("n2", Follower, 7),
            node("n3", Follower, 8),
            node("n4", Learner, 9),
            down,
        ];
        assert_eq!(choose(&nodes, None).unwrap(), "at-n3");
        assert_eq!(choose(&nodes, Some("n1")).unwrap(), "at-n1");
        assert!(choose(&nodes, Some("n5")).unwrap_err().to_string().contains("\"n5\""));
        let alone = [node("n1", Primary, 9), node("n4", Learner, 9), node("n6", Halted, 10)];
        assert_eq!(choose(&alone, None).unwrap(), "at-n1");
        let mut witness = node("w1", Follower, 9);
        witness.status.as_mut().unwrap().witness = true;
        assert!(choose(&[witness], None).unwrap_err().to_string().contains("--data-dir"));
    }
}

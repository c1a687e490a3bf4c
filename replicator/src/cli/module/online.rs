//! A running replica's newest image and the entries after it, collected for a comparison here.

use std::{
    collections::BTreeSet,
    fs,
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use replicator_client::Client;
use replicator_machine::{Command, Entry, ModuleSource};
use replicator_offline::{Collected, History as _, Logged, Modules, Saved};
use replicator_proto::replicator::v1 as pb;
use replicator_storage::{SavedSnapshot, restrict_umask};
use replicator_types::{LogIndex, Position, codec};
use tonic::Code;

use super::{download, nodes};
use crate::cli::{
    Failure, log,
    output::{self, Format},
    replay::source::{bar, unusable},
    snapshot::save::{choose, fetch},
    status::survey,
};

/// What is kept of the log in memory, in bytes; the comparison ends where that is reached.
const ENTRIES_BYTES_MAX: usize = 2 << 30;

/// Collects from one of the nodes: the one that is named, or a replica that isn't the primary.
pub(super) async fn collect(endpoints: &[String], node: Option<&str>, format: Format) -> Result<Collected, Failure> {
    restrict_umask();
    let client = Client::builder().endpoints(endpoints.iter().cloned()).build()?;
    let nodes = survey(&client, endpoints).await;
    let endpoint = choose(&nodes, node)?.to_owned();
    let has_image = nodes.iter().any(|node| {
        node.endpoint == endpoint && node.status.as_ref().is_ok_and(|status| status.snapshot_log_index > 0)
    });
    let read = async |from: LogIndex| read(&client, &endpoint, from, format).await;
    if !has_image && let Ok(entries) = read(LogIndex(0)).await? {
        let modules = named(&client, &endpoint, &Modules::default(), &entries).await?;
        return Collected::from_genesis(entries, modules).map_err(unusable);
    }
    let file = Temporary::new();
    tokio::select! {
        fetched = fetch(&client, &endpoint, true, &file.0, false) => drop(fetched?),
        _ = tokio::signal::ctrl_c() => return Err(anyhow!("interrupted").into()),
    }
    let saved = SavedSnapshot::open(&file.0).and_then(Saved::new).map_err(log::unreadable)?;
    drop(file); // It stays readable when its name is gone.
    let image = saved.snapshot().head().manifest.position();
    match read(image.index.next()).await? {
        Ok(entries) => {
            let modules = named(&client, &endpoint, &*saved.modules(), &entries).await?;
            Collected::after_image(saved, entries, modules).map_err(unusable)
        }
        Err(purged) => Err(anyhow!("{purged}: the node has taken another image meanwhile; try again").into()),
    }
}

/// The modules that entries name, and that aren't known.
async fn named(
    client: &Client,
    endpoint: &str,
    known: &dyn ModuleSource,
    entries: &[Logged],
) -> anyhow::Result<Vec<Bytes>> {
    let mut named = BTreeSet::new();
    for entry in entries.iter().filter_map(|logged| logged.entry.as_deref()) {
        match codec::decode::<Entry>(entry).context("the node sent an entry that can't be read")?.command {
            Command::Activate { module, .. } => named.insert(module),
            Command::Genesis(genesis) => named.insert(genesis.module),
            _ => false,
        };
    }
    let mut modules = Vec::new();
    for hash in named.into_iter().filter(|hash| known.module(hash).is_none()) {
        match download::fetch(&mut client.admin(endpoint).await?, &hash.0).await {
            Ok(module) => modules.push(module),
            // An order that was refused may name one that nobody needs; else the run says that it lacks it.
            Err(status) if status.code() == Code::NotFound => {}
            Err(status) => return Err(nodes::told(status)),
        }
    }
    Ok(modules)
}

/// The entries from `from` on, or why they are no longer there.
async fn read(
    client: &Client,
    endpoint: &str,
    from: LogIndex,
    format: Format,
) -> Result<Result<Vec<Logged>, String>, Failure> {
    let request = pb::ReadLogRequest { from_log_index: from.0 };
    let mut batches = match client.admin(endpoint).await?.read_log(request).await {
        Ok(batches) => batches.into_inner(),
        Err(status) if status.code() == Code::OutOfRange => return Ok(Err(status.message().to_owned())),
        Err(status) => return Err(nodes::told(status).into()),
    };
    let bar = bar("reading", from, from);
    let (mut entries, mut bytes) = (Vec::new(), 0);
    loop {
        let batch = batches.message().await.map_err(nodes::told)?;
        let batch = batch.ok_or_else(|| anyhow!("the node ended the transfer early"))?;
        if batch.entries.is_empty() {
            break;
        }
        bar.set_length((batch.to_log_index + 1).saturating_sub(from.0));
        bytes += batch.entries.iter().map(|entry| entry.entry.len()).sum::<usize>();
        entries.extend(batch.entries.into_iter().map(|entry| Logged {
            position: Position::new(entry.epoch, entry.log_index),
            entry: (!entry.own).then_some(entry.entry),
        }));
        bar.set_position(entries.len() as u64);
        if bytes > ENTRIES_BYTES_MAX {
            let held = output::bytes(bytes as u64);
            output::note(format, &format!("{held} of entries were read, as many as are kept; the others are left out"));
            break;
        }
    }
    bar.finish_and_clear();
    Ok(Ok(entries))
}

/// A file that is removed.
struct Temporary(PathBuf);

impl Temporary {
    fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        Self(std::env::temp_dir().join(format!("replicator-diff-{}-{now}", std::process::id())))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0); // Whoever cleans the folder finds it by its name.
    }
}

//! The images in a stopped node's folder, and saved ones: listed, shown and checked.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use clap::Args;
use replicator_storage::{NodeDir, SnapshotManifest};
use serde_json::{Value, json};

use super::{
    super::{
        Failure, Output, log,
        output::{self, Format},
    },
    saved,
};

#[derive(Debug, Args)]
pub(in crate::cli) struct ListArgs {
    /// The node's data folder
    #[arg(long, env = "REPLICATOR_DATA_DIR", value_name = "DIR")]
    data_dir: PathBuf,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct InspectArgs {
    /// A saved file; or with --data-dir the index of an image's last entry: the newest image, if not given
    #[arg(value_name = "FILE|INDEX")]
    what: Option<String>,
    /// A stopped node's data folder
    #[arg(long, env = "REPLICATOR_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

/// The images of a folder, the oldest first, and what is damaged.
fn images(data_dir: &Path) -> Result<(Vec<SnapshotManifest>, Vec<String>), Failure> {
    let report = NodeDir::verify(data_dir).map_err(log::unreadable)?;
    let (mut whole, mut damages) = (Vec::new(), Vec::new());
    for snapshot in report.snapshots.into_iter().flat_map(|folder| folder.snapshots) {
        match snapshot.manifest {
            Ok(manifest) => whole.push(manifest),
            Err(error) => damages.push(error.to_string()),
        }
    }
    Ok((whole, damages))
}

pub(super) fn list(args: &ListArgs) -> Result<(), Failure> {
    let (images, damages) = images(&args.data_dir)?;
    match args.output.output {
        Format::Json => {
            let images: Vec<Value> = images.iter().map(manifest_json).collect();
            output::print_json(&json!({ "images": images, "damages": damages }))?;
        }
        Format::Table => {
            let mut table = output::table(&["index", "epoch", "state", "file", "taken (s since 1970)", "digest"]);
            for image in &images {
                let info = &image.info;
                table.add_row([
                    info.position.index.to_string(),
                    info.position.epoch.to_string(),
                    output::bytes(image.image_bytes),
                    output::bytes(image.data_bytes),
                    (info.created_us / 1_000_000).to_string(),
                    format!("{:016x}", info.digest),
                ]);
            }
            output::print_table(&mut table)?;
            if images.is_empty() && damages.is_empty() {
                println!("no image was taken here yet: the log has everything");
            }
        }
    }
    match damages.first() {
        None => Ok(()),
        Some(first) => Err(Failure::Damage(anyhow!(
            "{} of images: {first}. The node takes another one, or fetches it from a peer, when it starts",
            output::count(damages.len(), "damage")
        ))),
    }
}

pub(super) fn inspect(args: &InspectArgs) -> Result<(), Failure> {
    let index = args.what.as_deref().and_then(|what| what.parse().ok());
    let json = match (&args.what, &args.data_dir) {
        (Some(what), data_dir) if index.is_none() || data_dir.is_none() => saved::inspect(Path::new(what))?,
        (_, Some(data_dir)) => of_folder(data_dir, index)?,
        (_, None) => return Err(Failure::Usage("name a saved file, or a stopped node's folder by --data-dir".into())),
    };
    match args.output.output {
        Format::Json => output::print_json(&json)?,
        Format::Table => print_fields(&json),
    }
    Ok(())
}

/// An image in a stopped node's folder: that of an index, or the newest.
fn of_folder(data_dir: &Path, index: Option<u64>) -> Result<Value, Failure> {
    let (images, _) = images(data_dir)?;
    let found = match index {
        Some(index) => images.iter().find(|image| image.position().index.0 == index),
        None => images.last(),
    };
    let there: Vec<String> = images.iter().map(|image| image.position().index.to_string()).collect();
    let image = found.with_context(|| match (index, there.is_empty()) {
        (_, true) => "there is no whole image in this folder".to_owned(),
        (Some(index), false) => format!("there is no whole image of index {index}; there are: {}", there.join(", ")),
        (None, false) => "no image".to_owned(),
    })?;
    Ok(manifest_json(image))
}

/// Names and values, one on each line.
pub(in crate::cli) fn print_fields(json: &Value) {
    for (key, value) in json.as_object().into_iter().flatten() {
        println!("{key:<18} {}", value.as_str().map_or_else(|| value.to_string(), str::to_owned));
    }
}

pub(super) fn manifest_json(image: &SnapshotManifest) -> Value {
    let info = &image.info;
    json!({
        "log_index": info.position.index.0,
        "epoch": info.position.epoch.0,
        "cluster_id": info.cluster.to_string(),
        "lineage": info.lineage.to_string(),
        "module_sha256": info.module.to_string(),
        "engine": info.engine,
        "state_digest": format!("{:016x}", info.digest),
        "image_bytes": image.image_bytes,
        "data_bytes": image.data_bytes,
        "data_sha256": output::hex(&image.data_sha256),
        "created_us": info.created_us,
    })
}

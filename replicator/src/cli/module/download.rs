//! `replicator module download`.

use std::{fs::OpenOptions, io::Write as _, path::PathBuf, time::Duration};

use anyhow::Context as _;
use bytes::{Bytes, BytesMut};
use clap::Args;
use replicator_proto::replicator::v1::{self as pb, admin_service_client::AdminServiceClient};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tonic::{Code, Status, transport::Channel};

use super::{
    super::{
        Endpoints, Failure, Output,
        output::{self, Format},
    },
    nodes::Nodes,
};
use crate::node::MODULE_BYTES_MAX;

const DOWNLOAD_MAX: Duration = Duration::from_secs(30);

#[derive(Debug, Args)]
pub(in crate::cli) struct DownloadArgs {
    /// The first digits of its hash; `module list` shows them
    #[arg(value_name = "HASH")]
    module: String,
    /// The file to write. One that is there is never overwritten
    #[arg(value_name = "FILE.wasm")]
    file: PathBuf,
    #[command(flatten)]
    endpoints: Endpoints,
    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(args: DownloadArgs) -> Result<(), Failure> {
    let cluster = Nodes::new(&args.endpoints.endpoints, DOWNLOAD_MAX)?;
    let hash = cluster.hash(&args.module).await?;
    // One that doesn't have it is no answer: the next one may.
    let elsewhere = |status: Status| match status.code() {
        Code::NotFound => Status::unavailable(status.message()),
        _ => status,
    };
    let module = cluster.call(async |mut admin| fetch(&mut admin, &hash).await.map_err(elsewhere)).await?;
    let path = args.file.display();
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&args.file)
        .with_context(|| format!("can't make {path}"))?;
    file.write_all(&module).and_then(|()| file.sync_all()).with_context(|| format!("can't write {path}"))?;
    match args.output.output {
        Format::Json => output::print_json(&json!({
            "sha256": output::hex(&hash),
            "bytes": module.len(),
            "file": args.file,
        }))?,
        Format::Table => println!("{path}: {} ({})", output::hex(&hash), output::bytes(module.len() as u64)),
    }
    Ok(())
}

/// A module of a node's store.
///
/// # Errors
/// What the node answers; UNAVAILABLE, if what came is another module, so that the next node is asked.
pub(in crate::cli) async fn fetch(admin: &mut AdminServiceClient<Channel>, hash: &[u8]) -> Result<Bytes, Status> {
    let request = pb::DownloadModuleRequest { sha256: hash.to_vec().into() };
    let mut chunks = admin.download_module(request).await?.into_inner();
    let mut module = BytesMut::new();
    while let Some(pb::DownloadModuleResponse { chunk }) = chunks.message().await? {
        if module.len() + chunk.len() > MODULE_BYTES_MAX {
            return Err(Status::unavailable("the node sent more than a module may have"));
        }
        module.extend_from_slice(&chunk);
    }
    match Sha256::digest(&module)[..] == *hash {
        true => Ok(module.freeze()),
        false => Err(Status::unavailable("the node sent another module")),
    }
}

use crate::cli::{Failure, output::Format};
use clap::Args;
use replicator_offline::History;
use replicator_types::LogIndex;
use std::path::Path;
#[derive(Debug, Args)]
pub(in crate::cli) struct DiffArgs {}
pub(super) async fn run(_: DiffArgs) -> Result<(), Failure> {
    Ok(())
}
pub(in crate::cli) fn compare(_: &dyn History, _: &Path, _: LogIndex, _: Format) -> Result<(), Failure> {
    Ok(())
}

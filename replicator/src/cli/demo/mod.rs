//! (next)
use clap::Args;
use super::Failure;
#[derive(Debug, Args)]
pub(super) struct DemoArgs {}
pub(super) async fn run(_: DemoArgs) -> Result<(), Failure> { Ok(()) }

//! `replicator module activate` and `rollback`.

use std::{path::Path, time::Duration};

use clap::Args;
use replicator_proto::replicator::v1::{self as pb, admin_service_client::AdminServiceClient};
use serde_json::json;
use tonic::transport::Channel;

use super::{
    super::{
        Endpoints, Failure, Output, init,
        output::{self, Format},
    },
    nodes::{Nodes, short, whole_hash},
    upload,
};

#[derive(Debug, Args)]
#[command(
    after_help = "The module must be ready at every member of the chain, or at a majority of the voters. At one log index every replica takes the active
module's snapshot and restores it into this one. If that fails, the active module goes on as if nothing had been, the reason is printed, and the exit code is 1.
Sessions, subscriptions and stored answers live on. Repeated with the same --expected after a lost answer, it tells where the switch happened."
)]
pub(in crate::cli) struct ActivateArgs {
    /// The module: its file, which is uploaded first, or the first digits of its hash
    #[arg(value_name = "HASH|FILE")]
    module: String,
    /// The module that must be active until then. Default: whichever is
    #[arg(long, value_name = "HASH")]
    expected: Option<String>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
#[command(
    after_help = "It is an activation like any other: from a snapshot of the current state, never from an old image. If the module before doesn't accept the schema
that the active one writes, it is refused, and the active one goes on."
)]
pub(in crate::cli) struct RollbackArgs {
    /// The module that is given up. Default: whichever is active
    #[arg(long, value_name = "HASH")]
    expected: Option<String>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct Common {
    /// How long it is tried
    #[arg(long, value_name = "SECONDS", value_parser = output::seconds, default_value = "60")]
    timeout: Duration,
    #[command(flatten)]
    endpoints: Endpoints,
    #[command(flatten)]
    output: Output,
}

impl Common {
    fn nodes(&self) -> anyhow::Result<Nodes> {
        Nodes::new(&self.endpoints.endpoints, self.timeout)
    }
}

/// The expected module: said once, so that however often it is asked for after lost answers, it happens once.
async fn expected(cluster: &Nodes, said: Option<&str>) -> anyhow::Result<Vec<u8>> {
    match said {
        Some(digits) => cluster.hash(digits).await,
        None => cluster.active().await,
    }
}

pub(super) async fn run(args: ActivateArgs) -> Result<(), Failure> {
    let cluster = args.common.nodes()?;
    let file = Path::new(&args.module);
    let module = if whole_hash(&args.module).is_none() && (file.is_file() || args.module.contains(['/', '.'])) {
        let uploaded = upload::spread(&cluster, init::read(file)?.into(), args.common.timeout).await?;
        uploaded.judge()?;
        uploaded.hash.to_vec()
    } else {
        cluster.hash(&args.module).await?
    };
    let expected = expected(&cluster, args.expected.as_deref()).await?;
    tell(&args.common, switch(&cluster, &module, &expected).await?)
}

/// Activates a module in the place of the expected one.
pub(in crate::cli) async fn switch(
    cluster: &Nodes,
    module: &[u8],
    expected: &[u8],
) -> anyhow::Result<pb::ActivateModuleResponse> {
    let activate = async |mut admin: AdminServiceClient<Channel>| {
        let (sha256, expected_sha256) = (module.to_vec().into(), expected.to_vec().into());
        admin.activate_module(cluster.switch(pb::ActivateModuleRequest { sha256, expected_sha256 })).await
    };
    Ok(cluster.call(activate).await?.into_inner())
}

pub(super) async fn roll_back(args: RollbackArgs) -> Result<(), Failure> {
    let cluster = args.common.nodes()?;
    let expected = expected(&cluster, args.expected.as_deref()).await?;
    let roll_back = async |mut admin: AdminServiceClient<Channel>| {
        let expected_sha256 = expected.clone().into();
        admin.rollback_module(cluster.switch(pb::RollbackModuleRequest { expected_sha256 })).await
    };
    tell(&args.common, cluster.call(roll_back).await?.into_inner())
}

fn tell(common: &Common, done: pb::ActivateModuleResponse) -> Result<(), Failure> {
    match common.output.output {
        Format::Json => output::print_json(&json!({
            "sha256": output::hex(&done.sha256),
            "module": done.description,
            "log_index": done.log_index,
            "already": done.already,
            "previous_sha256": output::hex(&done.previous_sha256),
            "paused_us": (!done.already).then_some(done.paused_us),
            "state_digest": (!done.already).then(|| format!("{:016x}", done.state_digest)),
            "node_id": done.node_id,
            "lacking_node_ids": done.lacking_node_ids,
        }))?,
        Format::Table if done.already => println!(
            "{} ({}) is active already, since log index {}",
            done.description,
            short(&done.sha256),
            done.log_index
        ),
        Format::Table => {
            println!(
                "{} ({}) runs from log index {} on, in place of {}",
                done.description,
                short(&done.sha256),
                done.log_index,
                short(&done.previous_sha256)
            );
            println!(
                "the state machine of {} stood still for {:.1} ms; digest {:016x}",
                done.node_id,
                done.paused_us as f64 / 1e3,
                done.state_digest
            );
        }
    }
    if !done.lacking_node_ids.is_empty() {
        let lacking = done.lacking_node_ids.join(", ");
        output::note(
            common.output.output,
            &format!("{lacking} did not have the module yet, and will fetch it from the others at that index"),
        );
    }
    Ok(())
}

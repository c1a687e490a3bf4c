//! Nodes of an experiment's own: started for it, stopped and removed after it.

use std::path::PathBuf;

use anyhow::{Context as _, anyhow};
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{
    Failure, Output,
    cluster::{Cluster, Place, Setup, Storage, bundled_module},
    output,
    shape::ModeFlags,
};

/// What all experiments take.
#[derive(Debug, Args)]
pub(super) struct Own {
    #[command(flatten)]
    pub(super) mode: ModeFlags,
    /// Where the nodes' folders go, to be removed at the end. Default: where temporary files go
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    #[command(flatten)]
    pub(super) output: Output,
}

impl Own {
    /// Runs `experiment` on a cluster of so many replicas, which is founded with a bundled module, and whose nodes take images
    /// after so many bytes of log. The folders are kept if it fails.
    pub(super) async fn run<T>(
        &self,
        replicas: usize,
        module: &str,
        image_log_bytes: u64,
        experiment: impl AsyncFnOnce(&mut Cluster) -> anyhow::Result<T>,
    ) -> Result<T, Failure> {
        let storage = Storage { image_log_bytes: Some(image_log_bytes), ..Storage::default() };
        self.run_with(replicas, module, storage, experiment).await
    }

    /// The same, on nodes that keep their data so.
    pub(super) async fn run_with<T>(
        &self,
        replicas: usize,
        module: &str,
        storage: Storage,
        experiment: impl AsyncFnOnce(&mut Cluster) -> anyhow::Result<T>,
    ) -> Result<T, Failure> {
        let module = bundled_module(module)?; // before there is a folder
        let mut interrupt = signal(SignalKind::interrupt()).context("can't listen for signals")?;
        let mut terminate = signal(SignalKind::terminate()).context("can't listen for signals")?;
        let place = Place::Temporary { within: self.data_dir.as_deref(), command: "bench" };
        let setup = Setup { shape: self.mode.shape(replicas)?, place };
        let mut cluster = Cluster::prepare_with(setup, storage)?;
        let ended = tokio::select! {
            ended = async {
                cluster.start_all().await?;
                cluster.found(&module).await?;
                experiment(&mut cluster).await
            } => Ok(ended),
            _ = interrupt.recv() => Err("interrupted"),
            _ = terminate.recv() => Err("terminated"),
        };
        let fallen = cluster.fallen();
        cluster.stop().await;
        let failed = matches!(&ended, Ok(Err(_))) || !fallen.is_empty();
        if !failed {
            cluster.remove_temporary();
        } else {
            let kept = format!("the nodes' folders and logs are kept in {}", cluster.dir().display());
            output::note(self.output.output, &kept);
        }
        let ended = ended.map_err(|why| anyhow!(why))?;
        if !fallen.is_empty() {
            let error = ended.err().unwrap_or_else(|| anyhow!("the figures would mean nothing"));
            return Err(error.context(fallen.join("; ")).into());
        }
        Ok(ended?)
    }
}

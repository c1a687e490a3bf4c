//! One test: its folder, its turn, and what is told when it fails.

use std::{
    any::type_name,
    cell::{Cell, RefCell},
    fs::{self, File, TryLockError},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use tempfile::TempDir;

use crate::{Cluster, programs, until_within};

/// How long a test may take before it counts as hung.
const TEST_MAX: Duration = Duration::from_secs(120);
/// How long it may wait for its turn.
const TURN_MAX: Duration = Duration::from_secs(1_800);

/// What a test gets.
#[derive(Debug)]
pub struct Scenario {
    dir: TempDir,
    turn: RefCell<Option<File>>,
    clusters: Cell<usize>,
    began: Cell<Instant>,
    /// How many times [`TEST_MAX`] it may take.
    times: Cell<u32>,
    again: RefCell<Option<String>>,
}

/// Runs `body` as a test. When it fails, keeps its folder, and says where that is and how to run the test again.
///
/// # Panics
/// If `body` returns an error, panics, or doesn't end.
pub fn scenario<F>(body: F)
where
    F: AsyncFnOnce(&Scenario) -> Result<()>,
{
    let name = type_name::<F>().trim_end_matches("::{{closure}}");
    let (file, test) = name.split_once("::").unwrap_or(("", name));
    let dir = tempfile::Builder::new().prefix(&format!("replicator-{file}-")).tempdir().expect("a temporary folder");
    let (turn, again, began) = (RefCell::default(), RefCell::default(), Cell::new(Instant::now()));
    let scenario = Scenario { dir, turn, clusters: Cell::new(0), began, times: Cell::new(1), again };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let ended = catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(async {
            tokio::select! {
                done = body(&scenario) => done,
                () = scenario.hung() => Err(anyhow!("the test did not end within {} s", scenario.time_max().as_secs())),
            }
        })
    }));
    runtime.shutdown_background();
    if matches!(ended, Ok(Ok(()))) {
        return;
    }
    let Scenario { dir, turn, again, .. } = scenario;
    let kept = dir.keep();
    drop(turn);
    let again =
        again.take().unwrap_or_else(|| format!("cargo test --release -p replicator-tests --test {file} {test}"));
    eprintln!("\n{test} failed; the nodes' folders and logs are kept in {}\nrun it again:  {again}\n", kept.display());
    match ended {
        Ok(Err(error)) => panic!("{error:#}"), // Without a backtrace, which says nothing about an await.
        Err(panicked) => resume_unwind(panicked),
        Ok(Ok(())) => {}
    }
}

impl Scenario {
    /// Ends when the test has had its turn for too long.
    async fn hung(&self) {
        while self.began.get().elapsed() < self.time_max() || self.clusters.get() == 0 {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    fn time_max(&self) -> Duration {
        TEST_MAX * self.times.get()
    }

    /// Allows the test so many times what others may take.
    pub fn may_take(&self, times: u32) {
        self.times.set(times);
    }

    /// Names the command that runs this again, where the test's name alone doesn't.
    pub fn run_again_by(&self, command: String) {
        self.again.replace(Some(command));
    }

    /// The test's folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Writes a file into the test's folder.
    ///
    /// # Errors
    /// If it can't.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> Result<std::path::PathBuf> {
        let path = self.dir().join(name);
        fs::write(&path, content).with_context(|| format!("can't write {}", path.display()))?;
        Ok(path)
    }

    /// Waits until no other test runs a cluster. Lasts until the end of this one.
    ///
    /// # Errors
    /// If that takes too long.
    pub async fn turn(&self) -> Result<()> {
        if self.turn.borrow().is_some() {
            return Ok(());
        }
        let folder = programs::meeting_place();
        fs::create_dir_all(&folder)?;
        let file = File::create(folder.join("replicator-tests.lock"))?;
        until_within(TURN_MAX, "another test ends", async || match file.try_lock() {
            Ok(()) => Ok(()),
            Err(TryLockError::WouldBlock) => Err(anyhow!("it runs still")),
            Err(TryLockError::Error(error)) => panic!("can't lock a file in {}: {error}", folder.display()),
        })
        .await?;
        self.turn.replace(Some(file));
        self.began.set(Instant::now());
        Ok(())
    }

    /// Blank nodes, not started.
    ///
    /// # Errors
    /// If there are no ports or files.
    pub async fn prepare(&self, nodes: usize) -> Result<Cluster> {
        self.prepare_with(nodes, 0, "").await
    }

    /// Blank replicas and witnesses, not started, with `settings` as the last lines of each configuration.
    ///
    /// # Errors
    /// If there are no ports or files.
    pub async fn prepare_with(&self, replicas: usize, witnesses: usize, settings: &str) -> Result<Cluster> {
        self.turn().await?;
        let number = self.clusters.get() + 1;
        self.clusters.set(number);
        let dir = self.dir().join(format!("cluster-{number}"));
        fs::create_dir(&dir)?;
        Cluster::prepare(dir.canonicalize()?, replicas, witnesses, settings)
    }

    /// A chain that serves `module`.
    ///
    /// # Errors
    /// If it doesn't come up.
    pub async fn chain(&self, replicas: usize, witnesses: usize, order: &str, module: &Path) -> Result<Cluster> {
        let settings = format!("mode = \"chain\"\n[chain]\npersist_order = \"{order}\"\n");
        let mut cluster = self.prepare_with(replicas, witnesses, &settings).await?;
        cluster.start_all().await?;
        cluster.init(module, &[]).await?;
        Ok(cluster)
    }

    /// Blank nodes that run.
    ///
    /// # Errors
    /// If one doesn't start.
    pub async fn blank(&self, nodes: usize) -> Result<Cluster> {
        let mut cluster = self.prepare(nodes).await?;
        cluster.start_all().await?;
        Ok(cluster)
    }

    /// A cluster that serves `module`.
    ///
    /// # Errors
    /// If it doesn't come up.
    pub async fn cluster(&self, nodes: usize, module: &Path) -> Result<Cluster> {
        self.cluster_with(nodes, module, &[]).await
    }

    /// A cluster that serves `module`, made by `replicator init` with these flags too.
    ///
    /// # Errors
    /// If it doesn't come up.
    pub async fn cluster_with(&self, nodes: usize, module: &Path, flags: &[&str]) -> Result<Cluster> {
        let mut cluster = self.blank(nodes).await?;
        cluster.init(module, flags).await?;
        Ok(cluster)
    }
}

//! One node as a child process.

use std::{
    fs::{self, OpenOptions},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use crate::{command, programs, until};

/// A node: its files, and its process if one runs. Dropping it kills the process.
#[derive(Debug)]
pub struct NodeProcess {
    /// Its name.
    pub name: String,
    /// Where clients reach it.
    pub client_address: String,
    /// Where peers reach it.
    pub peer_address: String,
    /// Its data folder.
    pub data_dir: PathBuf,
    /// Its configuration file.
    pub config: PathBuf,
    /// What it has written to standard error, over all its starts.
    pub log: PathBuf,
    /// Whether it is a witness of a chain.
    pub witness: bool,
    /// The group that its process runs in, if another than this process's: which needs root.
    pub(crate) group: Option<u32>,
    /// The planted faults, as variables for the build that has them; none: it is the real one.
    planted: Vec<(&'static str, String)>,
    child: Option<Child>,
    /// Continues the stopped process when this one dies: a stopped one can't see the end of its standard input.
    stopped: Option<Child>,
}

impl NodeProcess {
    /// A node whose files are in `dir`. Nothing is made yet.
    #[must_use]
    pub fn new(dir: &Path, name: &str, client_port: u16, peer_port: u16) -> Self {
        Self {
            name: name.to_owned(),
            client_address: format!("127.0.0.1:{client_port}"),
            peer_address: format!("127.0.0.1:{peer_port}"),
            data_dir: dir.join(name),
            config: dir.join(format!("{name}.toml")),
            log: dir.join(format!("{name}.log")),
            witness: false,
            group: None,
            planted: Vec::new(),
            child: None,
            stopped: None,
        }
    }

    /// Writes the configuration file, with `settings` as its last lines.
    ///
    /// # Errors
    /// If it can't.
    pub fn configure<'a>(&self, peers: impl Iterator<Item = &'a Self>, settings: &str) -> Result<()> {
        let peers: String = peers
            .map(|peer| format!("    {{ name = \"{}\", peer_address = \"{}\" }},\n", peer.name, peer.peer_address))
            .collect();
        let Self { name, client_address, peer_address, data_dir, .. } = self;
        let text = format!(
            "name = \"{name}\"\ndata_dir = '{}'\nclient_address = \"{client_address}\"\npeer_address = \"{peer_address}\"\n\
             peers = [\n{peers}]\n{settings}",
            data_dir.display()
        );
        fs::write(&self.config, text).with_context(|| format!("can't write {}", self.config.display()))
    }

    /// From its next start on, the node runs the build with the planted fault, and appends `text` to each answer that it gives to clients.
    pub fn answer_wrongly(&mut self, text: &str) {
        self.planted.push(("REPLICATOR_WRONG_ANSWERS", text.to_owned()));
    }

    /// From its next start on, the node runs the build with the planted fault, and its module gets the request `to` where the log has `from`: the first
    /// so many times that it applies it in a process, replays counted.
    pub fn diverge(&mut self, from: &str, to: &str, times: u32) {
        self.planted.push(("REPLICATOR_DIVERGE", format!("{from}=>{to}")));
        self.planted.push(("REPLICATOR_DIVERGE_TIMES", times.to_string()));
    }

    /// From its next start on, the node says of each image that it gives that its machine had another digest there.
    pub fn give_wrong_images(&mut self) {
        self.planted.push(("REPLICATOR_WRONG_IMAGES", "1".to_owned()));
    }

    /// From its next start on, the node runs the real program.
    pub fn behave(&mut self) {
        self.planted.clear();
    }

    /// Starts the process, with these flags beside `--config`.
    ///
    /// # Errors
    /// If it runs already, or can't be started.
    pub fn start(&mut self, flags: &[&str]) -> Result<()> {
        ensure!(self.child.is_none(), "{} runs already", self.name);
        let log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        let program = if self.planted.is_empty() { programs::replicator() } else { programs::wrong_replicator() };
        let mut command = Command::new(program);
        command::clean(&mut command);
        command.envs(self.planted.iter().map(|(name, value)| (name, value)));
        // The node ends when its standard input does, so it never outlives this process, however that dies.
        command
            .args([if self.witness { "witness" } else { "node" }, "--exit-with-stdin", "--config"])
            .arg(&self.config)
            .args(flags)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log);
        if let Some(group) = self.group {
            command.gid(group);
        }
        self.child = Some(command.spawn().context("can't start a node")?);
        Ok(())
    }

    /// The process's id, if one runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let Some(child) = &self.child else { bail!("{} doesn't run", self.name) };
        kill_process(Pid::from_child(child), signal).with_context(|| format!("can't signal {}", self.name))
    }

    /// kill -9, without waiting for the end.
    ///
    /// # Errors
    /// If it doesn't run.
    pub fn send_kill(&self) -> Result<()> {
        self.signal(Signal::KILL)
    }

    /// kill -9. Returns when the process is gone.
    ///
    /// # Errors
    /// If it doesn't run.
    pub fn kill(&mut self) -> Result<()> {
        self.send_kill()?;
        self.reap();
        Ok(())
    }

    /// Waits for a process that was killed, or kills it.
    fn reap(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        self.forget_stop();
    }

    fn forget_stop(&mut self) {
        if let Some(mut guard) = self.stopped.take() {
            let _ = guard.kill();
            let _ = guard.wait();
        }
    }

    /// SIGSTOP: the process stands still with all its sockets open. Returns once it does: the signal's sender goes on before each of the
    /// process's threads has heard of it.
    ///
    /// # Errors
    /// If it doesn't run.
    pub fn pause(&mut self) -> Result<()> {
        let pid = self.pid().with_context(|| format!("{} doesn't run", self.name))?;
        let mut guard = Command::new("sh");
        guard.args(["-c", &format!("cat >/dev/null; kill -CONT {pid}")]).stdin(Stdio::piped());
        self.stopped = Some(guard.spawn().context("can't start sh")?);
        self.signal(Signal::STOP)?;
        waitid(WaitId::Pid(Pid::from_child(self.child.as_ref().context("it runs")?)), WaitIdOptions::STOPPED)
            .with_context(|| format!("{} did not stop", self.name))?;
        Ok(())
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// If it doesn't run.
    pub fn resume(&mut self) -> Result<()> {
        self.forget_stop();
        self.signal(Signal::CONT)
    }

    /// Ends the process politely, with SIGTERM, and checks that it ends well.
    ///
    /// # Errors
    /// If it doesn't run, or ends with another code than 0.
    pub async fn shut_down(&mut self) -> Result<()> {
        self.signal(Signal::TERM)?;
        let status = self.exit().await?;
        ensure!(status.success(), "{} ended with {status} after SIGTERM", self.name);
        Ok(())
    }

    /// Waits until the process ends by itself.
    ///
    /// # Errors
    /// If it doesn't.
    pub async fn exit(&mut self) -> Result<ExitStatus> {
        let Self { child, name, .. } = self;
        let Some(running) = child else { bail!("{name} doesn't run") };
        let status = until(&format!("{name} ends"), async || running.try_wait()?.context("it runs")).await?;
        self.child = None;
        Ok(status)
    }

    /// Whether no process runs, or the one that ran has ended by itself.
    ///
    /// # Errors
    /// If the kernel doesn't tell.
    pub fn has_ended(&mut self) -> Result<bool> {
        if let Some(child) = &mut self.child
            && child.try_wait()?.is_some()
        {
            self.child = None;
        }
        Ok(self.child.is_none())
    }

    /// Waits until the process ends with `code`, having written all of `words` since the log's byte `since`.
    ///
    /// # Errors
    /// If it doesn't end, or otherwise.
    pub async fn exits(&mut self, code: i32, since: usize, words: &[&str]) -> Result<String> {
        let status = self.exit().await?;
        let told = self.told(since)?;
        ensure!(status.code() == Some(code), "{} ended with {status}, not {code}: {told}", self.name);
        for word in words {
            ensure!(told.contains(word), "{} did not mention {word:?}: {told}", self.name);
        }
        Ok(told)
    }

    /// The bytes of the log so far.
    #[must_use]
    pub fn log_bytes(&self) -> usize {
        fs::metadata(&self.log).map_or(0, |meta| usize::try_from(meta.len()).unwrap_or(usize::MAX))
    }

    /// What the node has written to its log since byte `since`.
    ///
    /// # Errors
    /// If it can't be read.
    pub fn told(&self, since: usize) -> Result<String> {
        let log = fs::read(&self.log)?;
        Ok(String::from_utf8_lossy(log.get(since..).unwrap_or_default()).into_owned())
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        self.reap();
    }
}

//! Has a file that is saved elsewhere written to the disk while it grows, so that the last fsync is short, and the disk works while the network does.

use std::{
    fs::File,
    io,
    sync::mpsc::{self, SyncSender},
    thread::{self, JoinHandle},
};

/// After so many bytes the disk begins.
const STEP_BYTES: u64 = 8 << 20;

/// A thread that fsyncs what was written so far, time and again. Dropping it waits for the fsync that is under way.
#[derive(Debug)]
pub(crate) struct Flusher {
    /// None once it is told to end.
    wake: Option<SyncSender<()>>,
    thread: Option<JoinHandle<io::Result<()>>>,
    unflushed: u64,
}

impl Flusher {
    pub(crate) fn start(file: &File) -> io::Result<Self> {
        let file = file.try_clone()?;
        // One wish may wait while another is carried out: what comes in between is part of it.
        let (wake, wakes) = mpsc::sync_channel(1);
        let thread = thread::Builder::new().name("snapshot-flush".into()).spawn(move || {
            // The system tells of an error once, so it must not be lost here.
            wakes.into_iter().try_for_each(|()| file.sync_data())
        })?;
        Ok(Self { wake: Some(wake), thread: Some(thread), unflushed: 0 })
    }

    /// So many bytes were written.
    pub(crate) fn wrote(&mut self, bytes: usize) {
        self.unflushed += bytes as u64;
        if self.unflushed >= STEP_BYTES {
            self.unflushed = 0;
            if let Some(wake) = &self.wake {
                let _ = wake.try_send(()); // full: it comes anyway; closed: `finish` says why
            }
        }
    }

    /// Ends it.
    ///
    /// # Errors
    /// If an fsync failed. Then what is on the disk is unknown, and no later fsync tells.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        self.wake = None;
        match self.thread.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(synced)) => synced,
            Some(Err(_)) => Err(io::Error::other("the thread that flushed it panicked")),
        }
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        let _ = self.finish();
    }
}

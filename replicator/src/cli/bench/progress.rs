//! A bar on standard error, if that is a terminal, until it is dropped.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};

use super::load::Load;

pub(super) struct Progress {
    bar: ProgressBar,
    task: Option<tokio::task::JoinHandle<()>>,
}

impl Progress {
    /// Of something that comes in so many parts.
    pub(super) fn of(what: &'static str, parts: u64, unit: &str) -> Self {
        let style = ProgressStyle::with_template(&format!("{{prefix}} {{wide_bar}} {{pos}}/{{len}} {unit} {{msg}}"));
        let bar = ProgressBar::new(parts).with_prefix(what);
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self { bar, task: None }
    }

    /// Of a load, whose answers `done` counts.
    pub(super) fn of_load(load: &Load, done: Arc<AtomicU64>) -> Self {
        let of_seconds = load.requests.is_none();
        let mut progress = match load.requests {
            Some(requests) => Self::of("requests", requests, ""),
            None => Self::of("load", load.seconds as u64 + 1, "s"),
        };
        progress.bar.set_prefix(format!("{} clients", load.clients));
        let bar = progress.bar.clone();
        progress.task = Some(tokio::spawn(async move {
            let mut before = 0;
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                let now = done.load(Ordering::Relaxed);
                bar.set_message(format!("{} requests/s", now - before));
                bar.inc(if of_seconds { 1 } else { now - before });
                before = now;
            }
        }));
        progress
    }

    pub(super) fn advance(&self, parts: u64) {
        self.bar.inc(parts);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
        self.bar.finish_and_clear();
    }
}

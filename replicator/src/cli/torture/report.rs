//! What is printed.

use std::{io::Write as _, time::Duration};

use anstyle::AnsiColor;
use serde_json::json;

use super::{
    account::Tally,
    arena::{Cause, Deeds},
    swaps,
};
use crate::cli::{
    output::{self, Format},
    status::Verdict,
};

/// What came of a run.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) seed: u64,
    pub(super) rounds: u32,
    pub(super) nodes: usize,
    /// Those of them that hold the application's state.
    pub(super) replicas: usize,
    pub(super) mode: String,
    pub(super) tally: Tally,
    /// Defects in words, the first ones.
    pub(super) told: Vec<String>,
    pub(super) verdict: Verdict,
    /// What was done, and measured meanwhile.
    pub(super) deeds: Deeds,
    /// What swaps came to, if there were any.
    pub(super) swaps: Option<swaps::Tally>,
    /// What is wrong with the history of modules.
    pub(super) swap_defect: Option<String>,
    /// Images that nodes took, or got from others.
    pub(super) images: usize,
    /// The most bytes that a node's data took on its disk.
    pub(super) folder_bytes_max: u64,
    pub(super) seconds: f64,
}

impl Report {
    /// Whether everything held.
    pub(super) fn is_clean(&self) -> bool {
        self.tally.is_clean()
            && self.replicas_are_equal()
            && self.deeds.catch_ups.is_clean()
            && self.disks_were_full()
            && self.swap_defect.is_none()
    }

    /// Whether nodes noticed that disks were full, if some were: else the fault did nothing. Not each has to, as a log has files made ahead.
    fn disks_were_full(&self) -> bool {
        self.deeds.filled == 0 || self.deeds.noticed > 0
    }

    /// Defects in words.
    fn defects(&self) -> Vec<String> {
        let full = "disks were filled, and no node said that its disk is full".to_owned();
        let full = (!self.disks_were_full()).then_some(full);
        self.told.iter().chain(&self.deeds.catch_ups.told).chain(&self.swap_defect).cloned().chain(full).collect()
    }

    /// How restarted replicas caught up, and what their disks had.
    fn recovery_lines(&self) -> Vec<String> {
        let Deeds { catch_ups, refused_transfers, wiped, filled, noticed, .. } = &self.deeds;
        let mut lines = vec![format!(
            "replicas that were started again caught up by the log: {}; by the whole state: {}; {} seen; no node's folder took more than {}",
            catch_ups.log,
            catch_ups.whole_state,
            output::count(self.images, "image"),
            output::bytes(self.folder_bytes_max)
        )];
        if let Some(swaps::Tally { switches, found_again, refused, pauses }) = &self.swaps {
            lines.push(format!(
                "modules switched: {switches}, of which {found_again} had to be found again after a lost answer; refused as not ready, and asked for again: \
                 {refused}; the longest pause of a machine was {:.1} ms",
                longest_ms(pauses)
            ));
        }
        if *refused_transfers > 0 {
            lines.push(format!("hand-overs refused: {refused_transfers}"));
        }
        if *wiped > 0 {
            lines.push(format!("folders deleted: {wiped}"));
        }
        if *filled > 0 {
            let refused = self.tally.refused;
            lines.push(format!(
                "disks filled: {filled}, noticed by their nodes: {noticed}; copies refused because of it: {refused}"
            ));
        }
        lines
    }

    fn replicas_are_equal(&self) -> bool {
        matches!(self.verdict, Verdict::Equal { replicas, .. } if replicas == self.replicas)
    }

    fn digests(&self) -> &'static str {
        match &self.verdict {
            Verdict::Equal { .. } if self.replicas_are_equal() => "equal",
            Verdict::Differ(_) => "DIFFER",
            Verdict::Equal { .. } | Verdict::Unknown(_) => "UNKNOWN",
        }
    }

    /// Those of one cause, in the order in which they were measured.
    fn outages(&self, cause: Cause) -> Vec<Duration> {
        self.deeds.outages.iter().filter(|outage| outage.cause == cause).map(|outage| outage.length).collect()
    }

    fn outages_ms(&self, cause: Cause) -> Vec<u128> {
        self.outages(cause).iter().map(Duration::as_millis).collect()
    }

    pub(super) fn print(&self, format: Format) -> anyhow::Result<()> {
        let Tally {
            acknowledged,
            lost,
            doubled,
            unknown,
            stale,
            reads,
            pushes,
            missing,
            phantom,
            disordered,
            expired,
            refused,
        } = self.tally;
        let Deeds { catch_ups, refused_transfers, wiped, filled, noticed, .. } = &self.deeds;
        let swaps = self.swaps.as_ref().map(|swaps| {
            json!({
                "switches": swaps.switches, "found_again": swaps.found_again, "refused": swaps.refused,
                "longest_pause_ms": longest_ms(&swaps.pauses),
            })
        });
        match format {
            Format::Json => output::print_json(&json!({
                "seed": self.seed, "rounds": self.rounds, "nodes": self.nodes, "mode": self.mode,
                "acknowledged": acknowledged, "lost": lost, "doubled": doubled, "unknown": unknown, "stale": stale, "reads": reads,
                "pushes": pushes, "missing": missing, "phantom": phantom, "disordered": disordered, "expired": expired,
                "outages_ms": self.outages_ms(Cause::Death), "transfer_outages_ms": self.outages_ms(Cause::Transfer),
                "catch_ups": { "log": catch_ups.log, "whole_state": catch_ups.whole_state, "untold": catch_ups.untold },
                "swaps": swaps, "images": self.images, "folder_bytes_max": self.folder_bytes_max,
                "refused_transfers": refused_transfers, "wiped": wiped, "disks_filled": filled, "full_disks_noticed": noticed, "refused": refused,
                "digests": self.digests(), "verdict": self.verdict.to_string(), "defects": self.defects(), "seconds": self.seconds,
            })),
            Format::Table => {
                let red = output::paint(AnsiColor::Red);
                for defect in self.defects() {
                    writeln!(anstream::stdout(), "{red}✗{red:#} {defect}")?;
                }
                let colour = output::paint(if self.is_clean() { AnsiColor::Green } else { AnsiColor::Red });
                writeln!(
                    anstream::stdout(),
                    "{colour}acknowledged={acknowledged} lost={lost} doubled={doubled} unknown={unknown} stale={stale} reads={reads} \
                     pushes={pushes} missing={missing} phantom={phantom} disordered={disordered} expired={expired} digests={} seconds={:.1}{colour:#}",
                    self.digests(),
                    self.seconds
                )?;
                let causes = [
                    (Cause::Death, "after the death of one replica", "death"),
                    (Cause::Transfer, "around a hand-over", "hand-over"),
                ];
                for (cause, when, one) in causes {
                    let mut sorted = self.outages(cause);
                    sorted.sort_unstable();
                    let Some(longest) = sorted.last() else { continue };
                    println!(
                        "{when}, nothing was acknowledged for {} ms (median of {}), at most {} ms",
                        sorted[sorted.len() / 2].as_millis(),
                        output::count(sorted.len(), one),
                        longest.as_millis()
                    );
                }
                for line in self.recovery_lines() {
                    println!("{line}");
                }
                println!("{}", self.verdict);
                Ok(())
            }
        }
    }
}

fn longest_ms(pauses: &[Duration]) -> f64 {
    pauses.iter().max().copied().unwrap_or_default().as_secs_f64() * 1e3
}

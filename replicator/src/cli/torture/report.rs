//! What is printed.

use std::{io::Write as _, time::Duration};

use anstyle::AnsiColor;
use serde_json::json;

use super::{
    account::Tally,
    rounds::{Cause, Outage},
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
    /// For how long nothing was acknowledged, where that was measured.
    pub(super) outages: Vec<Outage>,
    pub(super) seconds: f64,
}

impl Report {
    /// Whether everything held.
    pub(super) fn is_clean(&self) -> bool {
        self.tally.is_clean() && self.replicas_are_equal()
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
        self.outages.iter().filter(|outage| outage.cause == cause).map(|outage| outage.length).collect()
    }

    fn outages_ms(&self, cause: Cause) -> Vec<u128> {
        self.outages(cause).iter().map(Duration::as_millis).collect()
    }

    pub(super) fn print(&self, format: Format) -> anyhow::Result<()> {
        let Tally { acknowledged, lost, doubled, unknown, stale, reads, pushes, missing, phantom, disordered, expired } =
            self.tally;
        match format {
            Format::Json => output::print_json(&json!({
                "seed": self.seed, "rounds": self.rounds, "nodes": self.nodes, "mode": self.mode,
                "acknowledged": acknowledged, "lost": lost, "doubled": doubled, "unknown": unknown, "stale": stale, "reads": reads,
                "pushes": pushes, "missing": missing, "phantom": phantom, "disordered": disordered, "expired": expired,
                "outages_ms": self.outages_ms(Cause::Death), "transfer_outages_ms": self.outages_ms(Cause::Transfer),
                "digests": self.digests(), "verdict": self.verdict.to_string(), "defects": self.told, "seconds": self.seconds,
            })),
            Format::Table => {
                let red = output::paint(AnsiColor::Red);
                for defect in &self.told {
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
                println!("{}", self.verdict);
                Ok(())
            }
        }
    }
}

//! What an experiment found: loads compared with the first of them, and figures compared with what the machine itself does.

use std::io::Write as _;

use anstyle::AnsiColor;
use serde_json::{Value, json};

use super::{load::Measured, machine::Machine};
use crate::cli::output::{self, Format};

/// The findings.
#[derive(Debug)]
pub(super) struct Comparison {
    pub(super) machine: Machine,
    /// What was done, in words.
    pub(super) about: String,
    pub(super) notes: Vec<String>,
    /// The first one is what the others are compared with, round by round.
    pub(super) loads: Vec<Loads>,
    pub(super) figures: Vec<Figure>,
}

/// The same load, once in each round.
#[derive(Debug)]
pub(super) struct Loads {
    pub(super) what: String,
    pub(super) runs: Vec<Measured>,
}

/// One figure, of one run or several.
#[derive(Debug)]
pub(super) struct Figure {
    pub(super) what: String,
    pub(super) unit: &'static str,
    pub(super) values: Vec<f64>,
    /// What it is compared with, and that one's values, run by run.
    pub(super) with: Option<(String, Vec<f64>)>,
}

impl Figure {
    pub(super) fn new(what: impl Into<String>, unit: &'static str, values: Vec<f64>) -> Self {
        Self { what: what.into(), unit, values, with: None }
    }

    pub(super) fn against(self, what: impl Into<String>, values: Vec<f64>) -> Self {
        Self { with: Some((what.into(), values)), ..self }
    }

    /// Of each run its own.
    fn ratios(&self) -> Vec<f64> {
        self.with.iter().flat_map(|(_, with)| self.values.iter().zip(with).map(|(own, with)| own / with)).collect()
    }
}

impl Loads {
    fn each(&self, of: impl Fn(&Measured) -> f64) -> Vec<f64> {
        self.runs.iter().map(of).collect()
    }

    fn quantile(&self, quantile: f64) -> Vec<f64> {
        self.each(|run| run.latency_us.value_at_quantile(quantile) as f64)
    }

    fn errors(&self) -> u64 {
        self.runs.iter().map(|run| run.errors).sum()
    }

    fn first_error(&self) -> Option<&str> {
        self.runs.iter().find_map(|run| run.first_error.as_deref())
    }
}

impl Comparison {
    pub(super) fn print(&self, format: Format) -> anyhow::Result<()> {
        match format {
            Format::Json => output::print_json(&self.json()),
            Format::Table => self.print_table(),
        }
    }

    /// p99 of these loads over that of the first ones, in each round.
    fn p99_ratios(&self, loads: &Loads) -> Vec<f64> {
        let first = self.loads.first().map(|first| first.quantile(0.99)).unwrap_or_default();
        loads.quantile(0.99).iter().zip(first).map(|(own, first)| own / first).collect()
    }

    fn print_table(&self) -> anyhow::Result<()> {
        println!("{}", self.machine);
        println!("{}", self.about);
        let mut out = anstream::stdout();
        let yellow = output::paint(AnsiColor::Yellow);
        for note in &self.notes {
            writeln!(out, "{yellow}note:{yellow:#} {note}")?;
        }
        if !self.loads.is_empty() {
            let head = ["load", "requests/s", "p50 us", "p99 us", "max us", "errors", "p99, times", "of each round"];
            let mut table = output::table(&head);
            for loads in &self.loads {
                let ratios = self.p99_ratios(loads);
                table.add_row([
                    loads.what.clone(),
                    format!("{:.0}", median(&loads.each(Measured::requests_per_sec))),
                    format!("{:.0}", median(&loads.quantile(0.5))),
                    format!("{:.0}", median(&loads.quantile(0.99))),
                    format!("{:.0}", greatest(&loads.quantile(1.0))),
                    loads.errors().to_string(),
                    format!("{:.2}", median(&ratios)),
                    ratios.iter().map(|ratio| format!("{ratio:.2}")).collect::<Vec<_>>().join(" "),
                ]);
            }
            output::print_table(&mut table)?;
            for loads in &self.loads {
                if let Some(error) = loads.first_error() {
                    writeln!(out, "{yellow}errors{yellow:#} of {}; the first: {error}", loads.what)?;
                }
            }
        }
        if !self.figures.is_empty() {
            let mut table = output::table(&["figure", "median", "greatest", "compared with", "median", "times"]);
            for figure in &self.figures {
                let (with, with_median, ratio) = match &figure.with {
                    Some((with, values)) => (
                        with.clone(),
                        format!("{} {}", short(median(values)), figure.unit),
                        format!("{:.2}", median(&figure.ratios())),
                    ),
                    None => Default::default(),
                };
                table.add_row([
                    figure.what.clone(),
                    format!("{} {}", short(median(&figure.values)), figure.unit),
                    short(greatest(&figure.values)),
                    with,
                    with_median,
                    ratio,
                ]);
            }
            output::print_table(&mut table)?;
        }
        Ok(())
    }

    fn json(&self) -> Value {
        let loads = self.loads.iter().map(|loads| {
            json!({
                "what": loads.what,
                "clients": loads.runs.first().map(|run| run.clients),
                "requests_per_sec": median(&loads.each(Measured::requests_per_sec)).round(),
                "p50_us": median(&loads.quantile(0.5)),
                "p99_us": median(&loads.quantile(0.99)),
                "max_us": greatest(&loads.quantile(1.0)),
                "errors": loads.errors(),
                "first_error": loads.first_error(),
                "p99_ratio": median(&self.p99_ratios(loads)),
                "p99_ratios": self.p99_ratios(loads),
            })
        });
        let figures = self.figures.iter().map(|figure| {
            let ratio = figure.with.as_ref().map(|_| median(&figure.ratios()));
            json!({
                "what": figure.what,
                "unit": figure.unit,
                "median": median(&figure.values),
                "values": figure.values,
                "compared_with": figure.with.as_ref().map(|(what, _)| what),
                "compared_values": figure.with.as_ref().map(|(_, values)| values),
                "ratio": ratio,
            })
        });
        json!({
            "machine": self.machine.json(),
            "about": self.about,
            "notes": self.notes,
            "loads": loads.collect::<Vec<_>>(),
            "figures": figures.collect::<Vec<_>>(),
        })
    }
}

/// 0 of nothing.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => 0.0,
        even if even.is_multiple_of(2) => f64::midpoint(values[middle - 1], values[middle]),
        _ => values[middle],
    }
}

pub(super) fn greatest(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max)
}

/// Three digits, or all of a whole number.
fn short(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

#[cfg(test)]
mod tests {
    use hdrhistogram::Histogram;

    use super::*;

    fn load(us: u64) -> Measured {
        let mut latency_us = Histogram::new(3).unwrap();
        latency_us.record_n(us, 100).unwrap();
        Measured {
            clients: 8,
            latency_us,
            seconds: 2.0,
            errors: 0,
            first_error: None,
            server_cpu_seconds: None,
            client_cpu_seconds: None,
        }
    }

    #[test]
    fn loads_are_compared_round_by_round() {
        // The machine was three times as slow in the second round: no reason to call the others bad.
        let loads = vec![
            Loads { what: "without".into(), runs: vec![load(100), load(300), load(100)] },
            Loads { what: "with".into(), runs: vec![load(200), load(600), load(150)] },
        ];
        let figure = Figure::new("write", "MB/s", vec![5.0, 9.0]).against("a plain one", vec![10.0, 10.0]);
        let comparison = Comparison {
            machine: Machine::here(None),
            about: String::new(),
            notes: Vec::new(),
            loads,
            figures: vec![figure],
        };
        let json = comparison.json();
        assert_eq!((&json["loads"][0]["p99_ratio"], &json["loads"][1]["p99_ratio"]), (&json!(1.0), &json!(2.0)));
        assert_eq!((&json["loads"][1]["p99_us"], &json["loads"][1]["max_us"]), (&json!(200.0), &json!(600.0)));
        assert_eq!(json["loads"][0]["requests_per_sec"], 50.0);
        assert_eq!(json["figures"][0]["ratio"], 0.7);
    }

    #[test]
    fn medians_of_few_values() {
        assert_eq!((median(&[]), median(&[3.0]), median(&[9.0, 1.0, 2.0]), median(&[1.0, 2.0])), (0.0, 3.0, 2.0, 1.5));
    }
}

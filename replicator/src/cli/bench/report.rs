//! What is printed.

use std::io::Write as _;

use anstyle::AnsiColor;
use serde_json::{Value, json};

use super::{load::Measured, machine::Machine};
use crate::cli::output::{self, Format};

/// What was measured, and how.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) machine: Machine,
    pub(super) mode: String,
    /// `ExecuteStream`, `Execute`, `QueryStream` or `Query`.
    pub(super) transport: &'static str,
    pub(super) consistency: Option<&'static str>,
    pub(super) module: String,
    pub(super) nodes: usize,
    pub(super) bytes: usize,
    pub(super) connections: usize,
    /// Of this program, which makes the load.
    pub(super) threads: usize,
    pub(super) notes: Vec<String>,
    pub(super) runs: Vec<Measured>,
}

impl Report {
    pub(super) fn print(&self, format: Format) -> anyhow::Result<()> {
        match format {
            Format::Json => output::print_json(&self.json()),
            Format::Table => self.print_table(),
        }
    }

    fn print_table(&self) -> anyhow::Result<()> {
        println!("{}", self.machine);
        println!(
            "{}{} of {} bytes to {}, {} in mode {}, {}; the load has {}",
            self.transport,
            self.consistency.map(|name| format!(" ({name})")).unwrap_or_default(),
            self.bytes,
            self.module,
            output::count(self.nodes, "node"),
            self.mode,
            output::count(self.connections, "connection"),
            output::count(self.threads, "thread"),
        );
        let yellow = output::paint(AnsiColor::Yellow);
        for note in &self.notes {
            writeln!(anstream::stdout(), "{yellow}note:{yellow:#} {note}")?;
        }
        let head = [
            "clients",
            "seconds",
            "requests/s",
            "p50 us",
            "p99 us",
            "max us",
            "server cpu s",
            "client cpu s",
            "errors",
        ];
        let mut table = output::table(&head);
        let cpu = |seconds: Option<f64>| seconds.map_or_else(|| "-".to_owned(), |seconds| format!("{seconds:.2}"));
        for run in &self.runs {
            table.add_row([
                run.clients.to_string(),
                run.seconds.to_string(),
                format!("{:.0}", run.requests_per_sec()),
                run.latency_us.value_at_quantile(0.5).to_string(),
                run.latency_us.value_at_quantile(0.99).to_string(),
                run.latency_us.max().to_string(),
                cpu(run.server_cpu_seconds),
                cpu(run.client_cpu_seconds),
                run.errors.to_string(),
            ]);
        }
        output::print_table(&mut table)?;
        for run in self.runs.iter().filter(|run| run.errors > 0) {
            let colour = output::paint(if run.latency_us.is_empty() { AnsiColor::Red } else { AnsiColor::Yellow });
            let what = output::count(usize::try_from(run.errors).unwrap_or(usize::MAX), "error");
            let first = run.first_error.as_deref().unwrap_or_default();
            writeln!(anstream::stdout(), "{colour}{what}{colour:#} with {} clients; the first: {first}", run.clients)?;
        }
        Ok(())
    }

    /// A single load's fields are on the top level too.
    fn json(&self) -> Value {
        let runs: Vec<Value> = self.runs.iter().map(|run| self.run_json(run)).collect();
        let mut value = match runs.as_slice() {
            [single] => single.clone(),
            _ => self.settings_json(),
        };
        value["machine"] = self.machine.json();
        value["notes"] = json!(self.notes);
        value["runs"] = json!(runs);
        value
    }

    fn settings_json(&self) -> Value {
        json!({
            "mode": self.mode,
            "transport": self.transport,
            "consistency": self.consistency,
            "module": self.module,
            "nodes": self.nodes,
            "bytes": self.bytes,
            "connections": self.connections,
            "client_threads": self.threads,
        })
    }

    fn run_json(&self, run: &Measured) -> Value {
        let mut value = self.settings_json();
        value["clients"] = json!(run.clients);
        value["seconds"] = json!(run.seconds);
        value["requests"] = json!(run.latency_us.len());
        value["requests_per_sec"] = json!(run.requests_per_sec().round());
        value["p50_us"] = json!(run.latency_us.value_at_quantile(0.5));
        value["p99_us"] = json!(run.latency_us.value_at_quantile(0.99));
        value["max_us"] = json!(run.latency_us.max());
        value["server_cpu_seconds"] = json!(hundredths(run.server_cpu_seconds));
        value["client_cpu_seconds"] = json!(hundredths(run.client_cpu_seconds));
        value["errors"] = json!(run.errors);
        value["first_error"] = json!(run.first_error);
        value
    }
}

/// As fine as the kernel counts.
fn hundredths(seconds: Option<f64>) -> Option<f64> {
    seconds.map(|seconds| (seconds * 100.0).round() / 100.0)
}

#[cfg(test)]
mod tests {
    use hdrhistogram::Histogram;

    use super::*;

    fn measured(clients: usize) -> Measured {
        let mut latency_us = Histogram::new(3).unwrap();
        for us in 1..=1000 {
            latency_us.record(us).unwrap();
        }
        Measured {
            clients,
            latency_us,
            seconds: 2.0,
            errors: 0,
            first_error: None,
            server_cpu_seconds: Some(1.5),
            client_cpu_seconds: None,
        }
    }

    fn report(runs: Vec<Measured>) -> Value {
        let report = Report {
            machine: Machine::here(None),
            mode: "majority".into(),
            transport: "ExecuteStream",
            consistency: None,
            module: "echo".into(),
            nodes: 3,
            bytes: 128,
            connections: 4,
            threads: 1,
            notes: Vec::new(),
            runs,
        };
        report.json()
    }

    #[test]
    fn a_single_load_is_on_the_top_level_and_in_the_runs() {
        let value = report(vec![measured(8)]);
        assert_eq!(value["requests_per_sec"], 500.0);
        assert_eq!((&value["p50_us"], &value["p99_us"], &value["max_us"]), (&json!(500), &json!(990), &json!(1000)));
        assert_eq!((&value["server_cpu_seconds"], &value["client_cpu_seconds"]), (&json!(1.5), &Value::Null));
        assert_eq!((&value["runs"][0]["clients"], &value["client_threads"]), (&json!(8), &json!(1)));
    }

    #[test]
    fn several_loads_are_only_in_the_runs() {
        let value = report(vec![measured(1), measured(64)]);
        assert_eq!(value["runs"][1]["clients"], 64);
        assert_eq!(value["clients"], Value::Null);
        assert_eq!(value["transport"], "ExecuteStream");
    }
}

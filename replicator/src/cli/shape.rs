//! How many nodes of what kind a cluster of our own has, and how it replicates: the flags that `demo`, `bench` and `torture` share.

use std::fmt;

use clap::{Args, ValueEnum as _};

use super::Failure;
use crate::config::{Mode, NODES_MAX, PersistOrder};

/// How a cluster of our own replicates.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct ModeFlags {
    /// How the cluster replicates
    #[arg(long, value_enum, value_name = "MODE", default_value_t)]
    mode: Mode,
    /// Chain mode: when the primary writes its own log
    #[arg(long, value_enum, value_name = "ORDER", default_value_t)]
    persist_order: PersistOrder,
    /// Chain mode: voters without application data. Default: one fewer than there are replicas
    #[arg(long, value_name = "N")]
    witnesses: Option<usize>,
}

/// A cluster's nodes, and what all of their configurations have in common.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) replicas: usize,
    pub(super) witnesses: usize,
    mode: Mode,
    persist_order: PersistOrder,
}

impl ModeFlags {
    /// A cluster of so many replicas.
    pub(super) fn shape(&self, replicas: usize) -> Result<Shape, Failure> {
        let Self { mode, persist_order, witnesses } = *self;
        let usage = |what: String| Err(Failure::Usage(what));
        let witnesses = match mode {
            Mode::Majority => witnesses.unwrap_or(0),
            Mode::Chain => witnesses.unwrap_or(replicas.saturating_sub(1)),
        };
        match mode {
            Mode::Majority if witnesses > 0 => return usage("only a chain has witnesses; add --mode chain".into()),
            Mode::Majority if !matches!(replicas, 1 | 3 | 5) => {
                return usage("a majority cluster has 1, 3 or 5 nodes".into());
            }
            Mode::Chain if replicas == 0 || replicas + witnesses > NODES_MAX => {
                return usage(format!(
                    "a chain has at least 1 replica, and at most {NODES_MAX} nodes, witnesses counted"
                ));
            }
            _ => {}
        }
        Ok(Shape { replicas, witnesses, mode, persist_order })
    }
}

impl Shape {
    pub(super) fn is_chain(&self) -> bool {
        self.mode == Mode::Chain
    }

    /// How many nodes may be dead at once, while the others go on.
    pub(super) const fn deaths_survived(&self) -> usize {
        (self.replicas + self.witnesses).saturating_sub(1) / 2
    }

    /// The lines that every node's configuration ends with.
    pub(super) fn settings(&self) -> String {
        match self.mode {
            Mode::Majority => String::new(),
            Mode::Chain => format!("mode = \"chain\"\n\n[chain]\npersist_order = \"{}\"\n", self.order()),
        }
    }

    /// The flags that ask for the same again.
    pub(super) fn flags(&self) -> String {
        let Self { replicas, witnesses, mode, .. } = self;
        match mode {
            Mode::Majority => format!("--mode majority --nodes {replicas}"),
            Mode::Chain => {
                format!("--mode chain --persist-order {} --nodes {replicas} --witnesses {witnesses}", self.order())
            }
        }
    }

    fn order(&self) -> String {
        self.persist_order.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

/// The mode, with what makes a difference in it.
impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mode {
            Mode::Majority => self.mode.fmt(f),
            Mode::Chain => write!(f, "{} ({})", self.mode, self.order()),
        }
    }
}

#[cfg(test)]
impl Shape {
    pub(super) fn majority(replicas: usize) -> Self {
        Self { replicas, witnesses: 0, mode: Mode::Majority, persist_order: PersistOrder::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(mode: Mode, replicas: usize, witnesses: Option<usize>) -> Result<Shape, Failure> {
        ModeFlags { mode, persist_order: PersistOrder::Parallel, witnesses }.shape(replicas)
    }

    #[test]
    fn a_chain_has_witnesses_enough_to_survive_all_its_replicas_but_one() {
        let chain = shape(Mode::Chain, 3, None).unwrap();
        assert_eq!((chain.witnesses, chain.deaths_survived()), (2, 2));
        assert!(chain.settings().contains("persist_order = \"parallel\""), "{}", chain.settings());
        assert_eq!(shape(Mode::Chain, 1, None).unwrap().witnesses, 0);
        assert_eq!(shape(Mode::Majority, 5, None).unwrap().deaths_survived(), 2);
    }

    #[test]
    fn what_no_cluster_has_is_refused() {
        for (mode, replicas, witnesses) in [
            (Mode::Majority, 3, Some(1)),
            (Mode::Majority, 2, None),
            (Mode::Majority, 0, None),
            (Mode::Chain, 0, None),
            (Mode::Chain, 6, None),
            (Mode::Chain, 3, Some(7)),
        ] {
            assert!(shape(mode, replicas, witnesses).is_err(), "{mode} {replicas} {witnesses:?}");
        }
    }
}

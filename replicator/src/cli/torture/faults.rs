//! What is done to a cluster. A new kind of fault is a variant of [`Fault`], with its weight and what it does.

use std::time::Duration;

use super::{chance::Chance, rounds::Arena};

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(super) enum Fault {
    /// kill -9 one node, or as many as leave a majority
    Kill,
    /// kill -9 the primary, on purpose
    Primary,
    /// kill -9 one replica, whatever it does in the cluster, and measure for how long nothing is acknowledged
    Replica,
    /// kill -9 a minority, start it, and kill one of it again while it catches up
    Again,
    /// kill -9 all nodes at once
    All,
    /// Stop a minority where it stands, and let it go on later (SIGSTOP, SIGCONT)
    Stop,
    /// Stop the primary so; when it goes on, it doesn't know that there is another
    StopPrimary,
    /// Hand the primary's part to another replica, as `replicator member transfer` does, and measure for how long nothing is acknowledged
    Transfer,
}

impl Fault {
    /// How often it is chosen, among the others that may be.
    fn weight(self) -> usize {
        match self {
            Self::Kill | Self::Primary | Self::Replica | Self::StopPrimary | Self::Transfer => 3,
            Self::Again | Self::Stop => 2,
            Self::All => 1,
        }
    }

    /// One of these.
    pub(super) fn choose(allowed: &[Self], chance: &mut Chance) -> Self {
        let weights: usize = allowed.iter().map(|fault| fault.weight()).sum();
        let mut left = chance.below(weights);
        for &fault in allowed {
            match left.checked_sub(fault.weight()) {
                Some(rest) => left = rest,
                None => return fault,
            }
        }
        unreachable!("the draw is below the sum of the weights")
    }

    /// Does it. Afterwards nodes may be dead or standing still: the round heals them.
    ///
    /// Draws the same from `chance` whatever the cluster does, so that a seed stands for one plan.
    pub(super) async fn strike(self, arena: &mut Arena<'_>, chance: &mut Chance) -> anyhow::Result<()> {
        let nodes = arena.nodes();
        let minority = (nodes - 1) / 2;
        let victims = chance.some(1 + chance.clone().below(minority.max(1)), nodes);
        let (short, under_load, patient) = (chance.millis(0..=150), chance.millis(100..=500), chance.coin());
        match self {
            Self::Kill => {
                for &victim in &victims {
                    arena.kill(victim).await?;
                }
                arena.goes_on(patient && minority > 0).await?;
                pause(under_load).await;
            }
            Self::Primary => {
                let primary = arena.primary().await?;
                arena.kill(primary).await?;
                arena.goes_on(patient && minority > 0).await?;
                pause(under_load).await;
            }
            Self::Replica => {
                let replicas = arena.replicas();
                let victim = replicas[victims[0] % replicas.len()];
                arena.kill(victim).await?;
                if minority > 0 {
                    arena.measure_outage().await;
                }
            }
            Self::Again => {
                for &victim in &victims {
                    arena.kill(victim).await?;
                }
                pause(under_load).await;
                for &victim in &victims {
                    arena.start(victim)?;
                }
                pause(short).await;
                arena.kill(victims[0]).await?;
            }
            Self::All => {
                for victim in 0..nodes {
                    arena.kill(victim).await?;
                }
                pause(short).await;
            }
            Self::Stop => {
                for &victim in &victims {
                    arena.stop(victim)?;
                }
                arena.goes_on(patient && minority > 0).await?;
                pause(under_load).await;
            }
            Self::StopPrimary => {
                let primary = arena.primary().await?;
                arena.stop(primary)?;
                // Longer than an election takes: another one leads, and writes without it, when it goes on.
                arena.goes_on(minority > 0).await?;
                pause(under_load).await;
            }
            Self::Transfer => {
                // Anywhere between two requests of a writer, and between two heartbeats.
                pause(short).await;
                arena.transfer(victims[0]).await?;
            }
        }
        Ok(())
    }
}

/// Time that passes under load: the point of it, so there is no condition to wait for.
async fn pause(time: Duration) {
    tokio::time::sleep(time).await;
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn every_fault_is_chosen_and_no_other() {
        let mut chance = Chance::new(1, 0);
        let mut chosen: Vec<Fault> = (0..500).map(|_| Fault::choose(Fault::value_variants(), &mut chance)).collect();
        chosen.sort_unstable();
        chosen.dedup();
        assert_eq!(chosen, Fault::value_variants());
        assert!((0..100).all(|_| Fault::choose(&[Fault::All, Fault::Stop], &mut chance) != Fault::Kill));
    }
}

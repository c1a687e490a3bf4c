//! What is done to a cluster. A new kind of fault is a variant of [`Fault`], with its weight and what it does.

use std::time::Duration;

use super::{arena::Arena, chance::Chance};

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
    /// kill -9 one node, delete its folder, and start it again: a new disk, which joins under load; often another fault strikes meanwhile.
    /// Chosen only with --wipe, or if it is named here
    Wipe,
    /// Fill the disk of the primary, of another node or of all, for a second or two; often another fault strikes meanwhile. Needs root.
    /// Chosen only with --full-disk, or if it is named here
    FullDisk,
}

impl Fault {
    /// Those that strike unless others are asked for: they take nothing away for ever, and need nothing of the machine.
    const USUAL: [Self; 8] = [
        Self::Kill,
        Self::Primary,
        Self::Replica,
        Self::Again,
        Self::All,
        Self::Stop,
        Self::StopPrimary,
        Self::Transfer,
    ];

    /// The ones that may be chosen: those named, the usual ones if none is, and these two if they are wanted.
    pub(super) fn allowed(named: &[Self], wipe: bool, full_disk: bool) -> Vec<Self> {
        let mut allowed = if named.is_empty() { Self::USUAL.to_vec() } else { named.to_vec() };
        allowed.extend([(wipe, Self::Wipe), (full_disk, Self::FullDisk)].iter().filter(|f| f.0).map(|f| f.1));
        // In an order that doesn't depend on how they were asked for, as the seed chooses by place.
        allowed.sort_unstable();
        allowed.dedup();
        allowed
    }

    /// How often it is chosen, among the others that may be.
    fn weight(self) -> usize {
        match self {
            Self::Kill
            | Self::Primary
            | Self::Replica
            | Self::StopPrimary
            | Self::Transfer
            | Self::Wipe
            | Self::FullDisk => 3,
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

    /// Another fault, perhaps, for the time in which this one lasts. Never a second loss of a disk, nor one that starts a node on a full disk.
    pub(super) fn choose_second(self, allowed: &[Self], chance: &mut Chance) -> Option<Self> {
        let mut seconds = allowed.to_vec();
        match self {
            Self::Wipe => seconds.retain(|&second| second != Self::Wipe),
            Self::FullDisk => seconds.retain(|second| ![Self::Wipe, Self::FullDisk, Self::Again].contains(second)),
            _ => return None,
        }
        (chance.coin() && !seconds.is_empty()).then(|| Self::choose(&seconds, chance))
    }

    /// Does it. Afterwards nodes may be dead or standing still: the round heals them.
    ///
    /// Draws the same from `chance` whatever the cluster does, so that a seed stands for one plan.
    pub(super) async fn strike(self, arena: &mut Arena<'_>, chance: &mut Chance) -> anyhow::Result<()> {
        let nodes = arena.nodes();
        let minority = arena.minority();
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
            Self::Wipe => {
                let (of_primary, seen) = (chance.below(3) == 0, chance.millis(0..=6_000));
                let victim = if of_primary { arena.primary().await? } else { victims[0] };
                arena.wipe(victim).await?;
                arena.goes_on(patient && minority > 0).await?;
                pause(short).await;
                arena.start(victim)?;
                // Before it is let in, while it catches up, or when it has.
                arena.while_catching_up(seen).await;
            }
            Self::FullDisk => {
                let (whose, time) = (chance.below(3), chance.millis(1_000..=2_000));
                let primary = arena.primary().await?;
                let other = (primary + 1 + victims[0] % (nodes - 1)) % nodes;
                match whose {
                    0 => arena.fill(&[primary])?,
                    1 => arena.fill(&[other])?,
                    _ => arena.fill(&(0..nodes).collect::<Vec<_>>())?,
                }
                // A node that isn't the primary may be left behind for it.
                arena.stay_full(time, whose == 1 && patient && minority > 0).await?;
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

    #[test]
    fn disks_are_lost_or_full_only_if_that_is_asked_for() {
        let usual = Fault::allowed(&[], false, false);
        assert!(!usual.contains(&Fault::Wipe) && !usual.contains(&Fault::FullDisk));
        assert_eq!(usual.len() + 2, Fault::value_variants().len(), "a new fault has no place yet");
        assert_eq!(Fault::allowed(&[], true, true), Fault::value_variants());
        assert_eq!(Fault::allowed(&[Fault::Wipe, Fault::Kill], true, false), [Fault::Kill, Fault::Wipe]);
    }

    #[test]
    fn a_second_fault_loses_no_second_disk() {
        let mut chance = Chance::new(2, 0);
        let mut seconds = |first: Fault| -> Vec<Fault> {
            let all = Fault::value_variants();
            let mut seconds: Vec<Fault> = (0..500).filter_map(|_| first.choose_second(all, &mut chance)).collect();
            seconds.sort_unstable();
            seconds.dedup();
            seconds
        };
        let rest = |without: &[Fault]| -> Vec<Fault> {
            Fault::value_variants().iter().copied().filter(|fault| !without.contains(fault)).collect()
        };
        assert_eq!(seconds(Fault::Wipe), rest(&[Fault::Wipe]));
        assert_eq!(seconds(Fault::FullDisk), rest(&[Fault::Wipe, Fault::FullDisk, Fault::Again]));
        assert_eq!(seconds(Fault::Kill), []);
        assert_eq!(Fault::Wipe.choose_second(&[Fault::Wipe], &mut chance), None);
    }
}

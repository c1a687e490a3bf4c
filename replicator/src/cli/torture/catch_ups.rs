//! How the replicas that were started again caught up, as their status tells: by the log, or by the whole state.

use replicator_proto::replicator::v1::Restart;

/// Defects that are told in words; the others are only counted.
const TOLD_MAX: u64 = 5;

/// What a catch-up took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Taken {
    /// Its own log, and what its peers' had more.
    Log,
    /// A peer's image, and the log behind it.
    WholeState,
}

/// The catch-ups of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct CatchUps {
    pub(super) log: u64,
    pub(super) whole_state: u64,
    /// Those whose account says neither: a defect.
    pub(super) untold: u64,
    /// The first of them, in words.
    pub(super) told: Vec<String>,
}

impl CatchUps {
    /// Counts one, of a node that serves again. `deeds`: what was done to it before.
    pub(super) fn count(&mut self, node: &str, restart: Option<&Restart>, deeds: &str) {
        match restart.and_then(taken) {
            Some(Taken::Log) => self.log += 1,
            Some(Taken::WholeState) => self.whole_state += 1,
            None => {
                if self.untold < TOLD_MAX {
                    self.told.push(format!(
                        "{node} serves again, after {deeds}, and its account of that start shows neither log nor whole state: {restart:?}"
                    ));
                }
                self.untold += 1;
            }
        }
    }

    pub(super) fn is_clean(&self) -> bool {
        self.untold == 0
    }
}

/// None: it doesn't tell.
fn taken(restart: &Restart) -> Option<Taken> {
    if !restart.caught_up {
        return None;
    }
    match &restart.whole_state {
        Some(whole) if whole.entered => Some(Taken::WholeState),
        // One that never came to be used: the log did.
        _ if !restart.peers.is_empty() => Some(Taken::Log),
        // With nobody's clock to compare with, "caught up" says nothing.
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use replicator_proto::replicator::v1::{PeerClock, WholeState};

    use super::*;

    #[test]
    fn a_catch_up_that_tells_neither_is_a_defect() {
        let clock = PeerClock { node_id: "n2".into(), log_index: 9 };
        let log = Restart { own_log_index: 7, peers: vec![clock], caught_up: true, ..Restart::default() };
        let whole = |entered| Restart {
            whole_state: Some(WholeState { from_node_id: "n2".into(), entered, ..WholeState::default() }),
            ..log.clone()
        };
        let mut catch_ups = CatchUps::default();
        for restart in [log.clone(), whole(true), whole(false)] {
            catch_ups.count("n1", Some(&restart), "kill n1");
        }
        assert_eq!(catch_ups, CatchUps { log: 2, whole_state: 1, ..CatchUps::default() });
        for restart in [
            None,
            Some(Restart { caught_up: false, ..log.clone() }),
            Some(Restart { caught_up: false, ..whole(true) }),
            Some(Restart { peers: Vec::new(), ..log.clone() }),
        ] {
            let mut bad = catch_ups.clone();
            bad.count("n1", restart.as_ref(), "kill n1");
            assert_eq!((bad.untold, bad.is_clean()), (1, false), "{restart:?}");
            assert!(bad.told[0].contains("n1 serves again, after kill n1"), "{:?}", bad.told);
        }
    }
}

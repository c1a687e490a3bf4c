//! Places in the log and in a session.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        pub struct $name(pub u64);

        impl $name {
            /// The one after this one.
            ///
            /// # Panics
            /// At `u64::MAX`, which no cluster reaches.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

counter! {
    /// The index of a log entry, from 0: the cluster's logical clock.
    LogIndex
}
counter! {
    /// Who may write: the term in majority mode, the configuration's epoch in chain mode. Never decreases.
    Epoch
}
counter! {
    /// The number of a request in its session, from 1.
    Sequence
}

/// A log entry's identity: equal positions mean equal entries, and equal logs before them.
///
/// Ordered by epoch first: the greatest position is the newest log, whatever its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Position {
    /// The epoch in which the entry was first written.
    pub epoch: Epoch,
    /// Its index.
    pub index: LogIndex,
}

impl Position {
    /// The position of `index` written in `epoch`.
    #[must_use]
    pub const fn new(epoch: u64, index: u64) -> Self {
        Self { epoch: Epoch(epoch), index: LogIndex(index) }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.index, self.epoch)
    }
}

//! What a row of entries was, and what came of it, counted.

use replicator_machine::{Applied, Command, Entry, Outcome, RequestResult};

/// What entries can be, each at the place of its number in [`Tally`].
const KINDS: [&str; 10] = [
    "genesis",
    "session opened",
    "session closed",
    "session kept",
    "request",
    "tick",
    "recovery",
    "activation",
    "upgrade",
    "strategy's own",
];
/// What can come of them.
const OUTCOMES: [&str; 13] = [
    "begun",
    "session opened",
    "session closed",
    "session kept",
    "executed",
    "trapped",
    "ticked",
    "refused",
    "recovered",
    "activated",
    "activation refused",
    "upgraded",
    "upgrade refused",
];

/// Place of the strategy's own entries among the kinds.
const OWN: usize = 9;
/// Place of requests among the kinds.
const REQUEST: usize = 4;

/// Entries, outcomes and pushes, counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    kinds: [u64; KINDS.len()],
    outcomes: [u64; OUTCOMES.len()],
    /// Pushes that the module made.
    pub pushes: u64,
    /// Bytes of their payloads.
    pub push_bytes: u64,
    /// Bytes of requests.
    pub request_bytes: u64,
}

impl Tally {
    /// Counts an entry.
    pub fn add(&mut self, entry: &Entry, applied: &Applied) {
        if let Command::Request { request, .. } = &entry.command {
            self.request_bytes += request.len() as u64;
        }
        self.kinds[kind(&entry.command)] += 1;
        self.outcomes[outcome(&applied.outcome)] += 1;
        self.pushes += applied.pushes.len() as u64;
        self.push_bytes += applied.pushes.iter().map(|push| push.payload.len() as u64).sum::<u64>();
    }

    /// Counts an entry of the strategy's own.
    pub const fn add_own(&mut self) {
        self.kinds[OWN] += 1;
    }

    /// What was counted after `earlier` was.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut since = self.clone();
        since.kinds.iter_mut().zip(earlier.kinds).for_each(|(now, then)| *now -= then);
        since.outcomes.iter_mut().zip(earlier.outcomes).for_each(|(now, then)| *now -= then);
        since.pushes -= earlier.pushes;
        since.push_bytes -= earlier.push_bytes;
        since.request_bytes -= earlier.request_bytes;
        since
    }

    /// All entries.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.kinds.iter().sum()
    }

    /// Those that are clients' requests.
    #[must_use]
    pub const fn requests(&self) -> u64 {
        self.kinds[REQUEST]
    }

    /// What there was of each kind, where there was any.
    pub fn kinds(&self) -> impl Iterator<Item = (&'static str, u64)> {
        KINDS.into_iter().zip(self.kinds).filter(|(_, count)| *count > 0)
    }

    /// What came of them, where anything did.
    pub fn outcomes(&self) -> impl Iterator<Item = (&'static str, u64)> {
        OUTCOMES.into_iter().zip(self.outcomes).filter(|(_, count)| *count > 0)
    }
}

const fn kind(command: &Command) -> usize {
    match command {
        Command::Genesis(_) => 0,
        Command::OpenSession { .. } => 1,
        Command::CloseSession { .. } => 2,
        Command::KeepAlive { .. } => 3,
        Command::Request { .. } => REQUEST,
        Command::Tick => 5,
        Command::Recover { .. } => 6,
        Command::Activate { .. } => 7,
        Command::Upgrade { .. } => 8,
    }
}

const fn outcome(outcome: &Outcome) -> usize {
    match outcome {
        Outcome::Genesis => 0,
        Outcome::SessionOpened { .. } => 1,
        Outcome::SessionClosed { .. } => 2,
        Outcome::Kept { .. } => 3,
        Outcome::Executed { result: RequestResult::Reply(_), .. } => 4,
        Outcome::Executed { result: RequestResult::Trap(_), .. } => 5,
        Outcome::Ticked { .. } => 6,
        Outcome::Refused(_) => 7,
        Outcome::Recovered { .. } => 8,
        Outcome::Activated { .. } => 9,
        Outcome::ActivationRefused(_) => 10,
        Outcome::Upgraded => 11,
        Outcome::UpgradeRefused { .. } => 12,
    }
}

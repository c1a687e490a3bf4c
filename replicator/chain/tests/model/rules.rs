//! The rules of docs/chain.md that the model can do without, one at a time, to see what each is for.

/// A rule; in brackets that of the safety rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    /// A disk that has promised (e, n) obeys no lesser attempt (6).
    OrderedAttempts,
    /// The promise is on the disk before it is answered, and there after a restart (4).
    PromiseIsDurable,
    /// Who is sealed acknowledges nothing (8).
    SealedIsSilent,
    /// Who is sealed passes no barrier (8, 11).
    SealedPassesNoBarrier,
    /// The target is the greatest (epoch, index) of those that count, not just one of them (6).
    TargetIsGreatest,
    /// An attempt has one target: a coordinator that has forgotten it needs a new grant (6).
    OneTarget,
    /// The compare-and-set expects the last granted attempt (7).
    LastGrantOnly,
    /// The next chain is made of those that confirmed, not of all that answered (7).
    ConfirmedOnly,
    /// Who confirms has dropped what its log had beyond the target (7).
    DropsTheRest,
    /// Who confirms holds all of the target (7).
    HoldsTheTarget,
    /// Who confirms holds it durably (7).
    EqualIsDurable,
    /// `Equalise` is obeyed only in the newest epoch that the disk knows.
    EqualiseInItsEpoch,
    /// No epoch before that of the log's last entry is taken for the newest: a process that has just started knows what its log knows.
    LogKnowsItsEpoch,
    /// The primary's own fsync counts like everybody's (5).
    PrimaryPersists,
    /// An entry is committed when all have acknowledged it, not some (5).
    AllAcknowledge,
    /// An append of another epoch is dropped (5).
    AppendsOfTheEpoch,
    /// An acknowledgement of another epoch is dropped (5).
    AcknowledgementsOfTheEpoch,
    /// An append is taken only after what it follows (6).
    AppendsFollow,
    /// A process that starts resumes nothing: it acknowledges only in the life that the configuration names (8).
    NobodyResumes,
    /// While it learns, a disk that the chain names in an earlier life drops nothing: that life may have acknowledged it (5).
    NamedDropsNothing,
    /// While it learns, a disk that has promised the epoch drops nothing: it may be a member of the next one (7).
    PromisedDropsNothing,
    /// Only disks of the chain are eligible (7).
    LearnersDontCount,
    /// A blank disk has a new id, and isn't in the chain by its old one's (1).
    WipedDisksDontCount,
    /// A disk whose incarnation isn't greater than all that were seen of it is an old copy, and counts as wiped (2).
    OldLivesDontCount,
    /// A disk of the chain that ends neither at the start nor in the epoch is an old copy, and isn't eligible (2).
    ElsewhereDoesntCount,
    /// A barrier is passed by every member (11).
    BarrierAsksAll,
    /// The barrier was begun after the read came (11).
    BarrierAfterTheRead,
    /// The read index is at least the epoch's start (11).
    ReadsFromTheStart,
}

//! A planted fault for the tests of quarantine: with REPLICATOR_DIVERGE=`FROM=>TO` in its environment, this replica's module gets a request TO where
//! the log has FROM, as often as REPLICATOR_DIVERGE_TIMES says, or once. As if something that is not in the log had a say in what the module does.
//!
//! Only in builds with the feature `planted-wrong-answers`, which the program `wrong-replicator` of the tests has and `replicator` has not.

use std::{
    env,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use replicator_machine::{Command, Entry};

static PLANTED: LazyLock<Option<(Bytes, Bytes)>> = LazyLock::new(|| {
    let planted = env::var("REPLICATOR_DIVERGE").ok()?;
    let (from, to) = planted.split_once("=>")?;
    Some((from.to_owned().into(), to.to_owned().into()))
});
static LEFT: LazyLock<AtomicU64> = LazyLock::new(|| {
    let times = env::var("REPLICATOR_DIVERGE_TIMES").ok().and_then(|times| times.parse().ok());
    AtomicU64::new(times.unwrap_or(1))
});

/// What this replica applies instead.
pub(super) fn applied(mut entry: Entry) -> Entry {
    let Some((from, to)) = &*PLANTED else { return entry };
    if let Command::Request { request, .. } = &mut entry.command
        && request == from
        && LEFT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    {
        *request = to.clone();
    }
    entry
}

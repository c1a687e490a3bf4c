//! What this node's operators want of the chain: repeated to the coordinator until the record shows it.

use replicator_chain::{Configuration, Wish};
use tokio::sync::oneshot;

use crate::replication::Member;

/// How long a wish is repeated.
const TICKS: u32 = 200;

type Done = oneshot::Sender<Result<(), String>>;

struct Waiting {
    wish: Wish,
    ticks_left: u32,
    done: Done,
}

#[derive(Default)]
pub(super) struct Wishes(Vec<Waiting>);

impl Wishes {
    pub(super) fn add(&mut self, wish: Wish, done: Done) {
        self.0.push(Waiting { wish, ticks_left: TICKS, done });
    }

    /// Answers those that have come about: at once, as what one operator wished another may undo in the next epoch.
    pub(super) fn settle(&mut self, now: Option<&Configuration>, members: &[Member]) {
        let Some(now) = now else { return };
        for waiting in self.0.extract_if(.., |waiting| is_done(waiting.wish, now, members)) {
            let _ = waiting.done.send(Ok(()));
        }
    }

    /// One tick: answers those that take too long.
    pub(super) fn tick(&mut self) {
        self.0.retain(|waiting| !waiting.done.is_closed());
        for late in self.0.extract_if(.., |waiting| waiting.ticks_left == 0) {
            let why = "it did not come about in time; `replicator status` tells what the chain waits for";
            let _ = late.done.send(Err(why.to_owned()));
        }
        for waiting in &mut self.0 {
            waiting.ticks_left -= 1;
        }
    }

    pub(super) fn wanted(&self) -> impl Iterator<Item = Wish> {
        self.0.iter().map(|waiting| waiting.wish)
    }

    pub(super) fn refused(&mut self, wish: Wish, why: &str) {
        for waiting in self.0.extract_if(.., |waiting| waiting.wish == wish) {
            let _ = waiting.done.send(Err(why.to_owned()));
        }
    }
}

/// A removed disk must have left the group's voters too, or the next coordinator would let it in again.
fn is_done(wish: Wish, now: &Configuration, members: &[Member]) -> bool {
    match wish {
        Wish::Primary(disk) => now.chain.first().is_some_and(|life| life.disk == disk),
        Wish::Remove(disk) => now.life_of(disk).is_none() && !members.iter().any(|member| member.disk == disk),
    }
}

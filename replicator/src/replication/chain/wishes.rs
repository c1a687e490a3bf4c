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

    /// One tick: settles what has come about or taken too long, and returns the rest.
    pub(super) fn wanted(&mut self, now: Option<&Configuration>, members: &[Member]) -> Vec<Wish> {
        for mut waiting in std::mem::take(&mut self.0) {
            if now.is_some_and(|now| is_done(waiting.wish, now, members)) {
                let _ = waiting.done.send(Ok(()));
            } else if waiting.ticks_left == 0 {
                let why = "it did not come about in time; `replicator status` tells what the chain waits for";
                let _ = waiting.done.send(Err(why.to_owned()));
            } else if !waiting.done.is_closed() {
                waiting.ticks_left -= 1;
                self.0.push(waiting);
            }
        }
        self.0.iter().map(|waiting| waiting.wish).collect()
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

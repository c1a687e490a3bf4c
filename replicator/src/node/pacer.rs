//! When the next batch goes to the primary.
//!
//! Each batch costs every node on its way a fixed price: some thread switches, messages and an fsync. One batch is under way at a time,
//! and what comes meanwhile makes the next one, as in Nagle's algorithm; only a full batch doesn't wait. And where many clients wait for
//! their answers, those just answered are about to ask again: the next batch is held for a moment, until they have. Otherwise the clients
//! fall into two halves that pay for twice the batches. Where holding doesn't bring more entries it is soon given up, and a few clients
//! are never held.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;

use crate::seams::Clock;

/// With fewer entries about, nothing is held.
const ENTRIES_MIN: usize = 16;
/// The longest that a batch is held.
const HOLD_MAX: Duration = Duration::from_micros(1_000);
/// Below this, holding has been given up.
const HOLD_MIN: Duration = Duration::from_micros(100);
/// After so many batches, it is tried again.
const RETRY: u32 = 256;

/// Tells whether the next batch is to wait.
pub(super) struct Pacer {
    clock: Arc<dyn Clock>,
    /// How long holding has lately been worth while.
    patience: Duration,
    /// Batches since holding was given up.
    given_up: u32,
    /// A batch is held until this many entries wait.
    entries: usize,
    /// Or until this ends. None: nothing is held.
    hold: Option<BoxFuture<'static, ()>>,
}

impl Pacer {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, patience: HOLD_MAX, given_up: 0, entries: 0, hold: None }
    }

    /// A batch goes.
    pub(super) fn given(&mut self) {
        if self.hold.take().is_some() {
            self.patience = (2 * self.patience).min(HOLD_MAX); // It was full before its time.
        }
    }

    /// A batch was applied, and the clients of its entries are being answered; others wait already.
    pub(super) fn finished(&mut self, answered: usize, waiting: usize) {
        let about = answered + waiting;
        if about < ENTRIES_MIN {
            return;
        }
        if self.patience < HOLD_MIN {
            self.given_up += 1;
            if self.given_up < RETRY {
                return;
            }
            (self.given_up, self.patience) = (0, HOLD_MAX);
        }
        self.entries = about - about / 8; // Some clients have nothing more to ask.
        self.hold = Some(self.clock.pause(self.patience));
    }

    /// How many entries make a batch that isn't held any longer.
    pub(super) fn enough(&self) -> usize {
        if self.hold.is_some() { self.entries } else { 1 }
    }

    /// Ends when the time to hold is over; never if nothing is held.
    pub(super) async fn released(&mut self) {
        match &mut self.hold {
            Some(hold) => hold.await,
            None => std::future::pending().await,
        }
        self.hold = None;
        self.patience /= 2;
    }
}

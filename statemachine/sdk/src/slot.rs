//! The place of the machine, and of the snapshot that is being taken of it: it borrows from the machine beside it.

use std::{marker::PhantomData, ptr::NonNull};

use crate::{StateMachine, stream::SnapshotStream};

/// The machine, once there is one.
///
/// Invariant: `snapshot` borrows `*machine`, so it is gone before the machine is lent out for a change, replaced or dropped.
pub(crate) struct Slot<M> {
    snapshot: Option<SnapshotStream<'static>>,
    /// From `Box::into_raw`: a box may not be moved or lent out while something borrows from it, a pointer may.
    machine: Option<NonNull<M>>,
    owns: PhantomData<M>,
}

impl<M: StateMachine> Slot<M> {
    pub(crate) const fn empty() -> Self {
        Self { snapshot: None, machine: None, owns: PhantomData }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.machine.is_none()
    }

    /// Fills the slot.
    pub(crate) fn fill(&mut self, machine: M) {
        assert!(self.is_empty(), "rsm_init is called once");
        self.machine = NonNull::new(Box::into_raw(Box::new(machine)));
    }

    fn pointer(&self) -> NonNull<M> {
        self.machine.expect("rsm_init comes first")
    }

    /// The machine, for a look.
    pub(crate) fn get(&self) -> &M {
        // SAFETY: the pointer is from `Box::into_raw` and freed only in `drop`. A mutable borrow of it lives no longer
        // than a mutable borrow of `self`.
        unsafe { self.pointer().as_ref() }
    }

    /// The machine, for a change. Breaks off a snapshot that is being taken.
    pub(crate) fn get_mut(&mut self) -> &mut M {
        if self.snapshot.is_some() {
            self.snapshot = None;
        }
        // SAFETY: as in `get`; the one long-lived borrow, `snapshot`, is gone, and none begins while `self` is borrowed.
        unsafe { self.pointer().as_mut() }
    }

    /// The snapshot that is being taken, or a new one.
    pub(crate) fn snapshot(&mut self) -> &mut SnapshotStream<'static> {
        let pointer = self.pointer();
        self.snapshot.get_or_insert_with(|| {
            // SAFETY: as in `get`, and the invariant keeps the machine where and as it is for as long as the stream lives,
            // so the borrow may be called static.
            let machine: &'static M = unsafe { pointer.as_ref() };
            SnapshotStream::new(machine.snapshot())
        })
    }

    /// The snapshot has been taken, or isn't wanted any longer.
    pub(crate) fn end_snapshot(&mut self) {
        self.snapshot = None;
    }
}

impl<M> Drop for Slot<M> {
    fn drop(&mut self) {
        self.snapshot = None;
        if let Some(machine) = self.machine {
            // SAFETY: the pointer is from `Box::into_raw`, nothing borrows from it any longer, and this is its end.
            drop(unsafe { Box::from_raw(machine.as_ptr()) });
        }
    }
}

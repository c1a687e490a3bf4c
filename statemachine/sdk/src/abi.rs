//! The exports' bodies: pointers and integers outside, [`Guest`] inside. Only on wasm32, and only for `export!`.

use std::{cell::UnsafeCell, fmt, panic, ptr};

use crate::{StateMachine, guest::Guest, message::Message};

/// A value that the exports share. The module has one thread and no imports, so calls can't nest.
struct Global<T>(UnsafeCell<T>);

// SAFETY: wasm32-unknown-unknown has one thread here: the host refuses modules with shared memory.
unsafe impl<T> Sync for Global<T> {}

static MESSAGE: Global<Message> = Global(UnsafeCell::new(Message::new()));

fn set_message(text: fmt::Arguments<'_>) {
    // SAFETY: one thread, and `Message::set` calls only what formats the text, which can't come back here except
    // by a panic in a `Display`, and that one aborts.
    unsafe { (*MESSAGE.0.get()).set(text) }
}

/// A guest in a static.
pub struct Cell<M>(Global<Guest<M>>);

impl<M: StateMachine> Cell<M> {
    /// An empty guest.
    ///
    /// # Safety
    /// Its methods are called by the exports of a module alone, each of which the host calls on its own.
    pub const unsafe fn new() -> Self {
        Self(Global(UnsafeCell::new(Guest::new())))
    }

    #[allow(clippy::mut_from_ref)]
    fn guest(&self) -> &mut Guest<M> {
        // SAFETY: by the contract of `new`, one export runs at a time, and each borrows once.
        unsafe { &mut *self.0.0.get() }
    }

    /// Checks what the host says about the input's place.
    fn input(&self, ptr: i32, len: i32) -> (&mut Guest<M>, usize) {
        let (guest, len) = (self.guest(), len as u32 as usize);
        assert!(ptr as usize == guest.input().as_ptr() as usize, "inputs go to the address that rsm_input returned");
        assert!(len <= guest.input().len(), "an input is no longer than rsm_input was told");
        (guest, len)
    }

    /// `rsm_input`. The first call, so this is where panics get their hook.
    pub fn allocate_input(&self, len: i32) -> i32 {
        panic::set_hook(Box::new(|info| match (info.payload_as_str(), info.location()) {
            (text, Some(at)) => set_message(format_args!("{at}: {}", text.unwrap_or("panicked"))),
            (text, None) => set_message(format_args!("{}", text.unwrap_or("panicked"))),
        }));
        let guest = self.guest();
        guest.allocate_input(len as u32 as usize);
        guest.input().as_ptr() as i32
    }

    /// `rsm_init`.
    pub fn init(&self, ptr: i32, len: i32) -> i32 {
        let (guest, len) = self.input(ptr, len);
        verdict(guest.init(len))
    }

    /// `rsm_apply`.
    #[inline]
    pub fn apply(&self, ptr: i32, len: i32) -> i64 {
        let (guest, len) = self.input(ptr, len);
        region(guest.apply(len))
    }

    /// `rsm_query`.
    #[inline]
    pub fn query(&self, ptr: i32, len: i32) -> i64 {
        let (guest, len) = self.input(ptr, len);
        region(guest.query(len))
    }

    /// `rsm_snapshot`.
    pub fn snapshot(&self, max: i32) -> i64 {
        region(self.guest().snapshot(max as u32 as usize))
    }

    /// `rsm_restore`.
    pub fn restore(&self, ptr: i32, len: i32, schema: i32, last: i32) -> i32 {
        let (guest, len) = self.input(ptr, len);
        verdict(guest.restore(len, schema as u32, last != 0))
    }
}

/// `rsm_panic_buf`.
pub fn panic_buf() -> i32 {
    ptr::from_ref(&MESSAGE).addr() as i32
}

/// Where bytes are, for the host: `(ptr << 32) | len`.
#[inline]
pub fn region(bytes: &[u8]) -> i64 {
    ((bytes.as_ptr().addr() as i64) << 32) | bytes.len() as i64
}

/// 0, or 1 with the reason in the panic buffer.
fn verdict(result: Result<(), String>) -> i32 {
    match result {
        Ok(()) => 0,
        Err(reason) => {
            set_message(format_args!("{reason}"));
            1
        }
    }
}

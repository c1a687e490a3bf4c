//! Modules that replace one another: `notes.wat`, with what differs filled in.

/// What makes one of them. The hooks are instructions at the beginning of an export.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Notes {
    pub(crate) description: &'static str,
    /// What each request adds to the number of calls.
    pub(crate) step: u32,
    pub(crate) init: &'static str,
    pub(crate) snapshot: &'static str,
    pub(crate) restore: &'static str,
}

pub(crate) const V1: Notes = Notes {
    description: "app=notes version=1 schema=1 accepts_from=1,2",
    step: 1,
    init: "",
    snapshot: "",
    restore: "",
};

pub(crate) const V2: Notes = Notes { description: "app=notes version=2 schema=2 accepts_from=1,2", step: 10, ..V1 };

pub(crate) const LOOP: &str = "(loop $ever (br $ever))";
pub(crate) const BOMB: &str =
    "(loop $more (br_if $more (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))) (unreachable)";
pub(crate) const REFUSE: &str = "(call $panic_text) (return (i32.const 7))";
pub(crate) const PANIC: &str = "(call $panic_text) (unreachable)";
/// Not at the first piece.
pub(crate) const LATE: &str = "(if (global.get $at) (then (call $panic_text) (unreachable)))";
pub(crate) const OUT_OF_BOUNDS: &str = "(drop (i32.load (i32.const -4)))";
/// All over the state, before anything else.
pub(crate) const WRITE: &str =
    "(memory.fill (i32.const 131056) (i32.const 0xff) (i32.const 16)) (global.set $length (i32.const 3))";

impl Notes {
    pub(crate) fn wasm(&self) -> Vec<u8> {
        let Self { description, step, init, snapshot, restore } = self;
        let text = include_str!("notes.wat")
            .replace("{description}", description)
            .replace("{describe}", &((16u64 << 32) | description.len() as u64).to_string())
            .replace("{step}", &step.to_string())
            .replace("{init}", init)
            .replace("{snapshot}", snapshot)
            .replace("{restore}", restore);
        wat::parse_str(text).expect("it is valid")
    }
}

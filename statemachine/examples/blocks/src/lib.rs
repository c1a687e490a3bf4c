//! Blocks of 4 KiB: a state as large as is asked for, an example of a module, and what `replicator bench` measures images with.
//!
//! A request is a line of text, and so is the answer:
//!
//! | request | answer |
//! |---|---|
//! | `fill COUNT` | adds COUNT blocks of bytes that can't be compressed; how many there are now |
//! | `write BLOCK TEXT` | puts TEXT at the beginning of a block; how often that block was written |
//! | `trap BLOCK` | none: it writes to the block, and then the module panics, which takes that back |
//! | `read BLOCK` (a query too) | how often the block was written, a space, and the last text |
//! | `size` (a query too) | how many blocks there are |
//!
//! Blocks are numbered from 0. What can't be done is answered with `error: ` and the reason.
//!
//! Build it with `cargo build --profile wasm --target wasm32-unknown-unknown -p blocks-module`.
#![forbid(unsafe_code)]

use statemachine::{Context, Output, StateMachine, export};

/// Bytes of a block, its head included.
const BLOCK_BYTES: usize = 4 << 10;
/// How often the block was written, and how long its text is: two u32, little-endian.
const HEAD_BYTES: usize = 8;
/// Bytes of a record of a snapshot: a quarter of a block, so that a swap is measured with values of the usual size.
const RECORD_BYTES: usize = 1 << 10;
const TEXT_BYTES_MAX: usize = BLOCK_BYTES - HEAD_BYTES;
/// Blocks that one request may add: what a call's fuel is enough for.
const FILL_MAX: usize = 1 << 10;
/// Every state needs a bound: 3 GiB, which leaves a wasm memory some room.
const BLOCKS_MAX: usize = 3 << 18;
/// Blocks of one allocation, so that a state that grows is never moved.
const EXTENT_BLOCKS: usize = 256;

/// All state is here.
#[derive(Debug, Default)]
pub struct Blocks {
    /// Each of [`EXTENT_BLOCKS`]; the last one may have fewer.
    extents: Vec<Vec<u8>>,
}

// The line that makes a module of it.
export!(Blocks);

impl StateMachine for Blocks {
    const APP: &'static str = "blocks";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const SCHEMA: u32 = 2;

    fn init(config: &[u8]) -> Result<Self, String> {
        if config.is_empty() { Ok(Self::default()) } else { Err("blocks has no configuration".to_owned()) }
    }

    fn apply(&mut self, _context: &Context, request: &[u8], output: &mut Output) {
        match self.execute(request) {
            Ok(answer) => output.reply(answer.as_bytes()),
            Err(reason) => output.reply(format!("error: {reason}").as_bytes()),
        }
    }

    fn query(&self, _context: &Context, request: &[u8], output: &mut Output) {
        match words(request).and_then(|(verb, rest)| self.look_up(verb, rest)) {
            Ok(answer) => output.reply(answer.as_bytes()),
            Err(reason) => output.reply(format!("error: {reason}").as_bytes()),
        }
    }

    fn snapshot(&self) -> impl Iterator<Item = Vec<u8>> {
        self.extents.iter().flat_map(|extent| extent.chunks_exact(RECORD_BYTES)).map(<[u8]>::to_vec)
    }

    fn restore(&mut self, _schema: u32, record: &[u8]) -> Result<(), String> {
        if record.len() != RECORD_BYTES {
            return Err(format!("a record is {RECORD_BYTES} bytes of a block"));
        }
        self.extent()?.extend_from_slice(record);
        Ok(())
    }
}

impl Blocks {
    fn count(&self) -> usize {
        let last = self.extents.last().map_or(0, Vec::len) / BLOCK_BYTES;
        self.extents.len().saturating_sub(1) * EXTENT_BLOCKS + last
    }

    fn execute(&mut self, request: &[u8]) -> Result<String, String> {
        let (verb, rest) = words(request)?;
        match verb {
            "fill" => {
                let count = number(rest)?;
                if count > FILL_MAX || self.count() + count > BLOCKS_MAX {
                    return Err(format!(
                        "one request adds {FILL_MAX} blocks at most, and there are {BLOCKS_MAX} at most"
                    ));
                }
                for _ in 0..count {
                    let mut random = Random(self.count() as u64 + 1);
                    let block = self.add()?;
                    block[HEAD_BYTES..].chunks_exact_mut(8).for_each(|bytes| bytes.copy_from_slice(&random.next()));
                }
                Ok(self.count().to_string())
            }
            "write" => {
                let (block, text) = rest.split_once(' ').ok_or("try `write BLOCK TEXT`")?;
                if text.len() > TEXT_BYTES_MAX {
                    return Err(format!("a block holds {TEXT_BYTES_MAX} bytes of text"));
                }
                Ok(write(self.block_mut(block)?, text).to_string())
            }
            "trap" => {
                write(self.block_mut(rest)?, "what a trap leaves behind, if it isn't taken back");
                panic!("told to trap");
            }
            verb => self.look_up(verb, rest),
        }
    }

    fn look_up(&self, verb: &str, rest: &str) -> Result<String, String> {
        match verb {
            "read" => {
                let number = self.number(rest)?;
                let block =
                    &self.extents[number / EXTENT_BLOCKS][number % EXTENT_BLOCKS * BLOCK_BYTES..][..BLOCK_BYTES];
                let text = &block[HEAD_BYTES..][..head(block, 4) as usize];
                Ok(format!("{} {}", head(block, 0), String::from_utf8_lossy(text)))
            }
            "size" => Ok(self.count().to_string()),
            _ => Err("try `fill COUNT`, `write BLOCK TEXT`, `read BLOCK`, `size` or `trap BLOCK`".to_owned()),
        }
    }

    /// The allocation that has room for more.
    fn extent(&mut self) -> Result<&mut Vec<u8>, String> {
        if self.count() >= BLOCKS_MAX {
            return Err(format!("there are {BLOCKS_MAX} blocks already"));
        }
        if self.extents.last().is_none_or(|extent| extent.len() == EXTENT_BLOCKS * BLOCK_BYTES) {
            self.extents.push(Vec::with_capacity(EXTENT_BLOCKS * BLOCK_BYTES));
        }
        self.extents.last_mut().ok_or_else(|| "there is no extent".to_owned())
    }

    /// One more block, of zeros.
    fn add(&mut self) -> Result<&mut [u8], String> {
        let extent = self.extent()?;
        let start = extent.len();
        extent.resize(start + BLOCK_BYTES, 0);
        Ok(&mut extent[start..])
    }

    fn block_mut(&mut self, digits: &str) -> Result<&mut [u8], String> {
        let number = self.number(digits)?;
        Ok(&mut self.extents[number / EXTENT_BLOCKS][number % EXTENT_BLOCKS * BLOCK_BYTES..][..BLOCK_BYTES])
    }

    fn number(&self, digits: &str) -> Result<usize, String> {
        let number = number(digits)?;
        if number < self.count() { Ok(number) } else { Err(format!("there are {} blocks", self.count())) }
    }
}

/// Puts the text into the block; how often that was done.
fn write(block: &mut [u8], text: &str) -> u32 {
    let writes = head(block, 0).wrapping_add(1);
    block[..4].copy_from_slice(&writes.to_le_bytes());
    block[4..HEAD_BYTES].copy_from_slice(&(text.len() as u32).to_le_bytes());
    block[HEAD_BYTES..][..text.len()].copy_from_slice(text.as_bytes());
    writes
}

fn head(block: &[u8], at: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&block[at..at + 4]);
    u32::from_le_bytes(bytes)
}

/// xorshift64: the same on every replica, and nothing to compress.
struct Random(u64);

impl Random {
    fn next(&mut self) -> [u8; 8] {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        // The first states of a small seed are mostly zeros.
        self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()
    }
}

/// The first word, and the rest of the line.
fn words(request: &[u8]) -> Result<(&str, &str), String> {
    let text = std::str::from_utf8(request).map_err(|_| "a request is UTF-8 text")?;
    Ok(text.split_once(' ').unwrap_or((text, "")))
}

fn number(word: &str) -> Result<usize, String> {
    word.parse().map_err(|_| format!("{word:?} isn't a number"))
}

#[cfg(test)]
mod tests {
    use statemachine::{SessionId, StateMachine as _, testing::Harness};

    use super::{BLOCK_BYTES, Blocks, EXTENT_BLOCKS, FILL_MAX, TEXT_BYTES_MAX};

    /// A machine of so many blocks, and a client to ask it.
    fn blocks(count: usize) -> (Harness<Blocks>, SessionId) {
        let mut harness = Harness::new(b"").unwrap();
        let client = harness.connect().session;
        assert_eq!(ask(&mut harness, client, &format!("fill {count}")), count.to_string());
        (harness, client)
    }

    fn ask(harness: &mut Harness<Blocks>, client: SessionId, request: &str) -> String {
        String::from_utf8(harness.request(client, request.as_bytes()).reply().to_vec()).unwrap()
    }

    #[test]
    fn what_is_written_is_read_and_counted() {
        let (mut harness, client) = blocks(EXTENT_BLOCKS + 2);
        assert_eq!(ask(&mut harness, client, "read 256"), "0 ");
        assert_eq!(ask(&mut harness, client, "write 256 one text"), "1");
        assert_eq!(ask(&mut harness, client, "write 256 more"), "2");
        assert_eq!(harness.query(client, b"read 256").reply(), b"2 more");
        assert_eq!(ask(&mut harness, client, "read 257"), "0 ", "the next one is another");
        assert_eq!(ask(&mut harness, client, "fill 3"), "261");
        assert_eq!(harness.query(client, b"size").reply(), b"261");
        assert_eq!(ask(&mut harness, client, "read 256"), "2 more", "it grew and was not moved");
    }

    #[test]
    fn filled_blocks_differ_and_are_not_zeros() {
        let (mut harness, _) = blocks(2);
        let records: Vec<u8> = harness.snapshot().concat();
        let zeros = records.iter().filter(|byte| **byte == 0).count();
        assert!(zeros < records.len() / 50, "{zeros} of {} bytes are zero", records.len());
    }

    #[test]
    fn what_cannot_be_done_is_refused_and_changes_nothing() {
        let (mut harness, client) = blocks(1);
        let before = harness.snapshot();
        let long = format!("write 0 {}", "x".repeat(TEXT_BYTES_MAX + 1));
        let many = format!("fill {}", FILL_MAX + 1);
        for request in
            ["", "write", "write 0", "write 1 x", "write -1 x", "read", "read 1", "trap 1", "fill x", &long, &many]
        {
            assert!(ask(&mut harness, client, request).starts_with("error: "), "{request:?} was taken");
        }
        assert_eq!(harness.request(client, b"\xff").reply(), b"error: a request is UTF-8 text");
        assert!(harness.query(client, b"write 0 x").reply().starts_with(b"error: "));
        assert_eq!(harness.snapshot(), before);
        assert!(Harness::<Blocks>::new(b"anything").is_err());
    }

    #[test]
    fn a_full_block_takes_a_text_of_its_size() {
        let (mut harness, client) = blocks(1);
        let text = "x".repeat(TEXT_BYTES_MAX);
        assert_eq!(ask(&mut harness, client, &format!("write 0 {text}")), "1");
        assert_eq!(ask(&mut harness, client, "read 0"), format!("1 {text}"));
    }

    #[test]
    #[should_panic(expected = "told to trap")]
    fn trap_panics() {
        let (mut harness, client) = blocks(1);
        ask(&mut harness, client, "trap 0");
    }

    #[test]
    fn restored_blocks_go_on_where_the_others_stopped() {
        let (mut harness, client) = blocks(3);
        ask(&mut harness, client, "write 1 text");
        let chunks = harness.snapshot_in_chunks(BLOCK_BYTES - 7);
        let mut restored = Harness::<Blocks>::restored(b"", Blocks::SCHEMA, &chunks).unwrap();
        assert_eq!(restored.snapshot(), harness.snapshot());
        let mut swapped = harness.swap::<Blocks>(b"").unwrap();
        assert_eq!(ask(&mut swapped, client, "write 1 again"), "2");
    }
}

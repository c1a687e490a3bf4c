//! A journal of numbered requests: an example of a module, and what `replicator torture` loads a cluster with.
//!
//! Each writer numbers its requests. The journal remembers which numbers it has executed, and notices one that comes twice, so
//! that whoever loads a cluster can tell afterwards whether a request was lost or doubled. A request is a line of text,
//! and so is the answer:
//!
//! | request | answer | pushed to the topic `journal/WRITER` |
//! |---|---|---|
//! | `append WRITER NUMBER PAYLOAD CHECK` | `EXECUTION NUMBERS` | `WRITER NUMBER` |
//! | `runs WRITER` (a query too) | `DOUBLED` and then the numbers executed, in order, as ` FIRST+COUNT` for each unbroken run | |
//! | `writers` (a query too) | a line `WRITER NUMBERS DOUBLED` for each writer, in the order of their names | |
//! | `about` (a query too) | `VERSION SWAPS`: of the module that runs, and how often one has taken over from another | |
//! | `bytes WRITER` (a query too; version 2) | bytes of the payloads of its appends, since version 2 runs | |
//!
//! EXECUTION is this append's own place among the appends of all writers, from 1; NUMBERS is how many numbers the writer has now; DOUBLED is
//! how many executions of its numbers were not the first. CHECK is the 64-bit FNV-1a hash, in 16 hexadecimal digits, of `WRITER NUMBER PAYLOAD`:
//! a request that was changed on its way is refused. What can't be done is answered with `error: ` and the reason.
//!
//! There are two versions of it, for swaps: one source, which two packages build, and their version decides. They write their snapshots in
//! different schemas, and each reads both. Back in version 1, the bytes are lost, and nothing else.
//!
//! Build it with `cargo build --profile wasm --target wasm32-unknown-unknown -p journal-module -p journal-v2-module`.
#![forbid(unsafe_code)]

mod snapshot;

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fmt::Write,
};

use statemachine::{Context, Output, StateMachine, TopicId, export};

/// Whether this is version 1.
const IS_V1: bool = matches!(env!("CARGO_PKG_VERSION_MAJOR").as_bytes(), b"1");
const NAME_BYTES_MAX: usize = 64;
/// Every state needs a bound, or a client could fill the memory.
const WRITERS_MAX: usize = 1 << 16;
/// Unbroken runs of one writer: it may leave out this many numbers, less one.
const RUNS_MAX: usize = 1 << 12;

/// All state is here.
#[derive(Debug, Default)]
pub struct Journal {
    /// Appends executed, of all writers.
    executions: u64,
    /// How often a module has taken over from another, this one or the other version.
    swaps: u64,
    writers: BTreeMap<String, Writer>,
}

/// What one writer has had executed.
#[derive(Debug)]
struct Writer {
    /// From the first number of each unbroken run to how many there are in it. A writer that leaves nothing out has one run, however
    /// much it writes. *Invariant:* two runs neither overlap nor touch.
    runs: BTreeMap<u64, u64>,
    /// How many numbers are in the runs.
    numbers: u64,
    /// Executions of a number that was there already.
    doubled: u64,
    /// Of the payloads of its appends, since version 2 runs. Always 0 in version 1.
    bytes: u64,
    /// Where its appends are pushed. Made once, for it costs a hash.
    topic: TopicId,
}

// The line that makes a module of it.
export!(Journal);

impl StateMachine for Journal {
    const APP: &'static str = "journal";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const SCHEMA: u32 = if IS_V1 { 1 } else { 2 };
    const ACCEPTS_FROM: &'static [u32] = if IS_V1 { &[2] } else { &[1] };

    fn init(config: &[u8]) -> Result<Self, String> {
        if config.is_empty() { Ok(Self::default()) } else { Err("journal has no configuration".to_owned()) }
    }

    fn apply(&mut self, _context: &Context, request: &[u8], output: &mut Output) {
        match self.execute(request, output) {
            Ok(answer) => output.reply(answer.as_bytes()),
            Err(reason) => output.reply(format!("error: {reason}").as_bytes()),
        }
    }

    fn query(&self, _context: &Context, request: &[u8], output: &mut Output) {
        match words(request).and_then(|words| self.look_up(&words)) {
            Ok(answer) => output.reply(answer.as_bytes()),
            Err(reason) => output.reply(format!("error: {reason}").as_bytes()),
        }
    }

    fn snapshot(&self) -> impl Iterator<Item = Vec<u8>> {
        self.records()
    }

    fn restore(&mut self, schema: u32, record: &[u8]) -> Result<(), String> {
        match schema {
            1 => self.restore_line(record),
            _ => self.restore_bytes(record),
        }
    }

    fn restored(&mut self, _schema: u32) -> Result<(), String> {
        self.swaps += 1;
        if IS_V1 {
            self.writers.values_mut().for_each(|writer| writer.bytes = 0);
        }
        Ok(())
    }
}

impl Journal {
    fn execute(&mut self, request: &[u8], output: &mut Output) -> Result<String, String> {
        // The bytes are a client's: whatever they are, the answer is a reply and never a panic.
        match words(request)?.as_slice() {
            ["append", name, digits, payload, check] => {
                if *check != format!("{:016x}", fnv1a(format!("{name} {digits} {payload}").as_bytes())) {
                    return Err("the check is not that of this request".to_owned());
                }
                let number = number(digits)?;
                if number == u64::MAX {
                    return Err(format!("numbers end below {number}"));
                }
                let writer = self.writer(name)?;
                writer.record(number)?;
                if !IS_V1 {
                    writer.bytes += payload.len() as u64;
                }
                let (numbers, topic) = (writer.numbers, writer.topic);
                self.executions += 1;
                output.push_to_topic(topic, format!("{name} {number}").as_bytes());
                Ok(format!("{} {numbers}", self.executions))
            }
            words => self.look_up(words),
        }
    }

    /// The writer of that name, made if there is none.
    fn writer(&mut self, name: &str) -> Result<&mut Writer, String> {
        let full = self.writers.len() >= WRITERS_MAX;
        match self.writers.entry(name.to_owned()) {
            Entry::Occupied(writer) => Ok(writer.into_mut()),
            Entry::Vacant(_) if name.len() > NAME_BYTES_MAX => {
                Err(format!("a name has at most {NAME_BYTES_MAX} bytes"))
            }
            Entry::Vacant(_) if full => Err(format!("there are {WRITERS_MAX} writers already")),
            Entry::Vacant(free) => Ok(free.insert(Writer::new(name))),
        }
    }

    fn look_up(&self, words: &[&str]) -> Result<String, String> {
        match words {
            ["runs", name] => Ok(match self.writers.get(*name) {
                Some(writer) => writer.runs.iter().fold(writer.doubled.to_string(), |mut line, (first, count)| {
                    write!(line, " {first}+{count}").expect("a String takes everything");
                    line
                }),
                None => "0".to_owned(),
            }),
            ["writers"] => Ok(self.writers.iter().fold(String::new(), |mut lines, (name, writer)| {
                writeln!(lines, "{name} {} {}", writer.numbers, writer.doubled).expect("a String takes everything");
                lines
            })),
            ["about"] => Ok(format!("{} {}", Self::VERSION, self.swaps)),
            ["bytes", name] if !IS_V1 => Ok(self.writers.get(*name).map_or(0, |writer| writer.bytes).to_string()),
            _ => Err("try `append WRITER NUMBER PAYLOAD CHECK`, `runs WRITER`, `writers` or `about`".to_owned()),
        }
    }
}

impl Writer {
    fn new(name: &str) -> Self {
        let topic = TopicId::of_name(&format!("journal/{name}"));
        Self { runs: BTreeMap::new(), numbers: 0, doubled: 0, bytes: 0, topic }
    }

    /// Notes that `number` was executed.
    fn record(&mut self, number: u64) -> Result<(), String> {
        let before = self.runs.range(..=number).next_back().map(|(first, count)| (*first, *count));
        if before.is_some_and(|(first, count)| number - first < count) {
            self.doubled += 1;
            return Ok(());
        }
        // Check first and change then: a refused request leaves no trace.
        let next = number + 1;
        let touching = before.filter(|(first, count)| first + count == number);
        let follows = self.runs.contains_key(&next);
        if touching.is_none() && !follows && self.runs.len() >= RUNS_MAX {
            return Err(format!("too many numbers are left out; a writer has at most {RUNS_MAX} runs"));
        }
        let after = self.runs.remove(&next).unwrap_or(0);
        let (first, count) = touching.unwrap_or((number, 0));
        self.runs.insert(first, count + 1 + after);
        self.numbers += 1;
        Ok(())
    }
}

fn number(word: &str) -> Result<u64, String> {
    word.parse().map_err(|_| format!("{word} isn't a number"))
}

/// Splits a request at white space.
fn words(request: &[u8]) -> Result<Vec<&str>, String> {
    let text = std::str::from_utf8(request).map_err(|_| "a request is UTF-8 text")?;
    Ok(text.split_whitespace().collect())
}

/// The 64-bit FNV-1a hash.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use statemachine::{SessionId, StateMachine, testing::Harness};

    use super::{Journal, RUNS_MAX, fnv1a};

    /// A machine, and a client to ask it.
    fn journal() -> (Harness<Journal>, SessionId) {
        let mut harness = Harness::new(b"").unwrap();
        let client = harness.connect().session;
        (harness, client)
    }

    fn ask(harness: &mut Harness<Journal>, client: SessionId, request: &str) -> String {
        String::from_utf8(harness.request(client, request.as_bytes()).reply().to_vec()).unwrap()
    }

    fn append(writer: &str, number: u64) -> String {
        let text = format!("{writer} {number} payload");
        format!("append {text} {:016x}", fnv1a(text.as_bytes()))
    }

    #[test]
    fn an_append_is_counted_and_pushed() {
        let (mut harness, client) = journal();
        assert_eq!(ask(&mut harness, client, &append("a", 0)), "1 1");
        assert_eq!(ask(&mut harness, client, &append("b", 0)), "2 1");
        let outcome = harness.request(client, append("a", 1).as_bytes());
        assert_eq!(outcome.reply(), b"3 2");
        assert_eq!(outcome.pushes.len(), 1);
        assert!(outcome.pushes[0].is_to_topic("journal/a"));
        assert_eq!(outcome.pushes[0].payload, b"a 1");
        assert_eq!(harness.query(client, b"writers").reply(), b"a 2 0\nb 1 0\n");
    }

    #[test]
    fn numbers_in_any_order_become_runs() {
        let (mut harness, client) = journal();
        for number in [5, 1, 2, 7, 6, 0, 9] {
            ask(&mut harness, client, &append("a", number));
        }
        assert_eq!(harness.query(client, b"runs a").reply(), b"0 0+3 5+3 9+1");
        assert_eq!(harness.query(client, b"runs nobody").reply(), b"0");
    }

    #[test]
    fn a_number_that_comes_twice_is_doubled() {
        let (mut harness, client) = journal();
        for number in [0, 1, 2, 1, 1, 0] {
            ask(&mut harness, client, &append("a", number));
        }
        assert_eq!(harness.query(client, b"runs a").reply(), b"3 0+3");
        assert_eq!(harness.query(client, b"writers").reply(), b"a 3 3\n");
    }

    #[test]
    fn what_cannot_be_done_is_refused_and_changes_nothing() {
        let (mut harness, client) = journal();
        ask(&mut harness, client, &append("a", 0));
        let before = harness.snapshot();
        let damaged = append("a", 1).replace("payload", "paylord");
        let (long, huge) = (append(&"x".repeat(65), 0), append("a", u64::MAX));
        for request in [&damaged, &long, &huge, "append a 1", "runs", "", "append a x y 0"] {
            assert!(ask(&mut harness, client, request).starts_with("error: "), "{request:?} was taken");
        }
        assert_eq!(harness.request(client, b"\xff").reply(), b"error: a request is UTF-8 text");
        assert!(harness.query(client, append("a", 1).as_bytes()).reply().starts_with(b"error: "));
        assert_eq!(harness.snapshot(), before);
        assert!(Harness::<Journal>::new(b"anything").is_err());
    }

    #[test]
    fn a_writer_cannot_leave_out_numbers_for_ever() {
        let (mut harness, client) = journal();
        for run in 0..RUNS_MAX as u64 {
            ask(&mut harness, client, &append("a", 2 * run));
        }
        assert!(ask(&mut harness, client, &append("a", 1 << 40)).starts_with("error: too many"));
        assert_eq!(ask(&mut harness, client, &append("a", 1)), format!("{0} {0}", RUNS_MAX + 1), "fills a gap");
    }

    #[test]
    fn a_restored_journal_goes_on_where_the_other_stopped() {
        let (mut harness, client) = journal();
        for number in [0, 1, 5, 5, 7] {
            ask(&mut harness, client, &append("a", number));
            ask(&mut harness, client, &append("b", number * 2));
        }
        let chunks = harness.snapshot_in_chunks(7);
        let mut restored = Harness::<Journal>::restored(b"", Journal::SCHEMA, &chunks).unwrap();
        assert_eq!(restored.query(client, b"writers").reply(), harness.query(client, b"writers").reply());
        let mut swapped = harness.swap::<Journal>(b"").unwrap();
        assert_eq!(ask(&mut swapped, client, &append("a", 6)), "11 5");
        assert_eq!(swapped.query(client, b"runs a").reply(), b"1 0+2 5+3");
        assert_eq!(swapped.query(client, b"about").reply(), format!("{} 1", Journal::VERSION).as_bytes());
    }
}

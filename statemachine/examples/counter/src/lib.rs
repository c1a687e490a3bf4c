//! Named counters: an example of a module, to be read from top to bottom.
//!
//! A request is a line of text, and so is the answer:
//!
//! | request | answer | pushed to the topic `counters` |
//! |---|---|---|
//! | `add NAME N` (N may be negative) | the new value | `NAME VALUE` |
//! | `remove NAME` | the last value | `NAME removed` |
//! | `get NAME` (a query too) | the value, 0 if there is no such counter | |
//! | `list` (a query too) | a line `NAME VALUE` for each counter, in the order of their names | |
//!
//! What can't be done is answered with `error: ` and the reason.
//!
//! Build it with `cargo build --profile wasm --target wasm32-unknown-unknown -p counter-module`.
#![forbid(unsafe_code)]

use std::{collections::BTreeMap, fmt::Write};

use statemachine::{Context, Output, StateMachine, TopicId, export};

const NAME_BYTES_MAX: usize = 64;

/// All state is here. A `BTreeMap`, so that every replica walks through it in the same order.
#[derive(Debug)]
pub struct Counters {
    values: BTreeMap<String, i64>,
    /// How many counters there may be: `max_counters=N` in the cluster's application configuration.
    counters_max: usize,
    /// Where changes are pushed. Made once, for it costs a hash.
    topic: TopicId,
}

// The line that makes a module of it.
export!(Counters);

impl StateMachine for Counters {
    const APP: &'static str = "counter";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    // The format of the records that `snapshot` writes. Raise it when that changes, and read the old one too.
    const SCHEMA: u32 = 1;

    // Runs once in the life of a cluster, and whenever another version of the module takes over.
    fn init(config: &[u8]) -> Result<Self, String> {
        let counters_max = match config.strip_prefix(b"max_counters=") {
            Some(value) => std::str::from_utf8(value.trim_ascii())
                .ok()
                .and_then(|value| value.parse().ok())
                .ok_or("max_counters must be a number")?,
            None if config.is_empty() => 10_000,
            None => return Err("the configuration is empty or max_counters=N".to_owned()),
        };
        Ok(Self { values: BTreeMap::new(), counters_max, topic: TopicId::of_name("counters") })
    }

    // Every replica runs this for the same requests in the same order.
    fn apply(&mut self, _context: &Context, request: &[u8], output: &mut Output) {
        match self.execute(request, output) {
            Ok(answer) => output.reply(answer.as_bytes()),
            Err(reason) => output.reply(format!("error: {reason}").as_bytes()),
        }
    }

    // One replica runs this, and `&self` says that it changes nothing.
    fn query(&self, _context: &Context, request: &[u8], output: &mut Output) {
        match words(request).and_then(|words| self.look_up(&words)) {
            Ok(answer) => output.reply(answer.as_bytes()),
            Err(reason) => output.reply(format!("error: {reason}").as_bytes()),
        }
    }

    // One record for each counter: 8 bytes of value, then the name.
    fn snapshot(&self) -> impl Iterator<Item = Vec<u8>> {
        self.values.iter().map(|(name, value)| [&value.to_le_bytes(), name.as_bytes()].concat())
    }

    // The same records come back here, one by one, into a machine fresh from `init`.
    fn restore(&mut self, _schema: u32, record: &[u8]) -> Result<(), String> {
        let (value, name) = record.split_first_chunk().ok_or("a record has at least 8 bytes")?;
        let name = std::str::from_utf8(name).map_err(|_| "a name is UTF-8")?;
        self.values.insert(name.to_owned(), i64::from_le_bytes(*value));
        Ok(())
    }
}

impl Counters {
    fn execute(&mut self, request: &[u8], output: &mut Output) -> Result<String, String> {
        // The bytes are a client's: whatever they are, the answer is a reply and never a panic.
        match words(request)?.as_slice() {
            ["add", name, amount] => {
                let amount = amount.parse().map_err(|_| format!("{amount} isn't a number"))?;
                let value = self.add(name, amount)?;
                output.push_to_topic(self.topic, format!("{name} {value}").as_bytes());
                Ok(value.to_string())
            }
            ["remove", name] => {
                let value = self.values.remove(*name).ok_or_else(|| format!("there is no counter {name}"))?;
                output.push_to_topic(self.topic, format!("{name} removed").as_bytes());
                Ok(value.to_string())
            }
            words => self.look_up(words),
        }
    }

    fn add(&mut self, name: &str, amount: i64) -> Result<i64, String> {
        if name.len() > NAME_BYTES_MAX {
            return Err(format!("a name has at most {NAME_BYTES_MAX} bytes"));
        }
        if let Some(value) = self.values.get_mut(name) {
            // Check first and change then: a refused request leaves no trace.
            *value = value.checked_add(amount).ok_or_else(|| format!("{name} would overflow"))?;
            return Ok(*value);
        }
        // Every state needs a bound, or a client could fill the memory.
        if self.values.len() >= self.counters_max {
            return Err(format!("there are {} counters already; remove one", self.values.len()));
        }
        self.values.insert(name.to_owned(), amount);
        Ok(amount)
    }

    fn look_up(&self, words: &[&str]) -> Result<String, String> {
        match words {
            ["get", name] => Ok(self.values.get(*name).unwrap_or(&0).to_string()),
            ["list"] => {
                let mut lines = String::new();
                for (name, value) in &self.values {
                    writeln!(lines, "{name} {value}").expect("a String takes everything");
                }
                Ok(lines)
            }
            _ => Err("try `add NAME N`, `remove NAME`, `get NAME` or `list`".to_owned()),
        }
    }
}

/// Splits a request at white space.
fn words(request: &[u8]) -> Result<Vec<&str>, String> {
    let text = std::str::from_utf8(request).map_err(|_| "a request is UTF-8 text")?;
    Ok(text.split_whitespace().collect())
}

#[cfg(test)]
mod tests {
    use statemachine::{SessionId, testing::Harness};

    use super::Counters;

    /// A machine, and a client to ask it.
    fn counters(config: &[u8]) -> (Harness<Counters>, SessionId) {
        let mut harness = Harness::new(config).unwrap();
        let client = harness.connect().session;
        (harness, client)
    }

    fn ask(harness: &mut Harness<Counters>, client: SessionId, request: &str) -> String {
        String::from_utf8(harness.request(client, request.as_bytes()).reply().to_vec()).unwrap()
    }

    #[test]
    fn adding_counts_and_pushes_the_new_value() {
        let (mut harness, client) = counters(b"");
        assert_eq!(ask(&mut harness, client, "add apples 3"), "3");
        let outcome = harness.request(client, b"add apples -5");
        assert_eq!(outcome.reply(), b"-2");
        assert_eq!(outcome.pushes.len(), 1);
        assert!(outcome.pushes[0].is_to_topic("counters"));
        assert_eq!(outcome.pushes[0].payload, b"apples -2");
        assert_eq!(harness.query(client, b"get apples").reply(), b"-2");
        assert_eq!(harness.query(client, b"get pears").reply(), b"0");
    }

    #[test]
    fn a_list_is_in_the_order_of_the_names() {
        let (mut harness, client) = counters(b"");
        for request in ["add b 2", "add c 3", "add a 1", "remove c"] {
            ask(&mut harness, client, request);
        }
        assert_eq!(harness.query(client, b"list").reply(), b"a 1\nb 2\n");
    }

    #[test]
    fn what_cannot_be_done_is_refused_and_changes_nothing() {
        let (mut harness, client) = counters(b"max_counters=1");
        ask(&mut harness, client, "add a 9223372036854775807");
        let before = harness.snapshot();
        let long = format!("add {} 1", "x".repeat(65));
        for request in ["add a 1", "add b 1", "add a x", "add a", "remove b", "", "count", &long] {
            assert!(ask(&mut harness, client, request).starts_with("error: "), "{request:?} was taken");
        }
        assert_eq!(harness.request(client, b"\xff").reply(), b"error: a request is UTF-8 text");
        assert_eq!(
            harness.query(client, b"add a 1").reply(),
            b"error: try `add NAME N`, `remove NAME`, `get NAME` or `list`"
        );
        assert_eq!(harness.snapshot(), before);
    }

    #[test]
    fn a_wrong_configuration_is_refused() {
        for config in [&b"max_counters=many"[..], b"max_counter=1", b"max_counters=-1"] {
            assert!(Harness::<Counters>::new(config).is_err());
        }
    }

    #[test]
    fn a_restored_machine_goes_on_where_the_other_stopped() {
        let (mut harness, client) = counters(b"");
        for i in 0..100 {
            ask(&mut harness, client, &format!("add counter{i} {i}"));
        }
        // Chunks are cut anywhere: the SDK puts the records together again.
        let chunks = harness.snapshot_in_chunks(7);
        let mut restored = Harness::<Counters>::restored(b"", 1, &chunks).unwrap();
        assert_eq!(restored.snapshot(), harness.snapshot());
        // What a cluster does when it is given a new version of the module: its clients don't notice.
        let mut swapped = harness.swap::<Counters>(b"").unwrap();
        assert_eq!(ask(&mut swapped, client, "add counter7 1"), "8");
    }
}

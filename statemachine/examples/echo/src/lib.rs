//! The smallest module: answers each request with itself.
#![forbid(unsafe_code)]

use statemachine::{Context, Output, StateMachine, export};

/// A machine without state.
#[derive(Debug)]
pub struct Echo;

export!(Echo);

impl StateMachine for Echo {
    const APP: &'static str = "echo";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const SCHEMA: u32 = 1;

    fn init(_config: &[u8]) -> Result<Self, String> {
        Ok(Self)
    }

    fn apply(&mut self, _context: &Context, request: &[u8], output: &mut Output) {
        output.reply(request);
    }

    fn query(&self, _context: &Context, request: &[u8], output: &mut Output) {
        output.reply(request);
    }

    fn snapshot(&self) -> impl Iterator<Item = Vec<u8>> {
        std::iter::empty()
    }

    fn restore(&mut self, _schema: u32, _record: &[u8]) -> Result<(), String> {
        Err("echo has no state to restore".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use statemachine::testing::Harness;

    use super::Echo;

    #[test]
    fn requests_and_queries_come_back() {
        let mut harness = Harness::<Echo>::new(b"").unwrap();
        let client = harness.connect().session;
        assert_eq!(harness.request(client, b"hello").reply(), b"hello");
        assert_eq!(harness.query(client, b"").reply(), b"");
    }
}

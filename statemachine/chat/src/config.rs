//! The application's configuration: lines of `key=value` in the cluster's genesis, the same on every node for ever.
//!
//! Empty lines and lines that begin with `#` are skipped. An unknown key, a key given twice or a value out of its range is
//! refused, so that a slip of the pen doesn't become the law of a cluster.

use std::ops::RangeInclusive;

/// The output of one send: every session of the recipient gets the text.
const PUSHED_BYTES_MAX: u64 = 4 << 20;

/// The longest query worth reading, and what a request may have beside its text: 1,000 ids of at most 10 bytes.
pub(crate) const QUERY_BYTES_MAX: usize = 16 << 10;

/// The limits of the chat server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    /// `max_text_bytes`: of one message.
    pub(crate) text_bytes_max: u64,
    /// `max_mailbox_messages`: read or not, in one mailbox.
    pub(crate) mailbox_messages_max: u64,
    /// `max_accounts`: in the whole cluster.
    pub(crate) accounts_max: u64,
    /// `max_account_sessions`: logged in as one account at a time.
    pub(crate) account_sessions_max: u64,
    /// `max_stored_bytes`: all messages of all mailboxes, each counted with 128 bytes beside its text.
    pub(crate) stored_bytes_max: u64,
    /// `max_answer_bytes`: of messages in one answer. The first one is always handed out.
    pub(crate) answer_bytes_max: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            text_bytes_max: 4_096,
            mailbox_messages_max: 10_000,
            accounts_max: 1_000_000,
            account_sessions_max: 128,
            stored_bytes_max: 512 << 20,
            answer_bytes_max: 256 << 10,
        }
    }
}

impl Config {
    /// Reads a configuration.
    ///
    /// # Errors
    /// Which line is wrong, and what would be right.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|error| format!("the configuration isn't UTF-8: {error}"))?;
        let mut config = Self::default();
        let mut seen = Vec::new();
        for (i, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let error = |what: String| format!("line {} of the configuration: {what}", i + 1);
            let (key, value) = line.split_once('=').ok_or_else(|| error(format!("{line:?} isn't key=value")))?;
            let (key, value) = (key.trim_end(), value.trim_start());
            if seen.contains(&key) {
                return Err(error(format!("{key} is set twice")));
            }
            seen.push(key);
            config.set(key, value).map_err(error)?;
        }
        config.check()?;
        Ok(config)
    }

    /// The longest request worth reading: one that sends the longest text, or names as many messages as it may. A
    /// longer one could burn all fuel before it is refused.
    pub(crate) fn request_bytes_max(&self) -> usize {
        self.text_bytes_max as usize + QUERY_BYTES_MAX
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let (field, range) = self.field(key).ok_or_else(|| {
            format!(
                "there is no {key:?}; use max_text_bytes, max_mailbox_messages, max_accounts, max_account_sessions, \
                 max_stored_bytes or max_answer_bytes"
            )
        })?;
        match value.parse() {
            Ok(number) if range.contains(&number) => *field = number,
            _ => return Err(format!("{key} is {value:?}; use a number from {} to {}", range.start(), range.end())),
        }
        Ok(())
    }

    fn field(&mut self, key: &str) -> Option<(&mut u64, RangeInclusive<u64>)> {
        Some(match key {
            "max_text_bytes" => (&mut self.text_bytes_max, 1..=65_536),
            // Deleting an account frees its whole mailbox in one call, and has fuel for so many.
            "max_mailbox_messages" => (&mut self.mailbox_messages_max, 1..=50_000),
            "max_accounts" => (&mut self.accounts_max, 1..=10_000_000),
            "max_account_sessions" => (&mut self.account_sessions_max, 1..=4_096),
            "max_stored_bytes" => (&mut self.stored_bytes_max, 1 << 16..=3 << 30),
            "max_answer_bytes" => (&mut self.answer_bytes_max, 1 << 10..=4 << 20),
            _ => return None,
        })
    }

    fn check(&self) -> Result<(), String> {
        let pushed = self.text_bytes_max * self.account_sessions_max;
        if pushed > PUSHED_BYTES_MAX {
            return Err(format!(
                "one send could push {pushed} bytes, at most {PUSHED_BYTES_MAX} are allowed; lower max_text_bytes ({}) or \
                 max_account_sessions ({})",
                self.text_bytes_max, self.account_sessions_max
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_configuration_gives_the_defaults() {
        assert_eq!(Config::parse(b""), Ok(Config::default()));
        assert_eq!(Config::parse(b"\n# nothing\n\r\n"), Ok(Config::default()));
    }

    #[test]
    fn every_key_is_read() {
        let text = "max_text_bytes=1\nmax_mailbox_messages = 2\nmax_accounts=3\nmax_account_sessions=4\n\
                    max_stored_bytes=65536\nmax_answer_bytes=1024";
        let expected = Config {
            text_bytes_max: 1,
            mailbox_messages_max: 2,
            accounts_max: 3,
            account_sessions_max: 4,
            stored_bytes_max: 65_536,
            answer_bytes_max: 1_024,
        };
        assert_eq!(Config::parse(text.as_bytes()), Ok(expected));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, expected) in [
            (&b"max_text_byte=1"[..], "line 1 of the configuration: there is no \"max_text_byte\"; use max_text_bytes"),
            (
                b"\nmax_text_bytes=0",
                "line 2 of the configuration: max_text_bytes is \"0\"; use a number from 1 to 65536",
            ),
            (b"max_text_bytes=-1", "is \"-1\""),
            (b"max_text_bytes", "\"max_text_bytes\" isn't key=value"),
            (b"max_accounts=1\nmax_accounts=1", "line 2 of the configuration: max_accounts is set twice"),
            (b"max_text_bytes=65536\nmax_account_sessions=4096", "one send could push 268435456 bytes"),
            (b"\xff", "isn't UTF-8"),
        ] {
            let error = Config::parse(text).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}

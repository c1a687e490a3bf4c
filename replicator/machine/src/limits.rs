//! The limits that can change a result: logged with the genesis entry, equal on every node for ever (safety rule 16).
//!
//! A node's own configuration can only refuse to start under them, never change them.

use serde::{Deserialize, Serialize};

/// Bytes of a page of linear memory.
pub const PAGE_BYTES: usize = 64 << 10;

/// The greatest `request_bytes`: an entry must fit a log record and a message, with what is around it.
pub const REQUEST_BYTES_MAX: u64 = 8 << 20;

/// A session lives at least this many ticks: the session clock may advance by two at once, so fewer could expire a
/// session by the first tick after it was opened.
pub const SESSION_TTL_TICKS_MIN: u64 = 3;

/// What a module may use, and what the host keeps for it. See each field for its unit and range.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Fuel (about one per wasm instruction) for one call of the module by the log: a request, a tick, a connect, a
    /// disconnect, and each call at genesis. 10,000 to 10^12; by default 50,000,000.
    pub apply_fuel: u64,
    /// Fuel for one query. 10,000 to 10^12; by default 200,000,000.
    pub query_fuel: u64,
    /// Linear memory, in pages of 64 KiB. 1 to 65,535; by default 16,384 (1 GiB). Past it `memory.grow` answers -1.
    pub memory_pages: u32,
    /// Bytes of one request, and of the application's configuration. 1 byte to 8 MiB; by default 1 MiB.
    pub request_bytes: u32,
    /// Bytes of one output list. 64 to 256 MiB; by default 8 MiB. Also the bytes of replies that are kept for one session
    /// before its window counts as full.
    pub output_bytes: u32,
    /// Sessions open at once. 1 to 1,048,576; by default 65,536.
    pub sessions: u32,
    /// Outcomes kept for each session above its `acked_below`. 1 to 65,536; by default 4,096.
    pub session_window: u32,
    /// Time to live of a session that asks for none, in microseconds of the session clock. At least three ticks and at
    /// most [`Limits::session_ttl_max_us`]; by default 60 s.
    pub session_ttl_us: u64,
    /// Greatest time to live of a session, in microseconds of the session clock. At most 366 days; by default 7 days.
    pub session_ttl_max_us: u64,
    /// Bytes of pushes kept for subscribers that come back, each counted with 64 bytes beside its payload. 0 to 64 GiB;
    /// by default 64 MiB.
    pub retained_push_bytes: u64,
    /// Period of the session clock, in microseconds. 1 ms to 1 h; by default 1 s.
    pub tick_us: u64,
    /// Fuel for the whole snapshot that the active module writes at a swap, beside 64 for each byte that it has written. 10,000 to 10^13; by
    /// default 1,000,000,000.
    pub snapshot_fuel: u64,
    /// Fuel for the restore of all of it by the new module, beside 64 for each byte that it has been given; its calls before that have `apply_fuel`
    /// each, as at genesis. The same range and default.
    pub restore_fuel: u64,
    /// Bytes of one chunk of a snapshot, at most. 64 KiB to 1 MiB; by default 256 KiB.
    pub chunk_bytes: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            apply_fuel: 50_000_000,
            query_fuel: 200_000_000,
            memory_pages: 16_384,
            request_bytes: 1 << 20,
            output_bytes: 8 << 20,
            sessions: 65_536,
            session_window: 4_096,
            session_ttl_us: 60_000_000,
            session_ttl_max_us: 7 * 24 * 3_600_000_000,
            retained_push_bytes: 64 << 20,
            tick_us: 1_000_000,
            snapshot_fuel: 1_000_000_000,
            restore_fuel: 1_000_000_000,
            chunk_bytes: 256 << 10,
        }
    }
}

/// A limit out of its range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("limit {name} is {value}; set it to at least {min} and at most {max}")]
pub struct LimitsError {
    /// The limit's name.
    pub name: &'static str,
    /// The value found.
    pub value: u64,
    /// The least that is taken.
    pub min: u64,
    /// The greatest that is taken.
    pub max: u64,
}

impl Limits {
    /// Checks every limit against its range.
    ///
    /// # Errors
    /// The first limit out of range.
    pub fn validate(&self) -> Result<(), LimitsError> {
        let ttl_min = self.tick_us.saturating_mul(SESSION_TTL_TICKS_MIN);
        let year_us = 366 * 24 * 3_600_000_000;
        let ranges = [
            ("apply_fuel", self.apply_fuel, 10_000, 1_000_000_000_000),
            ("query_fuel", self.query_fuel, 10_000, 1_000_000_000_000),
            ("memory_pages", self.memory_pages.into(), 1, 65_535),
            ("request_bytes", self.request_bytes.into(), 1, REQUEST_BYTES_MAX),
            ("output_bytes", self.output_bytes.into(), 64, 256 << 20),
            ("sessions", self.sessions.into(), 1, 1 << 20),
            ("session_window", self.session_window.into(), 1, 1 << 16),
            ("tick_us", self.tick_us, 1_000, 3_600_000_000),
            ("session_ttl_max_us", self.session_ttl_max_us, ttl_min, year_us),
            ("session_ttl_us", self.session_ttl_us, ttl_min, self.session_ttl_max_us),
            ("retained_push_bytes", self.retained_push_bytes, 0, 64 << 30),
            ("snapshot_fuel", self.snapshot_fuel, 10_000, 10_000_000_000_000),
            ("restore_fuel", self.restore_fuel, 10_000, 10_000_000_000_000),
            ("chunk_bytes", self.chunk_bytes.into(), 64 << 10, 1 << 20),
        ];
        for (name, value, min, max) in ranges {
            if value < min || value > max {
                return Err(LimitsError { name, value, min, max });
            }
        }
        Ok(())
    }

    /// The greatest memory in bytes.
    pub(crate) const fn memory_bytes(&self) -> usize {
        self.memory_pages as usize * PAGE_BYTES
    }

    /// The time to live that a session gets which asks for `asked_us`.
    pub(crate) fn ttl_us(&self, asked_us: u64) -> u64 {
        match asked_us {
            0 => self.session_ttl_us,
            asked => asked.clamp(self.tick_us * SESSION_TTL_TICKS_MIN, self.session_ttl_max_us),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid() {
        assert_eq!(Limits::default().validate(), Ok(()));
    }

    #[test]
    fn a_limit_out_of_range_is_named() {
        let limits = Limits { memory_pages: 65_536, ..Limits::default() };
        let error = limits.validate().unwrap_err().to_string();
        assert_eq!(error, "limit memory_pages is 65536; set it to at least 1 and at most 65535");
        let limits = Limits { session_ttl_us: 1, ..Limits::default() };
        assert_eq!(limits.validate().unwrap_err().name, "session_ttl_us");
    }

    #[test]
    fn a_ttl_is_clamped() {
        let limits = Limits::default();
        assert_eq!(limits.ttl_us(0), limits.session_ttl_us);
        assert_eq!(limits.ttl_us(1), 3 * limits.tick_us);
        assert_eq!(limits.ttl_us(u64::MAX), limits.session_ttl_max_us);
    }
}

//! The 64-byte header in front of every call's bytes: who calls, when, and with what entropy.
//!
//! Little-endian, without gaps: `u32 size; u32 kind; u64 index; [u8; 16] client; i64 time_us; u64 seq; [u8; 16] seed`.

use std::fmt;

/// Bytes of the header.
pub const HEADER_BYTES: usize = 64;

/// A client's session. Who knows it can act in it: never show it to another client.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SessionId(pub [u8; 16]);

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What a call is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// A client's request, or a query.
    Request = 0,
    /// A timer entry.
    Tick = 1,
    /// A session was opened.
    Connect = 2,
    /// A session was closed or has expired.
    Disconnect = 3,
}

/// Who calls, when, and with what entropy: the machine's only clock and its only randomness.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Context {
    /// What the call is about.
    pub kind: Kind,
    /// The log index of the entry; of a query, that of the last entry whose effect it sees. Strictly ascending over
    /// entries.
    pub index: u64,
    /// The client. All zeros for a tick, and for a query without a session.
    pub session: SessionId,
    /// Microseconds since 1970, as the entry's proposer saw them; never less than for the entry before. A query has its
    /// last entry's.
    pub time_us: i64,
    /// The request's number in its session, from 1. 0 for everything else.
    pub sequence: u64,
    /// Random bytes, the same on every replica. All zeros for a query.
    pub seed: [u8; 16],
}

/// The `N` header bytes from `at`.
fn field<const N: usize>(header: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&header[at..at + N]);
    bytes
}

impl Context {
    /// Splits a call's input into its header and its bytes.
    ///
    /// # Panics
    /// If the header isn't one of ABI 1: the host is wrong, and going on would corrupt the state.
    pub(crate) fn split(input: &[u8]) -> (Self, &[u8]) {
        let (header, bytes) = input.split_first_chunk().expect("the host passes a header of 64 bytes");
        let size = u32::from_le_bytes(field(header, 0));
        assert!(size as usize == HEADER_BYTES, "the host passed a header of {size} bytes, ABI 1 has 64");
        let kind = match u32::from_le_bytes(field(header, 4)) {
            0 => Kind::Request,
            1 => Kind::Tick,
            2 => Kind::Connect,
            3 => Kind::Disconnect,
            kind => panic!("the host passed kind {kind}, ABI 1 has 0 to 3"),
        };
        let context = Self {
            kind,
            index: u64::from_le_bytes(field(header, 8)),
            session: SessionId(field(header, 16)),
            time_us: i64::from_le_bytes(field(header, 32)),
            sequence: u64::from_le_bytes(field(header, 40)),
            seed: field(header, 48),
        };
        (context, bytes)
    }

    /// The header that says this.
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn header(&self) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        header[0..4].copy_from_slice(&(HEADER_BYTES as u32).to_le_bytes());
        header[4..8].copy_from_slice(&(self.kind as u32).to_le_bytes());
        header[8..16].copy_from_slice(&self.index.to_le_bytes());
        header[16..32].copy_from_slice(&self.session.0);
        header[32..40].copy_from_slice(&self.time_us.to_le_bytes());
        header[40..48].copy_from_slice(&self.sequence.to_le_bytes());
        header[48..64].copy_from_slice(&self.seed);
        header
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_where_the_abi_says() {
        let mut input: Vec<u8> = (0..70).collect();
        input[0..8].copy_from_slice(&[64, 0, 0, 0, 3, 0, 0, 0]);
        let (context, bytes) = Context::split(&input);
        assert_eq!(context.kind, Kind::Disconnect);
        assert_eq!(context.index, 0x0f0e_0d0c_0b0a_0908);
        assert_eq!(context.session.0, std::array::from_fn(|i| 16 + i as u8));
        assert_eq!(context.time_us, 0x2726_2524_2322_2120);
        assert_eq!(context.sequence, 0x2f2e_2d2c_2b2a_2928);
        assert_eq!(context.seed, std::array::from_fn(|i| 48 + i as u8));
        assert_eq!(bytes, [64, 65, 66, 67, 68, 69]);
        assert_eq!(context.header(), input[..64]);
    }

    #[test]
    #[should_panic(expected = "header of 72 bytes")]
    fn a_header_of_another_size_panics() {
        let mut input = [0; 80];
        input[0] = 72;
        Context::split(&input);
    }

    #[test]
    #[should_panic(expected = "kind 4")]
    fn an_unknown_kind_panics() {
        let mut input = [0; 64];
        input[0] = 64;
        input[4] = 4;
        Context::split(&input);
    }
}

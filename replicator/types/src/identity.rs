//! Who and what: clusters, disks, sessions, modules, digests.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A text that isn't the hexadecimal form of the identity asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected} hexadecimal digits, got {got:?}")]
pub struct HexError {
    expected: usize,
    got: String,
}

fn parse_hex<const N: usize>(text: &str) -> Result<[u8; N], HexError> {
    let error = || HexError { expected: 2 * N, got: text.to_owned() };
    if text.len() != 2 * N || !text.is_ascii() {
        return Err(error());
    }
    let mut bytes = [0; N];
    for (i, byte) in bytes.iter_mut().enumerate() {
        if !text.as_bytes()[2 * i].is_ascii_hexdigit() {
            return Err(error()); // from_str_radix would take a sign
        }
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).map_err(|_| error())?;
    }
    Ok(bytes)
}

macro_rules! hexadecimal {
    ($name:ident, $from_hex:expr) => {
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = HexError;

            fn from_str(text: &str) -> Result<Self, HexError> {
                parse_hex(text).map($from_hex)
            }
        }
    };
}

macro_rules! byte_identity {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        pub struct $name(pub [u8; $len]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        hexadecimal!($name, Self);

        impl TryFrom<&[u8]> for $name {
            type Error = std::array::TryFromSliceError;

            fn try_from(bytes: &[u8]) -> Result<Self, Self::Error> {
                bytes.try_into().map(Self)
            }
        }
    };
}

macro_rules! number_identity {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:016x}", self.0)
            }
        }

        hexadecimal!($name, |bytes| Self(u64::from_be_bytes(bytes)));
    };
}

byte_identity! {
    /// A cluster, made once by `replicator init`.
    ClusterId, 16
}
byte_identity! {
    /// A client's session. Who knows it can act in it, so it holds 12 random bytes after 4 of the lineage.
    SessionId, 16
}
byte_identity! {
    /// The SHA-256 of a module's bytes.
    ModuleHash, 32
}
byte_identity! {
    /// Random bytes that the proposer gave a log entry: the module's only entropy, and the entry's name until it has an index.
    Seed, 16
}
impl SessionId {
    /// Bytes of the lineage in an id: its low ones, little-endian, in front.
    pub const LINEAGE_BYTES: usize = 4;

    /// Whether the session was opened in this history, as far as the id tells.
    #[must_use]
    pub fn is_of(&self, lineage: Lineage) -> bool {
        self.0[..Self::LINEAGE_BYTES] == lineage.0.to_le_bytes()[..Self::LINEAGE_BYTES]
    }
}

number_identity! {
    /// A data folder, made when the folder was. A voter is its disk: a new folder is a new voter (safety rule 1).
    DiskId
}
number_identity! {
    /// A history of a cluster. An operator's override starts a new one (safety rule 3).
    Lineage
}
number_identity! {
    /// A replica's running digest: equal at equal log index on every replica, or one of them is wrong.
    Digest
}

/// How often a disk has been started: raised and fsynced before anything else at each start (safety rule 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Incarnation(pub u64);

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_forms_round_trip() {
        let session = SessionId([0xab; 16]);
        assert_eq!(session.to_string().parse(), Ok(session));
        let disk = DiskId(0x0123_4567_89ab_cdef);
        assert_eq!(disk.to_string(), "0123456789abcdef");
        assert_eq!(disk.to_string().parse(), Ok(disk));
    }

    #[test]
    fn what_is_not_hexadecimal_is_refused() {
        for text in ["", "0", "0123456789abcdeg", "0123456789abcdef0", "+123456789abcdef", "０１２３"] {
            assert!(text.parse::<DiskId>().is_err(), "{text:?} was taken");
        }
    }
}

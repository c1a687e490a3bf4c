//! The requests of the journal module, `statemachine/examples/journal`, and what it answers.

use anyhow::Context as _;

/// `append`: of `len` bytes in all, or as short as it can be.
pub(super) fn append(writer: &str, number: u64, len: usize) -> String {
    // A space in front of the payload, one behind it, and the check.
    let head = format!("append {writer} {number} ");
    let payload = "x".repeat(len.saturating_sub(head.len() + 17).max(1));
    let check = fnv1a([&head["append ".len()..], payload.as_str()]);
    format!("{head}{payload} {check:016x}")
}

/// What was executed of one writer, as the module tells it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Runs {
    /// Executions that were not their number's first.
    pub(super) doubled: u64,
    /// First number and length of each unbroken run, in order.
    pub(super) runs: Vec<(u64, u64)>,
}

impl Runs {
    /// The query for them.
    pub(super) fn query(writer: &str) -> String {
        format!("runs {writer}")
    }

    /// Reads the answer to it.
    pub(super) fn parse(answer: &[u8]) -> anyhow::Result<Self> {
        let text = std::str::from_utf8(answer).context("the journal answered no text")?;
        let read = || {
            let mut words = text.split(' ');
            let doubled = words.next()?.parse().ok()?;
            let run = |word: &str| {
                let (first, count) = word.split_once('+')?;
                Some((first.parse().ok()?, count.parse().ok()?))
            };
            Some(Self { doubled, runs: words.map(run).collect::<Option<_>>()? })
        };
        read().with_context(|| format!("the journal answered {text:?}"))
    }
}

/// The 64-bit FNV-1a hash.
fn fnv1a<'a>(parts: impl IntoIterator<Item = &'a str>) -> u64 {
    let bytes = parts.into_iter().flat_map(str::bytes);
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_append_has_its_length_and_its_check() {
        // FNV-1a of "w 7 x", as the module computes it.
        assert_eq!(append("w", 7, 0), format!("append w 7 x {:016x}", fnv1a(["w 7 x"])));
        assert_eq!(fnv1a(["a"]), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(append("w", 7, 128).len(), 128);
    }

    #[test]
    fn answers_are_read_or_refused() {
        let runs = Runs::parse(b"2 0+3 5+1").unwrap();
        assert_eq!((runs.doubled, runs.runs), (2, vec![(0, 3), (5, 1)]));
        assert_eq!(Runs::parse(b"0").unwrap(), Runs::default());
        assert!(Runs::parse(b"error: try").is_err());
        assert!(Runs::parse(b"0 3").is_err());
    }
}

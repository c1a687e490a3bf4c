//! Requests that are made up, for a module of which nothing is known.
//!
//! Three kinds: words of text, as many protocols have them, from a list of common ones and from what the module's own data says; bytes at random;
//! and earlier requests with a byte changed or the end cut off. The same module gets the same requests.

use bytes::Bytes;
use replicator_types::{ModuleHash, Seed};
use wasmparser::{Parser, Payload};

/// Words that requests begin with, in many a protocol.
const VERBS: [&str; 24] = [
    "add", "get", "set", "put", "del", "delete", "remove", "list", "inc", "dec", "incr", "push", "pop", "append",
    "insert", "update", "create", "read", "write", "clear", "count", "sum", "show", "echo",
];
/// Few, so that they meet again.
const NAMES: [&str; 6] = ["a", "b", "c", "alice", "bob", "x"];
/// Words of the module's data that are taken, and their length.
const WORDS_MAX: usize = 256;
const WORD_BYTES: std::ops::RangeInclusive<usize> = 2..=16;
/// Earlier requests that are kept to be changed.
const KEPT: usize = 64;

/// Numbers that look random, the same ones for the same module (splitmix64).
pub(super) struct Chance(u64);

impl Chance {
    pub(super) fn of(module: ModuleHash) -> Self {
        Self(module.0.iter().fold(0, |seed, byte| seed << 8 ^ seed >> 56 ^ u64::from(*byte)))
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    pub(super) fn seed(&mut self) -> Seed {
        let halves = [self.next().to_le_bytes(), self.next().to_le_bytes()];
        Seed(std::array::from_fn(|i| halves[i / 8][i % 8]))
    }
}

/// Makes requests up.
pub(super) struct Requests {
    words: Vec<String>,
    kept: Vec<Bytes>,
}

impl Requests {
    pub(super) fn for_module(module: &[u8]) -> Self {
        Self { words: words(module), kept: Vec::new() }
    }

    pub(super) fn next(&mut self, chance: &mut Chance) -> Bytes {
        let request: Bytes = match chance.below(10) {
            0 => (0..chance.below(64)).map(|_| chance.next() as u8).collect(),
            1 | 2 if !self.kept.is_empty() => self.changed(chance),
            _ => self.text(chance).into(),
        };
        if self.kept.len() < KEPT {
            self.kept.push(request.clone());
        } else {
            let at = chance.below(KEPT);
            self.kept[at] = request.clone();
        }
        request
    }

    fn text(&self, chance: &mut Chance) -> String {
        let own = !self.words.is_empty() && chance.below(3) == 0;
        let verb =
            if own { self.words[chance.below(self.words.len())].as_str() } else { VERBS[chance.below(VERBS.len())] };
        let name = NAMES[chance.below(NAMES.len())];
        match chance.below(5) {
            0 => verb.to_owned(),
            1 => format!("{verb} {name}"),
            2 => format!("{verb} {name} {}", NAMES[chance.below(NAMES.len())]),
            _ => format!("{verb} {name} {}", chance.below(1_000)),
        }
    }

    fn changed(&self, chance: &mut Chance) -> Bytes {
        let mut request = self.kept[chance.below(self.kept.len())].to_vec();
        if request.is_empty() || chance.below(2) == 0 {
            request.truncate(chance.below(request.len() + 1));
        } else {
            let at = chance.below(request.len());
            request[at] ^= 1 << chance.below(8);
        }
        request.into()
    }
}

/// Words in the module's data that a request could have.
fn words(module: &[u8]) -> Vec<String> {
    let mut words = Vec::new();
    for payload in Parser::new(0).parse_all(module).map_while(Result::ok) {
        let Payload::DataSection(section) = payload else { continue };
        for data in section.into_iter().filter_map(Result::ok) {
            for word in data.data.split(|byte| !byte.is_ascii_alphabetic()) {
                let Ok(word) = std::str::from_utf8(word) else { continue };
                let word = word.to_ascii_lowercase();
                if WORD_BYTES.contains(&word.len()) && !words.contains(&word) {
                    words.push(word);
                }
                if words.len() == WORDS_MAX {
                    return words;
                }
            }
        }
    }
    words
}

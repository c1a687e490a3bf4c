//! Requests that are made up, for a module of which nothing is known.
//!
//! Three kinds: words of text, as many protocols have them, from a list of common ones and from what the module's own data says; bytes at random;
//! and earlier requests with something changed. Those that were answered as none before are kept, and changed more often than others: that
//! leads further into the module. The same module gets the same requests.

use std::collections::BTreeSet;

use bytes::Bytes;
use replicator_types::{ModuleHash, Seed};
use wasmparser::{Parser, Payload};
use xxhash_rust::xxh3::xxh3_64;

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
/// Answers that are told apart.
const ANSWERS_MAX: usize = 100_000;

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
    /// Those that were answered as none before.
    kept: Vec<Bytes>,
    answers: BTreeSet<u64>,
}

impl Requests {
    pub(super) fn for_module(module: &[u8]) -> Self {
        Self { words: words(module), kept: Vec::new(), answers: BTreeSet::new() }
    }

    pub(super) fn next(&self, chance: &mut Chance) -> Bytes {
        match chance.below(10) {
            0 => (0..chance.below(64)).map(|_| chance.next() as u8).collect(),
            1..=5 if !self.kept.is_empty() => self.changed(chance),
            _ => self.text(chance).into(),
        }
    }

    /// Learns how a request was answered.
    pub(super) fn learn(&mut self, request: &Bytes, answer: &[u8], chance: &mut Chance) {
        if self.answers.len() < ANSWERS_MAX && self.answers.insert(xxh3_64(answer)) {
            if self.kept.len() < KEPT {
                self.kept.push(request.clone());
            } else {
                let at = chance.below(KEPT);
                self.kept[at] = request.clone();
            }
        }
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
        match (std::str::from_utf8(&request), chance.below(8)) {
            (_, 0) => request.truncate(chance.below(request.len() + 1)),
            (_, 1) if !request.is_empty() => {
                let at = chance.below(request.len());
                request[at] ^= 1 << chance.below(8);
            }
            (_, 2) => {} // The same once more.
            (Ok(text), _) => return self.other_word(text, chance).into(),
            (Err(_), _) => request.extend_from_slice(&chance.next().to_le_bytes()[..chance.below(8)]),
        }
        request.into()
    }

    /// The same words but one.
    fn other_word(&self, text: &str, chance: &mut Chance) -> String {
        let mut words: Vec<&str> = text.split(' ').collect();
        let at = chance.below(words.len());
        let number = chance.below(1_000).to_string();
        words[at] = match chance.below(3) {
            0 if at == 0 => VERBS[chance.below(VERBS.len())],
            0 | 1 => NAMES[chance.below(NAMES.len())],
            _ => &number,
        };
        words.join(" ")
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

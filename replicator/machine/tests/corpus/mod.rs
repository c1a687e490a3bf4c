//! Hostile modules, one in each `.wat` beside this file, with what each must come to.
//!
//! The comments at the top of a file say it, one expectation in each line that begins with `;; expect:`, in the order in which they are tried:
//!
//! ```text
//! refused "WORDS"                the load checks, or the module's own description, refuse it, saying WORDS
//! genesis refused "WORDS"        it loads, and no history can begin with it
//! apply "REQUEST" traps "WORDS"  so does `query`; REQUEST may have \hh for a byte
//! apply "REQUEST" replies "BYTES"
//! snapshot traps "WORDS"         so does `restore`
//! ```
//!
//! `{{abi}}` stands for whatever of the ABI the file doesn't export itself, and `{{N TEXT}}` for N times TEXT.

use std::{fs, path::Path};

/// A hostile module.
pub(crate) struct Hostile {
    pub(crate) name: String,
    pub(crate) wasm: Vec<u8>,
    pub(crate) expected: Vec<Expected>,
}

/// What a module must come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Expected {
    Refused(String),
    GenesisRefused(String),
    Call { call: String, request: Vec<u8>, result: Called },
}

/// What a call must come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Called {
    Traps(String),
    Replies(Vec<u8>),
}

/// All modules in a folder, by name.
pub(crate) fn all(folder: &Path) -> Vec<Hostile> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .expect("the corpus is there")
        .map(|entry| entry.expect("it can be read").file_name().to_string_lossy().into_owned())
        .filter(|name| name.ends_with(".wat"))
        .collect();
    names.sort();
    let read = |name: String| {
        let text = fs::read_to_string(folder.join(&name)).expect("it can be read");
        let wasm = wat::parse_str(expand(&text)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let lines = text.lines().filter_map(|line| line.strip_prefix(";; expect: "));
        let expected =
            lines.map(|line| expectation(line).unwrap_or_else(|| panic!("{name}: {line:?}"))).collect::<Vec<_>>();
        assert!(!expected.is_empty(), "{name} says nothing of what it must come to");
        Hostile { name, wasm, expected }
    };
    names.into_iter().map(read).collect()
}

fn expectation(line: &str) -> Option<Expected> {
    let mut parts = line.split('"');
    let words = |text: Option<&str>| text.map(|text| text.split_whitespace().collect::<Vec<_>>().join(" "));
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).ok();
    let head = words(parts.next())?;
    let first = unescape(parts.next()?)?;
    Some(match head.as_str() {
        "refused" => Expected::Refused(text(first)?),
        "genesis refused" => Expected::GenesisRefused(text(first)?),
        "snapshot traps" | "restore traps" => {
            let call = head.split(' ').next()?.to_owned();
            Expected::Call { call, request: Vec::new(), result: Called::Traps(text(first)?) }
        }
        "apply" | "query" => {
            let (what, then) = (words(parts.next())?, unescape(parts.next()?)?);
            let result = match what.as_str() {
                "traps" => Called::Traps(text(then)?),
                "replies" => Called::Replies(then),
                _ => return None,
            };
            Expected::Call { call: head, request: first, result }
        }
        _ => return None,
    })
}

/// `\hh` is a byte, as in the text format.
fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut pieces = text.split('\\');
    let mut bytes = pieces.next()?.as_bytes().to_vec();
    for piece in pieces {
        bytes.push(u8::from_str_radix(piece.get(..2)?, 16).ok()?);
        bytes.extend_from_slice(&piece.as_bytes()[2..]);
    }
    Some(bytes)
}

/// Fills in what stands between double braces.
pub(crate) fn expand(text: &str) -> String {
    let mut expanded = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        let (inside, after) = after.split_once("}}").expect("braces are closed");
        expanded.push_str(before);
        if inside == "abi" {
            for (name, part) in ABI {
                if !text.contains(&format!("(export \"{name}\")")) {
                    expanded.push_str(part);
                }
            }
        } else {
            let (count, repeated) = inside.split_once(' ').expect("a number, then what is repeated");
            expanded.push_str(&repeated.repeat(count.parse().expect("a number")));
        }
        rest = after;
    }
    expanded + rest
}

/// A module that does nothing. The input is the second page; a reply is written at 8192.
const ABI: [(&str, &str); 9] = [
    ("memory", "(memory (export \"memory\") 2)"),
    ("rsm_abi_1", "(func (export \"rsm_abi_1\"))"),
    (
        "rsm_describe",
        "(data (i32.const 16) \"app=hostile version=1 schema=1 accepts_from=1\")
         (func (export \"rsm_describe\") (result i64) (i64.const 0x000000100000002d))",
    ),
    ("rsm_input", "(func (export \"rsm_input\") (param i32) (result i32) (i32.const 65536))"),
    ("rsm_init", "(func (export \"rsm_init\") (param i32 i32) (result i32) (i32.const 0))"),
    ("rsm_apply", "(func (export \"rsm_apply\") (param i32 i32) (result i64) (call $reply (i64.const 0)))"),
    ("rsm_query", "(func (export \"rsm_query\") (param i32 i32) (result i64) (call $reply (i64.const 0)))"),
    (
        "rsm_snapshot",
        "(func (export \"rsm_snapshot\") (param i32) (result i64) (i64.const 0))
         (func (export \"rsm_restore\") (param i32 i32 i32 i32) (result i32) (i32.const 0))",
    ),
    (
        "reply",
        "(func $reply (param i64) (result i64)
           (i32.store (i32.const 8192) (i32.const 0)) (i32.store (i32.const 8196) (i32.const 8))
           (memory.fill (i32.const 8200) (i32.const 0) (i32.const 16)) (i64.store (i32.const 8216) (local.get 0))
           (i64.const 0x0000200000000020))",
    ),
];

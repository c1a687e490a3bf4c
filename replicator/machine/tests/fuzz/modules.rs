//! Modules of all kinds: generated ones that are whole, damaged ones, and bytes that are none.

use std::{fs, path::Path};

use arbitrary::Unstructured;
use wasm_smith::{Config, InstructionKind, InstructionKinds, Module};

use crate::random::Random;

#[path = "../corpus/mod.rs"]
#[allow(dead_code)] // what they must come to is tested elsewhere
mod corpus;

/// The exports of every generated module.
const ABI: &str = r#"(module
    (memory (export "memory") 1 16)
    (func (export "rsm_abi_1"))
    (func (export "rsm_describe") (result i64) unreachable)
    (func (export "rsm_input") (param i32) (result i32) unreachable)
    (func (export "rsm_init") (param i32 i32) (result i32) unreachable)
    (func (export "rsm_apply") (param i32 i32) (result i64) unreachable)
    (func (export "rsm_query") (param i32 i32) (result i64) unreachable)
    (func (export "rsm_snapshot") (param i32) (result i64) unreachable)
    (func (export "rsm_restore") (param i32 i32 i32 i32) (result i32) unreachable)
    (func (export "rsm_panic_buf") (result i32) unreachable))"#;

/// Modules to begin with.
pub(crate) struct Modules {
    abi: Vec<u8>,
    /// Small ones that were written by hand.
    written: Vec<Vec<u8>>,
}

impl Modules {
    pub(crate) fn new() -> Self {
        let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
        let guest = fs::read_to_string(tests.join("machine/guest.wat")).expect("the guest is there");
        let mut written = vec![wat::parse_str(guest).expect("the guest is valid")];
        let small = corpus::all(&tests.join("corpus"))
            .into_iter()
            .map(|hostile| hostile.wasm)
            .filter(|wasm| wasm.len() < 5_000);
        written.extend(small);
        Self { abi: wat::parse_str(ABI).expect("it is valid"), written }
    }

    pub(crate) fn make(&self, random: &mut Random) -> Vec<u8> {
        match random.below(10) {
            0..=4 => self.generated(random),
            5 => {
                let mut bytes = self.generated(random);
                random.damage(&mut bytes);
                bytes
            }
            6..=8 => {
                let mut bytes = self.written[random.below(self.written.len())].clone();
                random.damage(&mut bytes);
                bytes
            }
            _ => {
                let len = random.below(200);
                [b"\0asm\x01\0\0\0".to_vec(), random.bytes(len)].concat()
            }
        }
    }

    /// A module that is valid, and has the exports. Few of its instructions are such as are refused.
    fn generated(&self, random: &mut Random) -> Vec<u8> {
        use InstructionKind as K;
        let mut kinds =
            vec![K::NumericInt, K::Numeric, K::Reference, K::Parametric, K::Variable, K::Memory, K::Control];
        if random.below(10) == 0 {
            kinds.push(K::Table);
        }
        let config = Config {
            exports: Some(self.abi.clone()),
            allowed_instructions: InstructionKinds::new(&kinds),
            allow_start_export: random.below(30) == 0,
            bulk_memory_enabled: random.below(3) != 0,
            max_imports: usize::from(random.below(30) == 0),
            max_instructions: [20, 100, 500, 3_000][random.below(4)],
            max_funcs: 9 + random.below(40),
            min_funcs: random.below(9),
            max_type_size: [10, 100, 1_000][random.below(3)],
            max_memories: 1,
            max_tables: random.below(4),
            max_table_elements: 100,
            max_memory32_bytes: 16 << 16,
            max_data_segments: random.below(10),
            simd_enabled: random.below(30) == 0,
            relaxed_simd_enabled: false,
            memory64_enabled: false,
            exceptions_enabled: random.below(30) == 0,
            gc_enabled: false,
            tail_call_enabled: random.below(30) == 0,
            threads_enabled: false,
            ..Config::default()
        };
        let len = [500, 3_000, 20_000][random.below(3)];
        let bytes = random.bytes(len);
        let made = Module::new(config, &mut Unstructured::new(&bytes));
        made.map_or_else(|_| self.abi.clone(), |module| module.to_bytes())
    }
}

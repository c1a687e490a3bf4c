//! Load checks: which bytes are a state-machine module at all (`docs/guest-abi.md`).
//!
//! The verdict is a function of the bytes alone, so all nodes agree on it; compile time decides nothing. The limits here
//! bound what an accepted module can cost to compile. They are part of the engine fingerprint's `instr`: whoever changes
//! one raises that number.

use wasmparser::{
    BinaryReaderError, CompositeInnerType, ExternalKind, FuncType, FuncValidatorAllocations, Parser, Payload, TypeRef,
    ValType, ValidPayload, Validator, WasmFeatures,
};

use crate::{engine, halt::Halt, limits::Limits};

mod body;

/// Bytes of a module.
pub const MODULE_BYTES_MAX: usize = 16 << 20;
/// Functions of a module.
pub const FUNCTIONS_MAX: usize = 10_000;
/// Bytes of one function's body.
pub const BODY_BYTES_MAX: usize = 256 << 10;
/// Locals of one function, its parameters not counted.
pub const LOCALS_MAX: u32 = 5_000;
/// Values on the operand stack of one function. 20,000 of them across a call took 12 seconds to compile.
pub const OPERANDS_MAX: u64 = 2_048;
/// Blocks within blocks.
pub const NESTING_MAX: usize = 1_024;
/// Targets of one `br_table`.
pub const BR_TABLE_TARGETS_MAX: u32 = 8_192;
/// Values in one function: what its instructions leave and pass, and each local once more for each block that it is used in.
pub const FUNCTION_VALUES_MAX: u64 = 300_000;
/// Values in all functions of a module.
pub const MODULE_VALUES_MAX: u64 = 10_000_000;
/// Loops within loops.
pub const LOOP_NESTING_MAX: u64 = 100;
/// Locals in the loops of one function, each counted for each loop that it is used in. 30,000 take four seconds to compile.
pub const FUNCTION_LOOP_VALUES_MAX: u64 = 20_000;
/// The same of all functions of a module.
pub const MODULE_LOOP_VALUES_MAX: u64 = 400_000;
/// Globals of a module.
pub const GLOBALS_MAX: usize = 1_000;
/// Exports of a module.
pub const EXPORTS_MAX: usize = 1_000;
/// Types of a module.
pub const TYPES_MAX: usize = 10_000;
/// Parameters, and results, of one function type.
pub const ARITY_MAX: usize = 128;
/// Tables of a module.
pub const TABLES_MAX: usize = 4;
/// Elements of one table.
pub const TABLE_ELEMENTS_MAX: u64 = 100_000;
/// Data segments and element segments of a module.
pub const SEGMENTS_MAX: usize = 10_000;

/// Whether the host calls an export of this name.
pub(crate) fn is_called(name: &str) -> bool {
    FUNCTIONS.iter().any(|function| function.0 == name)
}

/// Names that begin so are ours: the exports that instrumentation adds.
const RESERVED_PREFIX: &str = "__wizer_";

const I32: ValType = ValType::I32;
const I64: ValType = ValType::I64;

/// The exported functions: name, parameters, results, whether it must be there.
const FUNCTIONS: [(&str, &[ValType], &[ValType], bool); 10] = [
    ("rsm_abi_1", &[], &[], true),
    ("_initialize", &[], &[], false),
    ("rsm_describe", &[], &[I64], true),
    ("rsm_input", &[I32], &[I32], true),
    ("rsm_init", &[I32, I32], &[I32], true),
    ("rsm_apply", &[I32, I32], &[I64], true),
    ("rsm_query", &[I32, I32], &[I64], true),
    ("rsm_snapshot", &[I32], &[I64], true),
    ("rsm_restore", &[I32, I32, I32, I32], &[I32], true),
    ("rsm_panic_buf", &[], &[I32], false),
];

/// Why bytes are refused as a module, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// Not wasm at all.
    #[error("it is no wasm module: its first bytes are not those of one")]
    NotWasm,
    /// Longer than any module may be.
    #[error("the module has {bytes} bytes, at most {MODULE_BYTES_MAX} are taken; strip it, and build it for size")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// No module, or one that uses a feature which is off.
    #[error(
        "not a module that can be run: {message} (at byte {offset}); build a core module for wasm32 with at most: mutable \
         globals, saturating conversions, sign extension, multi-value, bulk memory, reference types, extended constants"
    )]
    Invalid {
        /// What wasmparser says.
        message: String,
        /// Where.
        offset: usize,
    },
    /// A module must not import anything: it has no world.
    #[error(
        "the module imports {module:?} {name:?}; it must import nothing: build for wasm32-unknown-unknown, without WASI, \
         clocks, randomness or JavaScript glue"
    )]
    Import {
        /// The module it imports from.
        module: String,
        /// The name it imports.
        name: String,
    },
    /// A start function would run before the host is ready.
    #[error("the module has a start function; export it as `_initialize` instead")]
    Start,
    /// Not exactly one memory.
    #[error("the module has {count} memories; it must have one, exported as `memory`")]
    Memories {
        /// How many it has.
        count: usize,
    },
    /// An export is missing.
    #[error("the module doesn't export {name:?}; see docs/guest-abi.md, or use the statemachine SDK")]
    MissingExport {
        /// Its name.
        name: &'static str,
    },
    /// An export is of another type.
    #[error("the export {name:?} must be {expected}")]
    WrongExport {
        /// Its name.
        name: &'static str,
        /// What it must be.
        expected: String,
    },
    /// An export has a name that is the host's.
    #[error("the export {name:?} begins with {RESERVED_PREFIX:?}, which is reserved; rename it")]
    ReservedExport {
        /// Its name.
        name: String,
    },
    /// An instruction that changes what the host can't copy: tables, dropped segments.
    #[error(
        "the module uses `{instruction}` (at byte {offset}); tables and segments must not change, as images hold only \
         memory and globals: build without it"
    )]
    Instruction {
        /// The instruction.
        instruction: &'static str,
        /// Where.
        offset: usize,
    },
    /// A mutable global that the host can't copy.
    #[error("global {index} is mutable and no number; only i32, i64, f32 and f64 can be copied")]
    MutableReference {
        /// Its index.
        index: usize,
    },
    /// More of something than may be.
    #[error("the module has {found} {what}, at most {max} are taken; split or simplify it")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        found: u64,
        /// How many may be.
        max: u64,
    },
    /// Its memory begins larger than it may be.
    #[error(
        "the module's memory begins with {pages} pages, the limit is {max}; lower it or raise memory_pages at genesis"
    )]
    MemoryMinimum {
        /// Its pages.
        pages: u64,
        /// The limit.
        max: u64,
    },
    /// The compiler or the instrumentation gave up.
    #[error("the module can't be compiled: {0}")]
    Compile(String),
    /// This host can't find out whether it can be run. Not the module's fault.
    #[error("the module could not be tried: {0}")]
    Host(String),
    /// It can't be run so far that it describes itself, or begins.
    #[error("the module failed in {call}: {reason}")]
    Call {
        /// The export that was called.
        call: &'static str,
        /// What went wrong.
        reason: String,
    },
}

impl From<BinaryReaderError> for LoadError {
    fn from(error: BinaryReaderError) -> Self {
        Self::Invalid { message: error.message().to_owned(), offset: error.offset() }
    }
}

/// What is known of a module without its having any state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModuleInfo {
    /// Its own description, `key=value` words. Empty after [`check`], which runs nothing; filled by [`describe`].
    pub description: String,
    /// Its length.
    pub bytes: usize,
    /// Its functions.
    pub functions: usize,
    /// Its mutable globals.
    pub mutable_globals: usize,
    /// Pages of 64 KiB with which its memory begins.
    pub memory_pages_min: u64,
}

impl ModuleInfo {
    /// The value of a word `key=value` of the description.
    #[must_use]
    pub fn word(&self, key: &str) -> Option<&str> {
        self.description
            .split_whitespace()
            .filter_map(|word| word.split_once('='))
            .find(|word| word.0 == key)
            .map(|word| word.1)
    }

    /// Whether the module asks for a call at each tick: the word `ticks=1`.
    #[must_use]
    pub fn wants_ticks(&self) -> bool {
        self.word("ticks") == Some("1")
    }

    /// Whether the module can begin under `limits`.
    ///
    /// # Errors
    /// If its memory begins larger than it may be.
    pub fn fits(&self, limits: &Limits) -> Result<(), LoadError> {
        at_most_pages(self.memory_pages_min, limits.memory_pages.into())
    }
}

/// The features that are on. All others are off, whatever wasmparser and wasmtime would have by default.
pub(crate) const fn features() -> WasmFeatures {
    WasmFeatures::MUTABLE_GLOBAL
        .union(WasmFeatures::SATURATING_FLOAT_TO_INT)
        .union(WasmFeatures::SIGN_EXTENSION)
        .union(WasmFeatures::MULTI_VALUE)
        .union(WasmFeatures::BULK_MEMORY)
        .union(WasmFeatures::REFERENCE_TYPES)
        .union(WasmFeatures::FLOATS)
        .union(WasmFeatures::EXTENDED_CONST)
}

/// The exports that every module must have.
pub fn required_exports() -> impl Iterator<Item = &'static str> {
    let functions = FUNCTIONS.iter().filter(|(.., required)| *required);
    std::iter::once("memory").chain(functions.map(|(name, ..)| *name))
}

/// Checks `bytes` without compiling or running anything.
///
/// # Errors
/// The first thing for which they are refused.
pub fn check(bytes: &[u8]) -> Result<ModuleInfo, LoadError> {
    if bytes.len() > MODULE_BYTES_MAX {
        return Err(LoadError::TooLong { bytes: bytes.len() });
    }
    if !bytes.starts_with(b"\0asm") {
        return Err(LoadError::NotWasm);
    }
    // What is refused by name goes first: "it imports fd_write" helps more than what the validator would say.
    let mut checks = Checks::default();
    for payload in Parser::new(0).parse_all(bytes) {
        checks.payload(payload?)?;
    }
    validate(bytes)?;
    checks.finish(bytes.len())
}

/// Validates, and bounds what functions keep on the operand stack.
fn validate(bytes: &[u8]) -> Result<(), LoadError> {
    let mut validator = Validator::new_with_features(features());
    let mut allocations = FuncValidatorAllocations::default();
    for payload in Parser::new(0).parse_all(bytes) {
        let ValidPayload::Func(function, body) = validator.payload(&payload?)? else { continue };
        let mut function = function.into_validator(allocations);
        let mut reader = body.get_binary_reader();
        function.read_locals(&mut reader)?;
        reader.set_features(features());
        while !reader.eof() {
            let offset = reader.original_position();
            reader.visit_operator(&mut function.visitor(offset))??;
            at_most("values on the operand stack", function.operand_stack_height().into(), OPERANDS_MAX)?;
        }
        let end = reader.original_position();
        reader.finish_expression(&function.visitor(end))?;
        allocations = function.into_allocations();
    }
    Ok(())
}

/// Checks `bytes`, compiles them, and asks the module for its description, in an instance of its own.
///
/// As [`crate::precompile`], for whoever wants nothing but the answer.
///
/// # Errors
/// As [`check`], and if the module can't be compiled or fails to describe itself.
pub fn describe(bytes: &[u8]) -> Result<ModuleInfo, LoadError> {
    match engine::precompile(bytes) {
        Ok(precompiled) => Ok(precompiled.info().clone()),
        Err(Halt::ModuleRefused(error)) => Err(error),
        Err(halt) => Err(LoadError::Host(halt.to_string())),
    }
}

/// What has been seen of the module so far.
#[derive(Default)]
struct Checks {
    types: Vec<Option<FuncType>>,
    functions: Vec<u32>,
    memories: Vec<u64>,
    mutable_globals: usize,
    /// Of the bodies so far.
    cost: body::Cost,
    exported: [bool; FUNCTIONS.len()],
    memory_exported: bool,
}

impl Checks {
    fn payload(&mut self, payload: Payload<'_>) -> Result<(), LoadError> {
        match payload {
            Payload::TypeSection(section) => {
                at_most("types", section.count().into(), TYPES_MAX as u64)?;
                for group in section {
                    for kind in group?.into_types() {
                        self.types.push(match kind.composite_type.inner {
                            CompositeInnerType::Func(function) => {
                                at_most("parameters of a type", function.params().len() as u64, ARITY_MAX as u64)?;
                                at_most("results of a type", function.results().len() as u64, ARITY_MAX as u64)?;
                                Some(function)
                            }
                            _ => None,
                        });
                    }
                }
            }
            Payload::ImportSection(section) => {
                if let Some(import) = section.into_imports().next() {
                    let import = import?;
                    debug_assert!(!matches!(import.ty, TypeRef::Tag(_)));
                    return Err(LoadError::Import { module: import.module.to_owned(), name: import.name.to_owned() });
                }
            }
            Payload::FunctionSection(section) => {
                at_most("functions", section.count().into(), FUNCTIONS_MAX as u64)?;
                self.functions = section.into_iter().collect::<Result<_, _>>()?;
            }
            Payload::TableSection(section) => {
                at_most("tables", section.count().into(), TABLES_MAX as u64)?;
                for table in section {
                    at_most("elements in a table", table?.ty.initial, TABLE_ELEMENTS_MAX)?;
                }
            }
            Payload::MemorySection(section) => {
                for memory in section {
                    self.memories.push(memory?.initial);
                }
            }
            Payload::GlobalSection(section) => {
                at_most("globals", section.count().into(), GLOBALS_MAX as u64)?;
                for (index, global) in section.into_iter().enumerate() {
                    let kind = global?.ty;
                    if kind.mutable && !matches!(kind.content_type, I32 | I64 | ValType::F32 | ValType::F64) {
                        return Err(LoadError::MutableReference { index });
                    }
                    self.mutable_globals += usize::from(kind.mutable);
                }
            }
            Payload::ExportSection(section) => {
                at_most("exports", section.count().into(), EXPORTS_MAX as u64)?;
                for export in section {
                    let export = export?;
                    self.export(export.name, export.kind, export.index)?;
                }
            }
            Payload::StartSection { .. } => return Err(LoadError::Start),
            Payload::DataSection(section) => at_most("data segments", section.count().into(), SEGMENTS_MAX as u64)?,
            Payload::ElementSection(section) => {
                at_most("element segments", section.count().into(), SEGMENTS_MAX as u64)?;
            }
            Payload::CodeSectionEntry(body) => {
                let cost = body::check(self, &body)?;
                self.cost.values += cost.values;
                self.cost.loop_values += cost.loop_values;
                at_most("values in all functions", self.cost.values, MODULE_VALUES_MAX)?;
                at_most("locals in loops of all functions", self.cost.loop_values, MODULE_LOOP_VALUES_MAX)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Exports come after types, functions and memories, so what they name is known.
    fn export(&mut self, name: &str, kind: ExternalKind, index: u32) -> Result<(), LoadError> {
        if name.starts_with(RESERVED_PREFIX) {
            return Err(LoadError::ReservedExport { name: name.to_owned() });
        }
        if name == "memory" {
            if kind != ExternalKind::Memory {
                return Err(LoadError::WrongExport { name: "memory", expected: "the module's memory".to_owned() });
            }
            self.memory_exported = true;
        }
        if let Some(place) = FUNCTIONS.iter().position(|function| function.0 == name) {
            let (name, params, results, _) = FUNCTIONS[place];
            let kind = (kind == ExternalKind::Func).then(|| self.function_type(index)).flatten();
            if kind.is_none_or(|kind| kind.params() != params || kind.results() != results) {
                return Err(LoadError::WrongExport { name, expected: format!("a function {params:?} -> {results:?}") });
            }
            self.exported[place] = true;
        }
        Ok(())
    }

    /// There are no imports, so the index space of functions is that of the function section.
    fn function_type(&self, index: u32) -> Option<&FuncType> {
        self.type_at(*self.functions.get(usize::try_from(index).ok()?)?)
    }

    fn type_at(&self, index: u32) -> Option<&FuncType> {
        self.types.get(usize::try_from(index).ok()?)?.as_ref()
    }

    fn finish(self, bytes: usize) -> Result<ModuleInfo, LoadError> {
        let [memory_pages_min] = self.memories[..] else {
            return Err(LoadError::Memories { count: self.memories.len() });
        };
        if !self.memory_exported {
            return Err(LoadError::MissingExport { name: "memory" });
        }
        for ((name, _, _, required), exported) in FUNCTIONS.into_iter().zip(self.exported) {
            if required && !exported {
                return Err(LoadError::MissingExport { name });
            }
        }
        at_most_pages(memory_pages_min, 65_535)?;
        let (functions, mutable_globals) = (self.functions.len(), self.mutable_globals);
        Ok(ModuleInfo { description: String::new(), bytes, functions, mutable_globals, memory_pages_min })
    }
}

fn at_most(what: &'static str, found: u64, max: u64) -> Result<(), LoadError> {
    if found > max { Err(LoadError::TooMany { what, found, max }) } else { Ok(()) }
}

fn at_most_pages(pages: u64, max: u64) -> Result<(), LoadError> {
    if pages > max { Err(LoadError::MemoryMinimum { pages, max }) } else { Ok(()) }
}

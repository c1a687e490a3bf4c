//! Bounds how deep calls go, so that deep recursion ends at the same call on every node (docs/adr/0018).
//!
//! Every function gets one more parameter, the last: how many bytes of stack are left. On entry it takes off what its own frame may
//! need, traps if that isn't there, and hands the rest to whatever it calls. So nothing has to be put back when a call returns or
//! traps, no state comes into being that an image would have to hold, and the module can't see or change the number: its own code knows
//! fewer locals. What the host calls are wrappers, which begin with the whole budget.
//!
//! **A frame's bytes** are a function of the module's bytes alone: about what a good compiler takes for the locals, and a little for each
//! value that an instruction leaves, so for the operand stack at its highest too. The native stack is larger than the budget by
//! [`NATIVE_BYTES_MAX`]: room for a compiler that keeps each of those values in a slot of its own for the whole of the function. So the
//! native stack never ends before the budget does; if it should all the same, the node halts ([`crate::Halt::NativeStack`]). A function
//! that calls nothing and is small isn't checked: there is room for one such frame.
//!
//! ```text
//! (func $f (param $a i32) (result i32)          (func $f (param $a i32) (param $left i32) (result i32)
//!                                                  local.get $left  i32.const FRAME  i32.sub  local.tee $left
//!                                                  i32.const 0  i32.lt_s
//!                                                  if  i32.const 1  global.set $exhausted  unreachable  end
//!    local.get $a  call $g)              ──▶       local.get $a  local.get $left  call $g)
//! ```

use std::{cell::Cell, convert::Infallible};

use wasm_encoder::{
    BlockType, CodeSection, ConstExpr, ExportKind, ExportSection, Function, FunctionSection, GlobalSection, GlobalType,
    Instruction, Module, SectionId, TypeSection, ValType,
    reencode::{Error, Reencode, utils},
};
use wasmparser::{CompositeInnerType, ExternalKind, FuncType, FunctionBody, Operator, Parser, Payload};

use crate::load;

/// What the frames of one call from the host may need together, in bytes as counted here.
pub(crate) const BUDGET_BYTES: u32 = 4 << 20;

/// Bytes of native stack that one counted byte may stand for: a value counts for [`VALUE_BYTES`], and needs at most [`SLOT_BYTES`].
pub(crate) const NATIVE_BYTES_MAX: u32 = (SLOT_BYTES / VALUE_BYTES) as u32;

/// More native stack than the frames that aren't counted need: a wrapper, and one function that calls nothing.
pub(crate) const UNCOUNTED_BYTES: u32 = 64 << 10;

/// The export of ours that is 1 after a call found no stack left; else 0. The module has no name for it.
pub(crate) const EXHAUSTED: &str = "__wizer_exhausted";

/// What every frame has: the place to return to, the frame pointer, what the engine keeps for itself.
const FRAME_BYTES: u64 = 128;

/// A parameter, a local or what a call passes: as large as any register that a value may be put away from.
const SLOT_BYTES: u64 = 16;

/// What an instruction leaves: few of them are there at the same time, in code as it is written.
const VALUE_BYTES: u64 = 2;

/// The largest frame of a function that isn't counted as it calls nothing.
const LEAF_BYTES_MAX: u64 = 4 << 10;

/// Adds the parameter, the checks and the wrappers to a module that the load checks have passed.
///
/// # Errors
/// What the module has that can't be encoded again. The load checks leave nothing of that kind.
pub(crate) fn instrument(wasm: &[u8]) -> Result<Vec<u8>, String> {
    let told = |error: Error<Infallible>| error.to_string();
    let mut shape = Shape::read(wasm).map_err(|error| told(error.into()))?;
    if !counts() {
        shape.entries.clear();
    }
    let mut counting = Counting { shape, counts: counts(), next: 0, marked: false };
    let mut module = Module::new();
    counting.parse_core_module(&mut module, Parser::new(0), wasm).map_err(told)?;
    Ok(module.finish())
}

thread_local! {
    static COUNTS: Cell<bool> = const { Cell::new(true) };
}

/// Whether this thread puts the counting in.
pub(crate) fn counts() -> bool {
    COUNTS.get()
}

/// Runs `run` as if there were no counting, to measure and test what it costs and changes.
pub(crate) fn without_counting<T>(run: impl FnOnce() -> T) -> T {
    COUNTS.set(false);
    let done = run();
    COUNTS.set(true);
    done
}

/// The bytes that the frame of each function counts as.
pub(crate) fn frame_bytes(wasm: &[u8]) -> Result<Vec<u64>, String> {
    let read = || {
        let shape = Shape::read(wasm)?;
        let mut frames = Vec::new();
        for payload in Parser::new(0).parse_all(wasm) {
            if let Payload::CodeSectionEntry(body) = payload? {
                frames.push(Frame::of(&shape, shape.type_of(frames.len() as u32), &body)?.bytes);
            }
        }
        Ok(frames)
    };
    read().map_err(|error: wasmparser::Error| error.to_string())
}

/// What has to be known before the first section is written.
#[derive(Default)]
struct Shape {
    types: Vec<FuncType>,
    /// The type of each function.
    functions: Vec<u32>,
    globals: u32,
    /// The functions that the host calls, in the order of their exports. The first wrapper is for the first of them.
    entries: Vec<u32>,
}

impl Shape {
    fn read(wasm: &[u8]) -> Result<Self, wasmparser::Error> {
        let mut shape = Self::default();
        for payload in Parser::new(0).parse_all(wasm) {
            match payload? {
                Payload::TypeSection(section) => {
                    for group in section {
                        for kind in group?.into_types() {
                            if let CompositeInnerType::Func(kind) = kind.composite_type.inner {
                                shape.types.push(kind);
                            }
                        }
                    }
                }
                Payload::FunctionSection(section) => shape.functions = section.into_iter().collect::<Result<_, _>>()?,
                Payload::GlobalSection(section) => shape.globals = section.count(),
                Payload::ExportSection(section) => {
                    for export in section {
                        let export = export?;
                        if is_entry(export.name, export.kind) {
                            shape.entries.push(export.index);
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(shape)
    }

    fn type_of(&self, function: u32) -> &FuncType {
        &self.types[self.functions[function as usize] as usize]
    }
}

fn is_entry(name: &str, kind: ExternalKind) -> bool {
    kind == ExternalKind::Func && load::is_called(name)
}

/// What a function's frame may need, and what it calls.
#[derive(Default)]
struct Frame {
    bytes: u64,
    calls: bool,
    calls_indirectly: bool,
}

impl Frame {
    fn of(shape: &Shape, kind: &FuncType, body: &FunctionBody<'_>) -> Result<Self, wasmparser::Error> {
        let mut frame = Self::default();
        let (mut locals, mut values) = (kind.params().len() as u64, 0);
        for group in body.get_locals_reader()? {
            locals += u64::from(group?.0);
        }
        let mut widest_call = 0; // what doesn't fit the registers goes by the stack
        for operator in body.get_operators_reader()? {
            let called = match operator? {
                Operator::Call { function_index } => shape.type_of(function_index),
                Operator::CallIndirect { type_index, .. } => {
                    frame.calls_indirectly = true;
                    &shape.types[type_index as usize]
                }
                Operator::Block { blockty } | Operator::Loop { blockty } | Operator::If { blockty } => {
                    values += match blockty {
                        wasmparser::BlockType::FuncType(kind) => {
                            let kind = &shape.types[kind as usize];
                            (kind.params().len() + kind.results().len()) as u64
                        }
                        _ => 1,
                    };
                    continue;
                }
                _ => {
                    values += 1;
                    continue;
                }
            };
            frame.calls = true;
            values += called.results().len() as u64;
            widest_call = widest_call.max((called.params().len() + called.results().len()) as u64);
        }
        frame.bytes = FRAME_BYTES + SLOT_BYTES * (locals + widest_call) + VALUE_BYTES * values;
        Ok(frame)
    }

    fn is_counted(&self) -> bool {
        self.calls || self.bytes > LEAF_BYTES_MAX
    }
}

struct Counting {
    shape: Shape,
    /// Else only [`EXHAUSTED`] is added.
    counts: bool,
    /// The function whose body comes next.
    next: u32,
    /// Whether [`EXHAUSTED`] is among the globals already.
    marked: bool,
}

impl Counting {
    fn mark(&mut self, globals: &mut GlobalSection) {
        globals.global(GlobalType { val_type: ValType::I32, mutable: true, shared: false }, &ConstExpr::i32_const(0));
        self.marked = true;
    }

    /// Takes a frame off what is left, or traps. `left` is the local with what is left.
    fn count(&self, function: &mut Function, left: u32, bytes: u64) {
        let bytes = i32::try_from(bytes.min(u64::from(BUDGET_BYTES) + 1)).expect("the budget is far below 2 GiB");
        function
            .instruction(&Instruction::LocalGet(left))
            .instruction(&Instruction::I32Const(bytes))
            .instruction(&Instruction::I32Sub)
            .instruction(&Instruction::LocalTee(left))
            .instruction(&Instruction::I32Const(0))
            .instruction(&Instruction::I32LtS)
            .instruction(&Instruction::If(BlockType::Empty))
            .instruction(&Instruction::I32Const(1))
            .instruction(&Instruction::GlobalSet(self.shape.globals))
            .instruction(&Instruction::Unreachable)
            .instruction(&Instruction::End);
    }
}

impl Reencode for Counting {
    type Error = Infallible;

    /// Functions are of the types with one more parameter, which follow the module's own.
    fn type_index(&mut self, kind: u32) -> Result<u32, Error<Infallible>> {
        Ok(if self.counts { kind + self.shape.types.len() as u32 } else { kind })
    }

    /// Blocks are of the module's own types.
    fn block_type(&mut self, kind: wasmparser::BlockType) -> Result<BlockType, Error<Infallible>> {
        match kind {
            wasmparser::BlockType::FuncType(kind) => Ok(BlockType::FunctionType(kind)),
            kind => utils::block_type(self, kind),
        }
    }

    fn parse_type_section(
        &mut self,
        types: &mut TypeSection,
        section: wasmparser::TypeSectionReader<'_>,
    ) -> Result<(), Error<Infallible>> {
        utils::parse_type_section(self, types, section)?;
        let counted = if self.counts { self.shape.types.clone() } else { Vec::new() };
        for kind in counted {
            let params = kind.params().iter().map(|&kind| self.val_type(kind));
            let params = params.chain([Ok(ValType::I32)]).collect::<Result<Vec<_>, _>>()?;
            let results = kind.results().iter().map(|&kind| self.val_type(kind)).collect::<Result<Vec<_>, _>>()?;
            types.ty().function(params, results);
        }
        Ok(())
    }

    fn parse_function_section(
        &mut self,
        functions: &mut FunctionSection,
        section: wasmparser::FunctionSectionReader<'_>,
    ) -> Result<(), Error<Infallible>> {
        utils::parse_function_section(self, functions, section)?;
        for &entry in &self.shape.entries {
            functions.function(self.shape.functions[entry as usize]);
        }
        Ok(())
    }

    fn parse_global_section(
        &mut self,
        globals: &mut GlobalSection,
        section: wasmparser::GlobalSectionReader<'_>,
    ) -> Result<(), Error<Infallible>> {
        utils::parse_global_section(self, globals, section)?;
        self.mark(globals);
        Ok(())
    }

    /// A module without globals gets a section for ours.
    fn intersperse_section_hook(
        &mut self,
        module: &mut Module,
        _: Option<SectionId>,
        before: Option<SectionId>,
    ) -> Result<(), Error<Infallible>> {
        if before == Some(SectionId::Export) && !self.marked {
            let mut globals = GlobalSection::new();
            self.mark(&mut globals);
            module.section(&globals);
        }
        Ok(())
    }

    fn parse_export_section(
        &mut self,
        exports: &mut ExportSection,
        section: wasmparser::ExportSectionReader<'_>,
    ) -> Result<(), Error<Infallible>> {
        let mut wrapper = self.shape.functions.len() as u32;
        for export in section {
            let export = export?;
            if self.counts && is_entry(export.name, export.kind) {
                exports.export(export.name, ExportKind::Func, wrapper);
                wrapper += 1;
            } else {
                self.parse_export(exports, export)?;
            }
        }
        exports.export(EXHAUSTED, ExportKind::Global, self.shape.globals);
        Ok(())
    }

    fn parse_code_section(
        &mut self,
        code: &mut CodeSection,
        section: wasmparser::CodeSectionReader<'_>,
    ) -> Result<(), Error<Infallible>> {
        utils::parse_code_section(self, code, section)?;
        for &entry in &self.shape.entries {
            let mut wrapper = Function::new([]);
            for param in 0..self.shape.type_of(entry).params().len() {
                wrapper.instruction(&Instruction::LocalGet(param as u32));
            }
            wrapper.instruction(&Instruction::I32Const(BUDGET_BYTES as i32)).instruction(&Instruction::Call(entry));
            code.function(wrapper.instruction(&Instruction::End));
        }
        Ok(())
    }

    fn parse_function_body(&mut self, code: &mut CodeSection, body: FunctionBody<'_>) -> Result<(), Error<Infallible>> {
        if !self.counts {
            return utils::parse_function_body(self, code, body);
        }
        let kind = self.shape.type_of(self.next).clone();
        self.next += 1;
        let frame = Frame::of(&self.shape, &kind, &body)?;
        let left = kind.params().len() as u32;
        let moved = |local: u32| if local < left { local } else { local + 1 };

        let mut locals = Vec::new();
        let mut callee = left + 1; // a local of ours, behind the module's own
        for group in body.get_locals_reader()? {
            let (count, kind) = group?;
            callee += count;
            locals.push((count, self.val_type(kind)?));
        }
        if frame.calls_indirectly {
            locals.push((1, ValType::I32));
        }
        let mut function = Function::new(locals);
        if frame.is_counted() {
            self.count(&mut function, left, frame.bytes);
        }
        for operator in body.get_operators_reader()? {
            let operator = operator?;
            match operator {
                Operator::Call { .. } => {
                    function.instruction(&Instruction::LocalGet(left));
                }
                Operator::CallIndirect { .. } => {
                    function
                        .instruction(&Instruction::LocalSet(callee))
                        .instruction(&Instruction::LocalGet(left))
                        .instruction(&Instruction::LocalGet(callee));
                }
                _ => {}
            }
            function.instruction(&match self.instruction(operator)? {
                Instruction::LocalGet(local) => Instruction::LocalGet(moved(local)),
                Instruction::LocalSet(local) => Instruction::LocalSet(moved(local)),
                Instruction::LocalTee(local) => Instruction::LocalTee(moved(local)),
                other => other,
            });
        }
        code.function(&function);
        Ok(())
    }

    /// Names and the like: nobody reads them.
    fn parse_custom_section(
        &mut self,
        _: &mut Module,
        _: wasmparser::CustomSectionReader<'_>,
    ) -> Result<(), Error<Infallible>> {
        Ok(())
    }
}

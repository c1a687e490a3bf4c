//! Checks of one function's body: what it may hold, and what it may cost to compile.

use std::{collections::HashSet, mem};

use wasmparser::{BlockType, FuncType, FunctionBody, Operator};

use super::{
    BODY_BYTES_MAX, BR_TABLE_TARGETS_MAX, Checks, FUNCTION_LOOP_VALUES_MAX, FUNCTION_VALUES_MAX, LOCALS_MAX,
    LOOP_NESTING_MAX, LoadError, NESTING_MAX, at_most,
};

/// What a body asks of the compiler.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cost {
    /// What instructions leave, what calls and branches pass, and each local once more for each block that it is used in.
    pub(super) values: u64,
    /// Of those, each local in each loop that it is used in. The time that they take grows with their square.
    pub(super) loop_values: u64,
}

/// Checks a body, and counts what it asks of the compiler. A few bytes can ask for much: a branch that passes 128 values, a local that a
/// hundred loops within each other change.
pub(super) fn check(module: &Checks, body: &FunctionBody<'_>) -> Result<Cost, LoadError> {
    at_most("bytes in a function", body.range().len() as u64, BODY_BYTES_MAX as u64)?;
    let mut locals = 0u32;
    for group in body.get_locals_reader()? {
        locals = locals.saturating_add(group?.0);
    }
    at_most("locals in a function", locals.into(), LOCALS_MAX.into())?;

    let mut cost = Cost { values: locals.into(), loop_values: 0 };
    let mut blocks = Blocks::default();
    let mut operators = body.get_operators_reader()?;
    while !operators.eof() {
        let (operator, offset) = operators.read_with_offset()?;
        if let Some(instruction) = refused(&operator) {
            return Err(LoadError::Instruction { instruction, offset });
        }
        cost.values += 1 + match operator {
            Operator::Block { blockty } | Operator::Loop { blockty } | Operator::If { blockty } => {
                let (params, results) = module.block_arity(blockty);
                let is_loop = matches!(operator, Operator::Loop { .. });
                blocks.open(is_loop, if is_loop { params } else { results });
                at_most("blocks within blocks", blocks.open.len() as u64, NESTING_MAX as u64)?;
                at_most("loops within loops", blocks.loops, LOOP_NESTING_MAX)?;
                params + results
            }
            Operator::End => {
                let (joined, in_loop) = blocks.close();
                cost.loop_values += in_loop;
                joined
            }
            Operator::LocalGet { local_index }
            | Operator::LocalSet { local_index }
            | Operator::LocalTee { local_index } => {
                blocks.uses(local_index);
                0
            }
            Operator::Br { relative_depth } | Operator::BrIf { relative_depth } => blocks.passed_to(relative_depth),
            Operator::BrTable { targets } => {
                at_most("targets of a br_table", targets.len().into(), BR_TABLE_TARGETS_MAX.into())?;
                let mut passed = blocks.passed_to(targets.default());
                for target in targets.targets() {
                    passed += 1 + blocks.passed_to(target?);
                }
                passed
            }
            Operator::Call { function_index } => arity(module.function_type(function_index)),
            Operator::CallIndirect { type_index, .. } => arity(module.type_at(type_index)),
            _ => 0,
        };
        at_most("values in a function", cost.values, FUNCTION_VALUES_MAX)?;
        at_most("locals in loops of a function", cost.loop_values, FUNCTION_LOOP_VALUES_MAX)?;
    }
    Ok(cost)
}

/// An instruction that changes what images don't hold.
const fn refused(operator: &Operator<'_>) -> Option<&'static str> {
    Some(match operator {
        Operator::TableSet { .. } => "table.set",
        Operator::TableGrow { .. } => "table.grow",
        Operator::TableFill { .. } => "table.fill",
        Operator::TableCopy { .. } => "table.copy",
        Operator::TableInit { .. } => "table.init",
        Operator::ElemDrop { .. } => "elem.drop",
        Operator::DataDrop { .. } => "data.drop",
        _ => return None,
    })
}

fn arity(kind: Option<&FuncType>) -> u64 {
    kind.map_or(0, |kind| (kind.params().len() + kind.results().len()) as u64)
}

/// The blocks that are open, outermost first.
#[derive(Default)]
struct Blocks {
    open: Vec<Block>,
    /// How many of them are loops.
    loops: u64,
}

struct Block {
    is_loop: bool,
    /// What a branch to it passes.
    label: u64,
    /// The locals that are used in it. Each may need a value of its own where ways into or out of the block meet.
    locals: HashSet<u32>,
}

impl Blocks {
    fn open(&mut self, is_loop: bool, label: u64) {
        self.open.push(Block { is_loop, label, locals: HashSet::new() });
        self.loops += u64::from(is_loop);
    }

    /// Returns the values where ways meet, and those of them in a loop. The body's own end closes no block.
    fn close(&mut self) -> (u64, u64) {
        let Some(mut closed) = self.open.pop() else { return (0, 0) };
        let joined = closed.locals.len() as u64;
        self.loops -= u64::from(closed.is_loop);
        if let Some(around) = self.open.last_mut() {
            if around.locals.len() < closed.locals.len() {
                mem::swap(&mut around.locals, &mut closed.locals); // so that each local moves a few times at most
            }
            around.locals.extend(closed.locals);
        }
        (joined, if closed.is_loop { joined } else { 0 })
    }

    fn uses(&mut self, local: u32) {
        if let Some(block) = self.open.last_mut() {
            block.locals.insert(local);
        }
    }

    fn passed_to(&self, depth: u32) -> u64 {
        let place = self.open.len().checked_sub(1 + depth as usize);
        place.map_or(0, |place| self.open[place].label)
    }
}

impl Checks {
    /// How many values a block takes and leaves.
    fn block_arity(&self, kind: BlockType) -> (u64, u64) {
        match kind {
            BlockType::Empty => (0, 0),
            BlockType::Type(_) => (0, 1),
            BlockType::FuncType(kind) => {
                self.type_at(kind).map_or((0, 0), |kind| (kind.params().len() as u64, kind.results().len() as u64))
            }
        }
    }
}

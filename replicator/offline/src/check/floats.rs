//! Which functions of a module calculate with floats.

use std::{collections::BTreeMap, fmt};

use wasmparser::{ExternalKind, FunctionBody, KnownCustom, Name, NameSectionReader, Operator, Parser, Payload};

/// A function that calculates with floats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FloatFunction {
    /// Its index in the module.
    pub index: u32,
    /// Its name: of the name section, or that of its export.
    pub name: Option<String>,
    /// The byte of the module at which its first float operation is.
    pub offset: u64,
    /// How many there are.
    pub operations: usize,
}

impl fmt::Display for FloatFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{name}")?,
            None => write!(f, "function {}", self.index)?,
        }
        write!(f, " ({} at byte {:#x})", self.operations, self.offset)
    }
}

/// The functions of a module that calculate with floats, in the order of their indices. Comparing, moving and storing isn't calculating.
pub(super) fn functions(module: &[u8]) -> Vec<FloatFunction> {
    let (mut found, mut names, mut exports, mut index) = (Vec::new(), BTreeMap::new(), BTreeMap::new(), 0);
    for payload in Parser::new(0).parse_all(module).map_while(Result::ok) {
        match payload {
            Payload::ExportSection(section) => {
                let functions = section.into_iter().filter_map(Result::ok);
                let functions = functions.filter(|export| export.kind == ExternalKind::Func);
                exports.extend(functions.map(|export| (export.index, export.name.to_owned())));
            }
            Payload::CodeSectionEntry(body) => {
                found.extend(of_body(&body).map(|(offset, operations)| (index, offset, operations)));
                index += 1;
            }
            Payload::CustomSection(section) => {
                if let KnownCustom::Name(section) = section.as_known() {
                    names = names_of(section);
                }
            }
            _ => {}
        }
    }
    let name = |index: u32| names.get(&index).or_else(|| exports.get(&index)).cloned();
    let named = |(index, offset, operations)| FloatFunction { index, name: name(index), offset, operations };
    found.into_iter().map(named).collect()
}

fn names_of(section: NameSectionReader<'_>) -> BTreeMap<u32, String> {
    let functions = section.into_iter().filter_map(Result::ok).filter_map(|name| match name {
        Name::Function(names) => Some(names),
        _ => None,
    });
    let names = functions.flat_map(|names| names.into_iter().filter_map(Result::ok));
    names.map(|naming| (naming.index, naming.name.to_owned())).collect()
}

/// Where the first float operation is, and how many there are; nothing if there is none.
fn of_body(body: &FunctionBody<'_>) -> Option<(u64, usize)> {
    let (mut first, mut operations) = (None, 0);
    let mut reader = body.get_operators_reader().ok()?;
    while let Ok((operator, offset)) = reader.read_with_offset() {
        if calculates(&operator) {
            first = first.or(Some(offset as u64));
            operations += 1;
        }
    }
    first.map(|first| (first, operations))
}

const fn calculates(operator: &Operator<'_>) -> bool {
    use Operator as O;
    matches!(
        operator,
        O::F32Add
            | O::F32Sub
            | O::F32Mul
            | O::F32Div
            | O::F32Sqrt
            | O::F32Min
            | O::F32Max
            | O::F32Ceil
            | O::F32Floor
            | O::F32Trunc
            | O::F32Nearest
            | O::F64Add
            | O::F64Sub
            | O::F64Mul
            | O::F64Div
            | O::F64Sqrt
            | O::F64Min
            | O::F64Max
            | O::F64Ceil
            | O::F64Floor
            | O::F64Trunc
            | O::F64Nearest
            | O::F32ConvertI32S
            | O::F32ConvertI32U
            | O::F32ConvertI64S
            | O::F32ConvertI64U
            | O::F32DemoteF64
            | O::F64ConvertI32S
            | O::F64ConvertI32U
            | O::F64ConvertI64S
            | O::F64ConvertI64U
            | O::F64PromoteF32
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_that_calculate_are_named_and_those_that_move_floats_are_not() {
        let module = wat::parse_str(
            r#"(module
                (func (param f64) (result i32) (f64.lt (local.get 0) (f64.const 1)))
                (func $mean (export "exported") (param f64 f64) (result f64)
                    (f64.div (f64.add (local.get 0) (local.get 1)) (f64.const 2)))
                (func (export "seen") (param i32) (result f32) (f32.convert_i32_s (local.get 0))))"#,
        )
        .unwrap();
        let found = functions(&module);
        let named: Vec<_> = found.iter().map(|f| (f.index, f.name.as_deref().unwrap(), f.operations)).collect();
        assert_eq!(named, [(1, "mean", 2), (2, "seen", 1)]);
        assert_eq!(module[found[0].offset as usize], 0xa0, "f64.add is at the byte that is named");
    }
}

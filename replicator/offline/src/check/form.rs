//! What can be told of a module without giving it a request.

use std::time::Instant;

use bytes::Bytes;
use replicator_machine::{
    Limits, LoadError, ModuleInfo,
    load::{self, FUNCTIONS_MAX, MODULE_BYTES_MAX},
};
use wasmparser::{Parser, Payload};

use super::{Report, Verdict, floats, listed};

/// Names that are shown of a list.
const SHOWN: usize = 8;

pub(super) fn check(module: &Bytes, report: &mut Report) {
    let found = Found::of(module);
    if let Some(found) = &found {
        imports(found, report);
        exports(found, report);
    }
    let told_already = found.is_some_and(|found| !found.imports.is_empty() || !found.missing.is_empty());
    match load::check(module) {
        Ok(info) => sizes(&info, report),
        Err(LoadError::Import { .. } | LoadError::MissingExport { .. }) if told_already => {
            report.add("form", Verdict::Warn, "the rest of its form is checked once these are mended");
            return;
        }
        Err(error) => return report.add("form", Verdict::Refused, sentence(&error.to_string())),
    }
    let began = Instant::now();
    match load::describe(module) {
        Err(error) => report.add("compile", Verdict::Refused, sentence(&error.to_string())),
        Ok(info) => {
            let took = began.elapsed();
            report.compile_time = Some(took);
            let told = format!("checked, instrumented and compiled in {:.0} ms", took.as_secs_f64() * 1e3);
            report.add("compile", Verdict::Ok, told);
            report.add("description", Verdict::Ok, info.description.clone());
            report.info = Some(info);
        }
    }
    floats(module, report);
}

/// What is named in the module's sections.
#[derive(Default)]
struct Found {
    imports: Vec<String>,
    missing: Vec<&'static str>,
    exported: usize,
}

impl Found {
    /// Nothing if it can't be read to its end: then it is no module.
    fn of(module: &Bytes) -> Option<Self> {
        let mut found = Self::default();
        let mut names = Vec::new();
        for payload in Parser::new(0).parse_all(module) {
            match payload {
                Ok(Payload::ImportSection(section)) => {
                    let imports = section.into_imports().filter_map(Result::ok);
                    found.imports.extend(imports.map(|import| format!("{}.{}", import.module, import.name)));
                }
                Ok(Payload::ExportSection(section)) => {
                    names.extend(section.into_iter().filter_map(Result::ok).map(|export| export.name));
                }
                Ok(_) => {}
                Err(_) => return None,
            }
        }
        found.exported = names.len();
        found.missing = load::required_exports().filter(|name| !names.contains(name)).collect();
        Some(found)
    }
}

fn imports(found: &Found, report: &mut Report) {
    match &found.imports[..] {
        [] => report.add("imports", Verdict::Ok, "none"),
        imports => report.add(
            "imports",
            Verdict::Refused,
            format!(
                "{}; a module has no world: build for wasm32-unknown-unknown, without WASI, clocks, randomness or JavaScript glue, and take what \
                 you need of time and seed from the request's header",
                listed(imports, SHOWN)
            ),
        ),
    }
}

fn exports(found: &Found, report: &mut Report) {
    match &found.missing[..] {
        [] => report.add("exports", Verdict::Ok, format!("all that are needed, among {}", found.exported)),
        missing => report.add(
            "exports",
            Verdict::Refused,
            format!(
                "{} missing; in Rust `statemachine::export!(YourMachine)` makes them, for other languages see docs/guest-abi.md",
                listed(missing, SHOWN)
            ),
        ),
    }
}

fn sizes(info: &ModuleInfo, report: &mut Report) {
    report.add("form", Verdict::Ok, "a core module with no more features than are on, and no instruction that is off");
    let told = format!(
        "{} bytes of {MODULE_BYTES_MAX}, {} functions of {FUNCTIONS_MAX}, {} mutable globals, memory from {} pages on",
        info.bytes, info.functions, info.mutable_globals, info.memory_pages_min
    );
    match info.fits(&Limits::default()) {
        Ok(()) => report.add("limits", Verdict::Ok, told),
        Err(error) => report.add("limits", Verdict::Warn, format!("{told}; {error}")),
    }
}

fn floats(module: &Bytes, report: &mut Report) {
    let floats = floats::functions(module);
    if floats.is_empty() {
        return report.add("floats", Verdict::Ok, "no float arithmetic");
    }
    let told = format!(
        "{} with float arithmetic: {}. Every replica rounds alike, and NaNs are made canonical; another build of the module may round otherwise: \
         use integers where a result is kept or compared",
        match floats.len() {
            1 => "1 function".to_owned(),
            many => format!("{many} functions"),
        },
        listed(&floats, SHOWN)
    );
    report.add("floats", Verdict::Warn, told);
    report.floats = floats;
}

/// Without "the module" in front, which the report is about.
fn sentence(text: &str) -> String {
    text.strip_prefix("the module ").unwrap_or(text).to_owned()
}

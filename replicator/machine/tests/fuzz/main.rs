//! `make fuzz`: random and damaged modules for the loader, random output lists for their parser, each judged by what must hold of any.
//!
//! It runs on the stable toolchain and needs no other program: a seed makes the cases, and case N of a seed is the same on every machine. Before that
//! it tries the cases that once failed, in `tests/fuzz/found`. As part of `cargo test` it tries a fixed number of cases.
//!
//! What it is told, by the environment: `FUZZ_SECONDS` for each target, `FUZZ_SEED`, `FUZZ_TARGET` (`loader` or `lists`), and
//! `FUZZ_CASE` for that one case alone.

mod lists;
mod loader;
mod modules;
mod random;

use std::{
    env, fs,
    io::Write as _,
    panic,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant, SystemTime},
};

use random::Random;
use replicator_machine::with_apply_stack;

/// Something to try cases on.
trait Target {
    const NAME: &'static str;
    /// Cases of one run of `cargo test`.
    const CASES: u64;

    fn new() -> Self;

    /// The bytes of a case.
    fn make(&self, random: &mut Random) -> Vec<u8>;

    /// Tries the bytes. The rest of the case, such as the calls of a module, is a function of them.
    fn judge(&mut self, bytes: &[u8]) -> Result<(), String>;

    /// What the cases were, in words.
    fn summary(&self) -> String;
}

/// How long to go on.
enum Until {
    Cases(u64),
    Time(Duration),
    Only(u64),
}

fn number(key: &str) -> Option<u64> {
    let text = env::var(key).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{key}={text} is no number")))
}

fn main() -> ExitCode {
    // `cargo test NAME` asks for tests of that name.
    if env::args().skip(1).any(|argument| !argument.starts_with('-') && !"fuzz".contains(&argument)) {
        return ExitCode::SUCCESS;
    }
    let seconds = number("FUZZ_SECONDS");
    let fresh = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(1, |since| since.as_secs());
    let seed = number("FUZZ_SEED").unwrap_or_else(|| if seconds.is_some() { fresh() } else { 1 });
    let only = env::var("FUZZ_TARGET").unwrap_or_default();
    let tried = with_apply_stack(|| {
        let lists = !"lists".contains(&only) || run::<lists::Lists>(seed, seconds);
        let loader = !"loader".contains(&only) || run::<loader::Loader>(seed, seconds);
        lists && loader
    });
    if tried.expect("the system gives a thread") { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Returns whether all cases held.
fn run<T: Target>(seed: u64, seconds: Option<u64>) -> bool {
    let until = match (number("FUZZ_CASE"), seconds) {
        (Some(case), _) => Until::Only(case),
        (_, Some(seconds)) => Until::Time(Duration::from_secs(seconds)),
        _ => Until::Cases(T::CASES),
    };
    let mut target = T::new();
    let found = found(T::NAME);
    for path in &found {
        let bytes = fs::read(path).expect("it can be read");
        if let Err(what) = judge(&mut target, &bytes) {
            println!("fuzz {}: {} fails again: {what}", T::NAME, path.display());
            return false;
        }
    }
    println!("fuzz {}: seed {seed}; {} that once failed hold", T::NAME, found.len());
    // Where this process stands, should it end without a word.
    let mut place = fs::File::create(folder().join("case")).expect("the target folder can be written");
    let start = Instant::now();
    let (mut case, mut tried) = (0, 0u64);
    let mut slowest = (Duration::ZERO, 0);
    loop {
        match until {
            Until::Cases(cases) if case == cases => break,
            Until::Time(time) if start.elapsed() >= time => break,
            Until::Only(only) if tried == 0 => case = only,
            Until::Only(_) => break,
            _ => {}
        }
        writeln!(place, "TARGET={} SEED={seed} CASE={case}", T::NAME).expect("the target folder can be written");
        let began = Instant::now();
        let bytes = target.make(&mut Random::new(seed, case));
        if let Err(what) = judge(&mut target, &bytes) {
            let path = folder().join(format!("{}-{seed}-{case}", T::NAME));
            fs::write(&path, &bytes).expect("the target folder can be written");
            println!("fuzz {}: case {case} of seed {seed}: {what}", T::NAME);
            println!("  again: make fuzz TARGET={} SEED={seed} CASE={case}", T::NAME);
            println!("  once it is mended, keep its bytes: cp {} replicator/machine/tests/fuzz/found/", path.display());
            return false;
        }
        slowest = slowest.max((began.elapsed(), case));
        case += 1;
        tried += 1;
    }
    let ((took, which), all) = (slowest, start.elapsed());
    println!(
        "fuzz {}: {tried} cases hold in {all:.1?} ({}); the slowest, {which}, took {took:.1?}",
        T::NAME,
        target.summary()
    );
    true
}

fn judge<T: Target>(target: &mut T, bytes: &[u8]) -> Result<(), String> {
    panic::catch_unwind(panic::AssertUnwindSafe(|| target.judge(bytes))).unwrap_or_else(|_| Err("it panics".to_owned()))
}

/// Where what fails is put.
fn folder() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fuzz");
    fs::create_dir_all(&folder).expect("the target folder can be written");
    folder
}

/// What once failed, and must hold now.
fn found(target: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/found");
    let files = fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let is_ours = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(target));
    let mut files: Vec<PathBuf> = files.filter(is_ours).collect();
    files.sort();
    files
}

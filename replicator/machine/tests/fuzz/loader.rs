//! The loader: whatever the bytes are, they are refused by a typed error, or they can be run; and then equally each time, counted or not.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use replicator_machine::{
    Command, Entry, Genesis, Halt, Limits, Machine, ModuleSource, engine_fingerprint, load,
    trial::{Step, Trial},
};
use replicator_types::{ClusterId, Digest, Lineage, ModuleHash, Position, Seed};
use sha2::Digest as _;

use crate::{Target, modules::Modules, random::Random};

/// Far more than any module of these takes: one that the load checks should have refused.
const TIME_MAX: Duration = Duration::from_secs(30);

/// A segment or a memory that doesn't fit.
const FITS_NOT: [&str; 2] = ["out of bounds", "more memory than it may have"];

const PAGES: u64 = 16;
const FUEL: u64 = 300_000;

/// The functions that the host calls, and how many parameters they have.
const CALLS: [(&str, usize); 7] = [
    ("rsm_input", 1),
    ("rsm_init", 2),
    ("rsm_apply", 2),
    ("rsm_query", 2),
    ("rsm_snapshot", 1),
    ("rsm_restore", 4),
    ("rsm_apply", 2),
];

pub(crate) struct Loader {
    modules: Modules,
    refused: u64,
    run: u64,
    begun: u64,
    bounded: u64,
}

impl Target for Loader {
    const NAME: &'static str = "loader";
    const CASES: u64 = 0; // compiling takes its time: only `make fuzz` tries modules

    fn new() -> Self {
        Self { modules: Modules::new(), refused: 0, run: 0, begun: 0, bounded: 0 }
    }

    fn make(&self, random: &mut Random) -> Vec<u8> {
        self.modules.make(random)
    }

    fn judge(&mut self, bytes: &[u8]) -> Result<(), String> {
        let start = Instant::now();
        let checked = load::check(bytes);
        if checked != load::check(bytes) {
            return Err("the checks differ from one time to the next".to_owned());
        }
        if checked.is_err() {
            self.refused += 1;
            return Ok(());
        }
        let trial = Trial::load(bytes).map_err(|error| format!("the checks passed it, and then: {error}"))?;
        for (counted, most, native) in trial.frames() {
            if native > most {
                return Err(format!(
                    "a frame takes {native} bytes of stack and counts as {counted}, which covers {most}"
                ));
            }
        }
        self.run_bare(&trial, &mut Random::of(bytes))?;
        self.run_whole(bytes)?;
        match start.elapsed() {
            took if took > TIME_MAX => Err(format!("it took {took:?}")),
            _ => Ok(()),
        }
    }

    fn summary(&self) -> String {
        let Self { refused, run, begun, bounded, .. } = self;
        format!("{refused} refused, {run} run, {bounded} of them out of fuel or stack, {begun} with a history")
    }
}

impl Loader {
    /// Two instances that are counted, and one that isn't.
    fn run_bare(&mut self, trial: &Trial, random: &mut Random) -> Result<(), String> {
        let mut calls: Vec<(&str, Vec<u32>)> = Vec::new();
        for _ in 0..=random.below(6) {
            let (name, arguments) = CALLS[random.below(CALLS.len())];
            calls.push((name, (0..arguments).map(|_| random.edgy()).collect()));
        }
        let counted = trial.run(true, &calls, PAGES, FUEL);
        if counted != trial.run(true, &calls, PAGES, FUEL) {
            return Err(format!("{calls:?} differ from one time to the next"));
        }
        let plain = trial.run(false, &calls, PAGES, FUEL);
        match (&counted, &plain) {
            (Ok(counted), Ok(plain)) => {
                self.run += 1;
                for (at, (counted, plain)) in counted.iter().zip(plain).enumerate() {
                    if counted.is_bounded() || plain.is_bounded() {
                        self.bounded += 1;
                        break;
                    }
                    if counted != plain {
                        return Err(format!("{:?}: {counted:?} when counted, else {plain:?}", &calls[..=at]));
                    }
                }
                Ok(())
            }
            (Err(counted), Err(plain)) if counted == plain && FITS_NOT.iter().any(|words| counted.contains(words)) => {
                Ok(())
            }
            (counted, plain) => Err(format!("{:?} when counted, else {:?}", outcome(counted), outcome(plain))),
        }
    }

    /// Two machines, if it describes itself.
    fn run_whole(&mut self, bytes: &[u8]) -> Result<(), String> {
        if load::describe(bytes).is_err() {
            return Ok(());
        }
        let first = history(bytes)?;
        self.begun += u64::from(first.is_some());
        if first == history(bytes)? { Ok(()) } else { Err("two machines differ".to_owned()) }
    }
}

fn outcome(steps: &Result<Vec<Step>, String>) -> Result<usize, &String> {
    steps.as_ref().map(Vec::len)
}

struct One(Bytes);

impl ModuleSource for One {
    fn module(&self, _: &ModuleHash) -> Option<Bytes> {
        Some(self.0.clone())
    }
}

/// What a machine comes to with some requests; nothing if it can't begin. Any other halt is a finding.
fn history(bytes: &[u8]) -> Result<Option<(Digest, Digest)>, String> {
    let limits = Limits {
        apply_fuel: FUEL,
        query_fuel: FUEL,
        memory_pages: PAGES as u32,
        request_bytes: 1_000,
        ..Limits::default()
    };
    let hash = ModuleHash(sha2::Sha256::digest(bytes).into());
    let mut machine = Machine::new(Arc::new(One(Bytes::copy_from_slice(bytes))));
    let genesis = Genesis {
        cluster: ClusterId([1; 16]),
        lineage: Lineage(1),
        module: hash,
        app_config: Bytes::new(),
        limits,
        engine: engine_fingerprint(),
    };
    let mut random = Random::of(bytes);
    let mut commands = vec![Command::Genesis(Box::new(genesis))];
    commands.extend((0..4).map(|_| Command::OpenSession { ttl_us: 0 }));
    commands.extend((0..4).map(|_| Command::Tick));
    for (index, command) in commands.into_iter().enumerate() {
        let seed = Seed(random.bytes(16).try_into().expect("16 bytes"));
        let entry = Entry { time_us: index as i64, seed, command };
        match machine.apply(Position::new(1, index as u64 + 1), &entry) {
            Ok(_) => {}
            Err(Halt::ModuleRefused(_)) if index == 0 => return Ok(None),
            Err(halt) => return Err(halt.to_string()),
        }
        let request = random.bytes(20);
        machine.query(None, &request).map_err(|halt| halt.to_string())?;
    }
    Ok(Some((machine.digest(), machine.state_hash())))
}

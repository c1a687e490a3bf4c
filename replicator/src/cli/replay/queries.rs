//! What the module is asked at the end of a replay.

use std::path::Path;

use bytes::Bytes;
use replicator_machine::{Machine, QueryOutcome};
use replicator_offline::OfflineError;

use super::source::unusable;
use crate::cli::{Failure, call::input::unhex, init};

/// The requests of `--query`, each with how it was written.
pub(super) fn read(queries: &[String], hex: bool) -> Result<Vec<(String, Bytes)>, Failure> {
    let request = |text: &String| {
        let bytes = match text.strip_prefix('@') {
            Some(path) => init::read(Path::new(path))?,
            None => text.as_bytes().to_vec(),
        };
        let bytes = if hex { unhex(&bytes).map_err(|error| Failure::Usage(error.to_string()))? } else { bytes };
        Ok((text.clone(), bytes.into()))
    };
    queries.iter().map(request).collect()
}

/// Asks them, in order.
pub(super) fn ask(machine: &mut Machine, queries: &[(String, Bytes)]) -> Result<Vec<(String, QueryOutcome)>, Failure> {
    let ask = |(text, request): &(String, Bytes)| {
        let outcome = machine.query(None, request).map_err(|halt| unusable(OfflineError::Query(halt)))?;
        Ok((text.clone(), outcome))
    };
    queries.iter().map(ask).collect()
}

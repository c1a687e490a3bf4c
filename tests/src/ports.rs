//! Free ports of 127.0.0.1.

use std::{
    collections::BTreeSet,
    hash::{BuildHasher, RandomState},
    net::TcpListener,
    sync::{Mutex, PoisonError},
};

use anyhow::{Result, ensure};

/// Outside the kernel's range for outgoing connections, so that a dead node's port stays free for it.
const PORTS: std::ops::Range<u16> = 10_240..32_000;

/// Given out by this process, and never again: a node that is down will want its port back.
static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// `count` ports that nobody listens on now, from a random place on.
///
/// # Errors
/// If fewer are free.
pub fn free_ports(count: usize) -> Result<Vec<u16>> {
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    let start = RandomState::new().hash_one(std::process::id());
    let span = u64::from(PORTS.end - PORTS.start);
    let candidates = (0..span).filter_map(|step| Some(PORTS.start + u16::try_from((start % span + step) % span).ok()?));
    let mut held = Vec::new();
    for port in candidates.filter(|port| !given.contains(port)).collect::<Vec<_>>() {
        if held.len() == count {
            break;
        }
        held.extend(TcpListener::bind(("127.0.0.1", port)).ok().map(|listener| (port, listener)));
    }
    ensure!(held.len() == count, "fewer than {count} ports are free on 127.0.0.1");
    let ports: Vec<u16> = held.into_iter().map(|(port, _)| port).collect();
    given.extend(&ports);
    Ok(ports)
}

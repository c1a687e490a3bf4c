//! End-to-end tests: clusters of real processes on this machine, killed, stopped, damaged and lied to.
//!
//! A test is a [`scenario`]: it gets a folder of its own, and when it fails, the folder with the nodes' logs is kept and printed
//! together with the command that runs that one test again. Nodes are the built programs, found in the target folder, on free
//! ports of 127.0.0.1; they die with the test, however that ends. One cluster runs at a time, also across test
//! processes: on two cores, several at once would hold up each other's elections.
//!
//! Tests wait for conditions ([`until`]) and never for a time to pass.

mod cluster;
mod command;
mod disks;
mod links;
mod load;
mod node;
mod old;
mod ports;
mod programs;
mod proxy;
mod residents;
mod scenario;
mod wait;
mod wire;
mod writes;

pub use cluster::Cluster;
pub use command::{Ran, prepared, run, run_with};
pub use disks::{Blackout, Mode, SmallDisk, number};
pub use forgetful::{Disk, PowerLoss, Unsynced};
pub use links::Links;
pub use load::{Load, advance, settle};
pub use node::NodeProcess;
pub use old::OldHistory;
pub use ports::free_ports;
pub use programs::{chat, module, python_environment, replicator, source, wrong_replicator};
pub use proxy::Proxy;
pub use residents::Residents;
pub use scenario::{Scenario, scenario};
pub use wait::{PATIENCE, until, until_within};
pub use wire::{Requests, last_sequence, metadata, reason, request, within};
pub use writes::Writes;

//! The machine from outside: hostile guests, rollback, sessions, time, queries, pushes, swaps and upgrades.

mod checkpoints;
mod corpus;
mod counter_c;
mod frames;
mod genesis;
mod harness;
mod hostile;
mod images;
mod load;
mod notes;
mod pushes;
mod queries;
mod rollback;
mod sessions;
mod swap;
mod upgrade;

//! The machine from outside: hostile guests, rollback, sessions, time, queries, pushes.

mod corpus;
mod frames;
mod genesis;
mod harness;
mod hostile;
mod images;
mod load;
mod pushes;
mod queries;
mod rollback;
mod sessions;

//! Every action and every refusal, as clients see them.

mod accounts;
mod changes;
mod hostile;
mod messages;
mod notices;
mod queries;
mod snapshot;
mod versions;
mod world;

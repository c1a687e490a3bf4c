//! What older versions of replicator wrote, and this one still reads (`docs/formats.md`).
//!
//! Version 1, of entries and of image heads alike, knew one module and one engine for all of a history, and no limits for a swap.

use bytes::Bytes;
use replicator_types::{
    ClusterId, Digest, Lineage, ModuleHash, Position, Seed,
    codec::{CodecError, Format, decode_body},
};
use serde::Deserialize;

use crate::{
    entry::{Command, Entry, Genesis},
    guest::GlobalBits,
    history::History,
    image::Head,
    limits::Limits,
    pushes::PushCursor,
};

#[derive(Deserialize)]
struct LimitsV1 {
    apply_fuel: u64,
    query_fuel: u64,
    memory_pages: u32,
    request_bytes: u32,
    output_bytes: u32,
    sessions: u32,
    session_window: u32,
    session_ttl_us: u64,
    session_ttl_max_us: u64,
    retained_push_bytes: u64,
    tick_us: u64,
}

impl From<LimitsV1> for Limits {
    fn from(limits: LimitsV1) -> Self {
        Self {
            apply_fuel: limits.apply_fuel,
            query_fuel: limits.query_fuel,
            memory_pages: limits.memory_pages,
            request_bytes: limits.request_bytes,
            output_bytes: limits.output_bytes,
            sessions: limits.sessions,
            session_window: limits.session_window,
            session_ttl_us: limits.session_ttl_us,
            session_ttl_max_us: limits.session_ttl_max_us,
            retained_push_bytes: limits.retained_push_bytes,
            tick_us: limits.tick_us,
            // Not the defaults, which may change: these are what such a history has for ever.
            snapshot_fuel: 1_000_000_000,
            restore_fuel: 1_000_000_000,
            chunk_bytes: 256 << 10,
        }
    }
}

#[derive(Deserialize)]
struct GenesisV1 {
    cluster: ClusterId,
    lineage: Lineage,
    module: ModuleHash,
    app_config: Bytes,
    limits: LimitsV1,
    engine: String,
}

impl From<GenesisV1> for Genesis {
    fn from(genesis: GenesisV1) -> Self {
        let GenesisV1 { cluster, lineage, module, app_config, limits, engine } = genesis;
        Self { cluster, lineage, module, app_config, limits: limits.into(), engine }
    }
}

/// The one command that was another.
#[derive(Deserialize)]
enum CommandV1 {
    Genesis(Box<GenesisV1>),
}

#[derive(Deserialize)]
struct EntryV1 {
    time_us: i64,
    seed: Seed,
    command: CommandV1,
}

/// An entry of version 1.
pub(crate) fn entry(body: &[u8]) -> Result<Entry, CodecError> {
    let damaged = match decode_body(Entry::WHAT, body) {
        Ok(EntryV1 { time_us, seed, command: CommandV1::Genesis(genesis) }) => {
            return Ok(Entry { time_us, seed, command: Command::Genesis(Box::new((*genesis).into())) });
        }
        Err(error) => error,
    };
    match decode_body(Entry::WHAT, body)? {
        Entry { command: Command::Genesis(_), .. } => Err(damaged),
        entry => Ok(entry),
    }
}

#[derive(Deserialize)]
struct HeadV1 {
    position: Position,
    digest: Digest,
    genesis: GenesisV1,
    lineages: Vec<Lineage>,
    time_us: i64,
    clock_us: u64,
    ticked_at_us: i64,
    memory_bytes: u64,
    globals: Vec<GlobalBits>,
    input: u64,
    sessions: u64,
    pushes: u64,
    trimmed: Option<PushCursor>,
}

/// The head of an image of version 1.
pub(crate) fn head(body: &[u8]) -> Result<Head, CodecError> {
    let head: HeadV1 = decode_body(Head::WHAT, body)?;
    let genesis = Genesis::from(head.genesis);
    Ok(Head {
        position: head.position,
        digest: head.digest,
        history: History::begin(&genesis),
        genesis,
        lineages: head.lineages,
        time_us: head.time_us,
        clock_us: head.clock_us,
        ticked_at_us: head.ticked_at_us,
        memory_bytes: head.memory_bytes,
        globals: head.globals,
        input: head.input,
        sessions: head.sessions,
        pushes: head.pushes,
        trimmed: head.trimmed,
    })
}

#[cfg(test)]
mod tests {
    use replicator_types::{LogIndex, codec};

    use super::*;

    /// A genesis entry's bytes from the cluster on, as version 1 wrote them.
    fn genesis() -> Vec<u8> {
        let limits = [11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21];
        [&[1; 16][..], &[7], &[2; 32], &[2, b'o', b'k'], &limits, &[3, b'o', b'l', b'd']].concat()
    }

    fn expected() -> Genesis {
        Genesis {
            cluster: ClusterId([1; 16]),
            lineage: Lineage(7),
            module: ModuleHash([2; 32]),
            app_config: Bytes::from_static(b"ok"),
            limits: Limits {
                apply_fuel: 11,
                query_fuel: 12,
                memory_pages: 13,
                request_bytes: 14,
                output_bytes: 15,
                sessions: 16,
                session_window: 17,
                session_ttl_us: 18,
                session_ttl_max_us: 19,
                retained_push_bytes: 20,
                tick_us: 21,
                snapshot_fuel: 1_000_000_000,
                restore_fuel: 1_000_000_000,
                chunk_bytes: 262_144,
            },
            engine: "old".to_owned(),
        }
    }

    #[test]
    fn entries_of_version_1_are_read() {
        let bytes = [&[1, 10][..], &[9; 16], &[0], &genesis()].concat();
        let command = Command::Genesis(Box::new(expected()));
        let genesis = Entry { time_us: 5, seed: Seed([9; 16]), command };
        assert_eq!(codec::decode::<Entry>(&bytes).expect("it is a genesis"), genesis);
        assert_eq!(codec::decode::<Entry>(&codec::encode(&genesis)).expect("so is this"), genesis);
        let tick = [&[1, 10][..], &[9; 16], &[5]].concat();
        let expected = Entry { command: Command::Tick, ..genesis };
        assert_eq!(codec::decode::<Entry>(&tick).expect("it is a tick"), expected);
        for cut in 1..bytes.len() {
            assert!(codec::decode::<Entry>(&bytes[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn heads_of_version_1_are_read() {
        let bytes = [&[1, 3, 4, 5][..], &genesis(), &[1, 7, 12, 6, 14, 8, 2, 30, 31, 9, 0, 0, 1, 2, 3]].concat();
        let head: Head = codec::decode(&bytes).expect("it is a head");
        assert_eq!((head.position, head.digest, head.genesis), (Position::new(3, 4), Digest(5), expected()));
        assert_eq!((head.time_us, head.clock_us, head.ticked_at_us), (6, 6, 7));
        assert_eq!((head.memory_bytes, head.globals, head.input), (8, vec![30, 31], 9));
        assert_eq!(head.trimmed, Some(PushCursor { index: LogIndex(2), ordinal: 3 }));
        assert_eq!(head.history, History::begin(&expected()));
    }
}

//! Generated types and services of `replicator.v1` and `chat.v1`. The .proto files beside this crate are the reference.
//!
//! The chat module is built for wasm without the `grpc` feature, and then sees `chat.v1` alone.
#![allow(missing_docs, unreachable_pub, clippy::all)]

/// The chat application's messages.
pub mod chat {
    /// Version 1.
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/chat.v1.rs"));
    }
}

/// The services of a node.
#[cfg(feature = "grpc")]
pub mod replicator {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("replicator.v1");

        /// The encoded descriptors, for reflection.
        pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/replicator.bin"));
    }
}

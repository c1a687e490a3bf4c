//! Compiles the .proto files without protoc.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(env::var("OUT_DIR")?);
    println!("cargo:rerun-if-changed=replicator");
    println!("cargo:rerun-if-changed=chat");

    let chat = protox::compile([root.join("chat/v1/chat.proto")], [&root])?;
    tonic_prost_build::configure().build_client(false).build_server(false).compile_fds(chat)?;

    if env::var_os("CARGO_FEATURE_GRPC").is_some() {
        let files = ["client", "admin", "peer"].map(|name| root.join(format!("replicator/v1/{name}.proto")));
        let replicator = protox::compile(files, [&root])?;
        // `file_descriptor_set_path` writes nothing under `compile_fds`.
        fs::write(out.join("replicator.bin"), replicator.encode_to_vec())?;
        tonic_prost_build::configure().bytes(".").compile_fds(replicator)?;
    }
    Ok(())
}

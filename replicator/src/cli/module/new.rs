//! `replicator module new`: makes a crate for a module of one's own.
//!
//! The SDK is in no registry. So that the crate builds anywhere and without a network, a copy of it is laid into the new folder: this program
//! carries its source. Whoever works in a checkout gives `--sdk`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::Args;
use serde_json::json;

use super::super::{
    Failure, Output,
    output::{self, Format},
};

#[derive(Debug, Args)]
#[command(after_help = "Example:
  replicator module new my-app
  cd my-app
  cargo test
  cargo build --release --target wasm32-unknown-unknown
  replicator demo --module target/wasm32-unknown-unknown/release/my_app.wasm")]
pub(in crate::cli) struct NewArgs {
    /// The folder to make. Its last part names the crate and the application: a letter, then a-z, 0-9, - and _
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
    /// Use the SDK in this folder, such as statemachine/sdk of a checkout. Default: lay a copy into the new folder
    #[arg(long, value_name = "DIR")]
    sdk: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

const NAME_BYTES_MAX: usize = 64;
/// What cargo takes for no package, or what would be in the way of another crate.
const TAKEN: [&str; 9] = ["test", "core", "std", "alloc", "proc_macro", "proc-macro", "statemachine", "build", "deps"];
#[rustfmt::skip]
const KEYWORDS: [&str; 50] = [
    "abstract", "as", "async", "await", "become", "box", "break", "const", "continue", "crate", "do", "dyn", "else", "enum", "extern", "false",
    "final", "fn", "for", "gen", "if", "impl", "in", "let", "loop", "macro", "match", "mod", "move", "mut", "override", "priv", "pub", "ref",
    "return", "self", "static", "struct", "super", "trait", "true", "try", "type", "typeof", "unsafe", "unsized", "use", "virtual", "where",
    "while",
];

const CARGO_TOML: &str = include_str!("template/Cargo.toml.in");
const LIB: &str = include_str!("template/lib.rs.in");
const README: &str = include_str!("template/README.md.in");
const GITIGNORE: &str = include_str!("template/gitignore");
const CLIPPY_TOML: &str = include_str!("../../../../statemachine/examples/clippy.toml");
const SDK_CARGO_TOML: &str = include_str!("template/sdk-Cargo.toml.in");
const LICENSES: [(&str, &str); 2] = [
    ("LICENSE-APACHE", include_str!("../../../../LICENSE-APACHE")),
    ("LICENSE-MIT", include_str!("../../../../LICENSE-MIT")),
];

/// The files of the SDK, by their names in its folder `src`.
macro_rules! sdk {
    ($($file:literal),*) => {
        [$(($file, include_str!(concat!("../../../../statemachine/sdk/src/", $file)))),*]
    };
}

const SDK: [(&str, &str); 12] = sdk!(
    "abi.rs",
    "context.rs",
    "describe.rs",
    "export.rs",
    "guest.rs",
    "lib.rs",
    "message.rs",
    "output.rs",
    "sha256.rs",
    "slot.rs",
    "stream.rs",
    "testing.rs"
);

pub(super) fn run(args: NewArgs) -> Result<(), Failure> {
    let NewArgs { folder, sdk, output } = args;
    let name = name(&folder).map_err(Failure::Usage)?;
    let sdk = sdk.map(|sdk| checked_sdk(&sdk)).transpose()?;
    match fs::create_dir(&folder) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let told = format!("{} is there already; choose another name, or remove it first", folder.display());
            return Err(Failure::Usage(told));
        }
        Err(error) => return Err(anyhow::Error::new(error).context(format!("can't make {}", folder.display())).into()),
    }
    let wasm = format!("target/wasm32-unknown-unknown/release/{}.wasm", name.replace('-', "_"));
    if let Err(error) = fill(&folder, &name, &wasm, sdk.as_deref()) {
        // The folder is ours, and half of a crate is of no use.
        let _ = fs::remove_dir_all(&folder);
        return Err(error.into());
    }
    let next = [
        format!("cd {}", folder.display()),
        "cargo test".to_owned(),
        "cargo build --release --target wasm32-unknown-unknown".to_owned(),
        format!("replicator demo --module {wasm}"),
    ];
    match output.output {
        Format::Json => output::print_json(&json!({ "name": name, "folder": folder, "sdk": sdk, "next": next }))?,
        Format::Table => println!(
            "made {}: a module that counts, with its tests{}

  {}
  {}
  {}    # once before: rustup target add wasm32-unknown-unknown
  {}

src/lib.rs is where you go on.",
            folder.display(),
            if sdk.is_some() { "" } else { " and a copy of the SDK" },
            next[0],
            next[1],
            next[2],
            next[3],
        ),
    }
    Ok(())
}

/// The name that a folder gives to its crate.
fn name(folder: &Path) -> Result<String, String> {
    let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
    if !name.starts_with(|c: char| c.is_ascii_lowercase()) || !name.chars().all(good) || name.len() > NAME_BYTES_MAX {
        let shown = if name.is_empty() { folder.display().to_string() } else { name.to_owned() };
        return Err(format!(
            "{shown:?} can't name a module; use a letter, then letters, digits, - and _, all lower case, as in my-app"
        ));
    }
    if TAKEN.contains(&name) || KEYWORDS.contains(&name) {
        return Err(format!("{name} means something to Rust or cargo already; choose another name, as my-{name}"));
    }
    Ok(name.to_owned())
}

/// The whole path of an SDK that is there.
fn checked_sdk(sdk: &Path) -> Result<PathBuf, Failure> {
    let manifest = fs::read_to_string(sdk.join("Cargo.toml")).unwrap_or_default();
    let manifest: toml::Table = manifest.parse().unwrap_or_default();
    let package = manifest.get("package").and_then(|package| package.get("name")).and_then(toml::Value::as_str);
    if package != Some("statemachine") {
        return Err(Failure::Usage(format!(
            "{} is not the SDK; give its folder, statemachine/sdk in a checkout, or leave out --sdk to get a copy",
            sdk.display()
        )));
    }
    Ok(sdk.canonicalize().with_context(|| format!("can't find {}", sdk.display()))?)
}

/// Writes the files into the new folder.
fn fill(folder: &Path, name: &str, wasm: &str, sdk: Option<&Path>) -> anyhow::Result<()> {
    let path = sdk.map_or_else(|| "statemachine".to_owned(), |sdk| sdk.display().to_string());
    // A JSON string is a TOML one too, whatever the path holds.
    let path = serde_json::Value::from(path).to_string();
    let filled = |template: &str| {
        let filled = template.replace("{name}", name).replace("{wasm}", wasm).replace("{sdk}", &path);
        filled.replace("{version}", env!("CARGO_PKG_VERSION"))
    };
    fs::create_dir(folder.join("src"))?;
    write(&folder.join("Cargo.toml"), &filled(CARGO_TOML))?;
    write(&folder.join("README.md"), &filled(README))?;
    write(&folder.join("clippy.toml"), CLIPPY_TOML)?;
    write(&folder.join(".gitignore"), GITIGNORE)?;
    write(&folder.join("src/lib.rs"), &filled(LIB))?;
    if sdk.is_none() {
        let copy = folder.join("statemachine");
        fs::create_dir_all(copy.join("src"))?;
        write(&copy.join("Cargo.toml"), &filled(SDK_CARGO_TOML))?;
        for (file, content) in LICENSES {
            write(&copy.join(file), content)?;
        }
        for (file, content) in SDK {
            write(&copy.join("src").join(file), content)?;
        }
    }
    Ok(())
}

fn write(path: &Path, content: &str) -> anyhow::Result<()> {
    fs::write(path, content).with_context(|| format!("can't write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_file_of_the_sdk_is_carried() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../statemachine/sdk/src");
        let there = fs::read_dir(source).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
        assert_eq!(there.collect::<BTreeSet<_>>(), SDK.iter().map(|(file, _)| (*file).to_owned()).collect());
    }

    #[test]
    fn the_sdk_depends_on_nothing() {
        let manifest = include_str!("../../../../statemachine/sdk/Cargo.toml").parse::<toml::Table>().unwrap();
        assert!(!manifest.contains_key("dependencies"), "it couldn't be copied");
    }

    #[test]
    fn names_are_those_that_cargo_and_a_cluster_take() {
        for good in ["my-app", "/tmp/a", "a1_b-c", &"x".repeat(64)] {
            assert!(name(Path::new(good)).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "/", "1a", "-a", "My-App", "a.b", "a b", "ä", "a/..", &"x".repeat(65)] {
            assert!(name(Path::new(bad)).unwrap_err().contains("can't name a module"), "{bad:?}");
        }
        for taken in ["test", "self", "async", "statemachine", "proc-macro"] {
            assert!(name(Path::new(taken)).unwrap_err().contains("means something"), "{taken}");
        }
    }

    #[test]
    fn what_is_no_sdk_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("Cargo.toml"), "[package]\nname = \"another\"").unwrap();
        for path in [folder.path(), Path::new("/nowhere")] {
            let refused = checked_sdk(path);
            assert!(matches!(refused, Err(Failure::Usage(told)) if told.contains("leave out --sdk")));
        }
    }
}

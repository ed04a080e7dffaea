//! Depending on one layer stays light.

use std::process::Command;

/// The crates below `package`, itself left out.
fn below(package: &str) -> Vec<String> {
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--package", package, "--edges", "normal"])
        .args(["--prefix", "none", "--format", "{lib}", "--locked"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    let errors = String::from_utf8_lossy(&tree.stderr);
    assert!(tree.status.success(), "cargo tree: {errors}");
    let own = package.replace('-', "_");
    let mut crates: Vec<_> = String::from_utf8_lossy(&tree.stdout)
        .lines()
        .map(|line| line.trim_end_matches(" (*)").to_owned())
        .filter(|name| !name.is_empty() && *name != own)
        .collect();
    crates.sort();
    crates.dedup();
    assert!(crates.len() > 3, "{package} depends on next to nothing?");
    crates
}

const LAYERS: [&str; 6] = [
    "tollway-core",
    "tollway-idempotency",
    "tollway-limit",
    "tollway-pool",
    "tollway-retry",
    "tollway-timeout",
];

#[test]
fn a_layer_brings_in_no_other_layer() {
    for layer in LAYERS {
        let others = below(layer)
            .into_iter()
            .filter(|name| name.starts_with("tollway") && name != "tollway_core");
        assert_eq!(others.collect::<Vec<_>>(), [""; 0], "below {layer}");
    }
}

#[test]
fn only_the_pool_brings_in_hyper_or_tls() {
    for layer in LAYERS.into_iter().filter(|layer| *layer != "tollway-pool") {
        let heavy = below(layer).into_iter().filter(|name| {
            ["hyper", "h2", "rustls", "ring", "axum", "tower_http"]
                .iter()
                .any(|start| name.starts_with(start))
        });
        assert_eq!(heavy.collect::<Vec<_>>(), [""; 0], "below {layer}");
    }
}

#[test]
fn the_pool_does_bring_in_hyper_so_the_listing_works() {
    let crates = below("tollway-pool");
    assert!(crates.iter().any(|name| name == "hyper"), "{crates:?}");
}

/// `cargo build` on the oldest Rust that is promised refuses the whole tree
/// because of one crate in it.
#[test]
fn no_crate_wants_a_newer_rust_than_is_promised() {
    let cargo = |arguments: &[&str]| {
        let run = Command::new(env!("CARGO"))
            .args(arguments)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .expect("cargo runs");
        let errors = String::from_utf8_lossy(&run.stderr);
        assert!(run.status.success(), "cargo {arguments:?}: {errors}");
        String::from_utf8(run.stdout).expect("UTF-8")
    };
    let version = cargo(&["--version", "--verbose"]);
    let host = version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .expect("a host");
    let tree = ["metadata", "--format-version", "1", "--all-features"];
    // Nothing is fetched that isn't needed here, and what is needed mostly is here
    // already.
    let here = ["--locked", "--filter-platform", host];
    let tree: serde_json::Value =
        serde_json::from_str(&cargo(&[&tree[..], &here].concat())).expect("JSON");

    let number = |rust: &str| -> Vec<u32> {
        let parts = rust.split('.').map(|part| part.parse().expect("a number"));
        parts.take(2).collect()
    };
    let promised = number(env!("CARGO_PKG_RUST_VERSION"));
    let packages = tree["packages"].as_array().expect("packages");
    assert!(packages.len() > 100, "the listing works");
    for package in packages {
        if let Some(rust) = package["rust_version"].as_str() {
            assert!(number(rust) <= promised, "{} wants {rust}", package["id"]);
        }
    }
}

//! Depending on one layer stays light.

use std::process::Command;

/// The crates below `package`, itself left out.
fn below(package: &str) -> Vec<String> {
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--package", package, "--edges", "normal"])
        .args(["--prefix", "none", "--format", "{lib}", "--offline"])
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

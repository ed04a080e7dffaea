//! The README tells the truth of today. Its Rust code is compiled by the
//! documentation tests of this package.

const README: &str = include_str!("../../README.md");

/// The fenced blocks of a language.
fn blocks(language: &str) -> Vec<&'static str> {
    let open = format!("```{language}");
    README
        .split(&open)
        .skip(1)
        .filter_map(|rest| rest.split_once("```").map(|(block, _)| block))
        .collect()
}

#[test]
fn the_install_snippet_names_the_workspaces_version() {
    let toml = blocks("toml");
    let expected = format!("tollway = \"{}\"", env!("CARGO_PKG_VERSION"));
    assert!(
        toml.iter().any(|block| block.contains(&expected)),
        "README.md has no `{expected}` in {toml:?}"
    );
}

#[test]
fn the_minimum_rust_version_is_the_workspaces() {
    let version = env!("CARGO_PKG_RUST_VERSION");
    assert!(
        README.contains(&format!("Rust {version} or later")),
        "{version}"
    );
}

#[test]
fn composing_takes_less_than_15_lines() {
    let rust = blocks("rust");
    assert!(rust.len() >= 3);
    for block in rust {
        let shown = block.lines().skip(1).filter(|line| !line.starts_with("# "));
        let shown = shown.filter(|line| !line.is_empty()).count();
        assert!(shown < 15, "{shown} lines:\n{block}");
    }
}

#[test]
fn every_file_that_is_linked_exists() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    for link in README.split("](").skip(1) {
        let Some((target, _)) = link.split_once(')') else {
            continue;
        };
        if !target.starts_with("http") {
            let path = std::path::Path::new(root).join(target);
            assert!(path.exists(), "README.md links {target}");
        }
    }
}

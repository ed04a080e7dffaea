//! Counting instructions where the machine doesn't let us read its counter.

use std::path::PathBuf;
use std::process::Command;
use std::{env, fs, process};

/// The argument with which [`callgrind`] starts this program again.
const COUNT: &str = "--count-instructions";

/// The path of [`counted`].
const COUNTED: &str = "tollway_benches::callgrind::counted";

/// Whether this program is to count, for the one that started it.
#[must_use]
pub fn told_to_count() -> bool {
    env::args().any(|argument| argument == COUNT)
}

/// Runs `work`, in a place that valgrind recognises.
#[inline(never)]
pub fn counted(work: impl FnOnce()) {
    work();
    // Keeps the call above from being a tail call.
    std::hint::black_box(());
}

/// Starts this program again under valgrind, [told to count](told_to_count), and
/// hands back the instructions that each call of [`counted`] took there, in
/// their order.
///
/// `None` where there is no valgrind, or it fails.
#[must_use]
pub(crate) fn callgrind() -> Option<Vec<f64>> {
    let program = env::current_exe().ok()?;
    let out = env::temp_dir().join(format!("tollway-callgrind-{}", process::id()));
    let ran = Command::new("valgrind")
        .args(["--tool=callgrind", "--quiet"])
        .arg(format!("--zero-before={COUNTED}"))
        .arg(format!("--dump-after={COUNTED}"))
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(program)
        .arg(COUNT)
        .output();
    let mut counts = Vec::new();
    while let Some(count) = total(&numbered(&out, counts.len() + 1)) {
        counts.push(count);
    }
    // What comes after the last dump.
    let _ = fs::remove_file(&out);
    ran.ok()
        .filter(|output| output.status.success() && !counts.is_empty())
        .map(|_| counts)
}

fn numbered(out: &std::path::Path, number: usize) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

/// The sum of a dump, which is removed.
fn total(dump: &PathBuf) -> Option<f64> {
    let text = fs::read_to_string(dump).ok()?;
    let _ = fs::remove_file(dump);
    let line = text.lines().find_map(|line| {
        line.strip_prefix("totals:")
            .or(line.strip_prefix("summary:"))
    })?;
    line.trim().parse().ok()
}

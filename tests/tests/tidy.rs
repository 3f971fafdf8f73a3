//! The house rules that no compiler checks: who may import whom, one job per file, what the README promises exists.

#![expect(
    clippy::unwrap_used,
    reason = "a test stops at what it cannot read; its helpers are not #[test] functions, which clippy.toml lets off"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};

/// Who must never depend on whom, directly. The table of the architecture page.
const BANS: &[(&str, &[&str])] = &[
    ("ledger", &["tokio", "rdkafka", "clickhouse", "axum", "hyper", "serde_json", "config", "tracing"]),
    ("schemas", &["tokio", "rdkafka", "clickhouse", "axum", "hyper", "runtime", "stream", "sql"]),
    ("stream", &["sql", "clickhouse", "axum"]),
    ("sql", &["schemas", "stream", "axum"]),
    ("runtime", &["ledger", "schemas", "stream", "sql", "gateway", "fold", "billing", "embedded"]),
    ("gateway", &["sql", "fold", "billing", "clickhouse"]),
    ("fold", &["gateway", "axum"]),
    ("billing", &["gateway", "fold"]),
];

/// Who must not even reach whom through others.
const UNREACHABLE: &[(&str, &[&str])] = &[
    ("ledger", &["tokio", "rdkafka", "clickhouse", "axum", "hyper", "serde_json"]),
    ("schemas", &["tokio", "rdkafka", "clickhouse", "axum", "hyper"]),
    ("gateway", &["sql", "fold", "billing", "clickhouse"]),
];

/// What the pure crates must not write: clocks, chance, environment, files, sockets.
const IMPURE: &[&str] = &[
    "SystemTime",
    "Instant::now",
    "Utc::now",
    "Local::now",
    "new_v4",
    "now_v7",
    "std::env",
    "std::fs",
    "std::net",
    "std::process",
    "std::thread",
    "println!",
];

const LONGEST_FILE: usize = 600;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn metadata() -> Metadata {
    MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .other_options(["--offline".to_owned(), "--locked".to_owned()])
        .exec()
        .unwrap()
}

/// The crates that each package of the graph needs to be built, tests of its own aside.
fn edges(metadata: &Metadata) -> BTreeMap<String, BTreeSet<String>> {
    let name = |id: &cargo_metadata::PackageId| metadata[id].name.to_string();
    let nodes = &metadata.resolve.as_ref().unwrap().nodes;
    nodes
        .iter()
        .map(|node| {
            let needed = node.deps.iter().filter(|d| d.dep_kinds.iter().any(|k| k.kind != DependencyKind::Development));
            (name(&node.id), needed.map(|d| name(&d.pkg)).collect())
        })
        .collect()
}

/// Every crate that this one reaches when it is built alone: the features that other members switch on do not count.
fn reached_by(package: &str) -> BTreeSet<String> {
    let tree = std::process::Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--locked", "--target=all", "--edges=normal,build", "--prefix=none", "--package"])
        .arg(package)
        .current_dir(root())
        .output()
        .unwrap();
    assert!(tree.status.success(), "cargo tree: {}", String::from_utf8_lossy(&tree.stderr));
    let lines = String::from_utf8(tree.stdout).unwrap();
    lines.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

#[test]
fn crates_import_only_what_they_may() {
    let metadata = metadata();
    let edges = edges(&metadata);
    let mut broken = Vec::new();
    for (from, banned) in BANS {
        let direct = edges.get(*from).unwrap_or_else(|| panic!("no crate {from}"));
        broken.extend(banned.iter().filter(|to| direct.contains(**to)).map(|to| format!("{from} imports {to}")));
    }
    for (from, banned) in UNREACHABLE {
        let reached = reached_by(from);
        broken.extend(banned.iter().filter(|to| reached.contains(**to)).map(|to| format!("{from} reaches {to}")));
    }
    assert!(broken.is_empty(), "forbidden edges: {broken:#?}");
}

#[test]
fn versions_and_lints_are_written_in_one_place() {
    let mut broken = Vec::new();
    for package in metadata().workspace_packages() {
        let manifest = std::fs::read_to_string(&package.manifest_path).unwrap();
        if !manifest.contains("[lints]\nworkspace = true") {
            broken.push(format!("{} does not take the workspace's lints", package.name));
        }
        let own = |line: &&str| line.contains(" = \"") && line.contains("version") || line.contains("= \"1");
        broken.extend(
            manifest.lines().filter(own).map(|line| format!("{} has a version of its own: {line}", package.name)),
        );
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

/// The crates and versions that a package needs by a lock file, if it is in it.
fn locked(lock: &str, package: &str) -> Option<Vec<String>> {
    let of = lock.split("[[package]]").find(|text| text.contains(&format!("\nname = \"{package}\"\n")))?;
    Some(of.lines().filter_map(|line| Some(line.strip_prefix(" \"")?.strip_suffix("\",")?.to_owned())).collect())
}

/// The fuzz targets are a workspace of their own, which nothing here builds.
#[test]
fn the_fuzz_targets_lock_what_the_crates_need() {
    let (metadata, mut broken) = (metadata(), Vec::new());
    let lock = std::fs::read_to_string(root().join("services/gateway/fuzz/Cargo.lock")).unwrap();
    assert!(locked(&lock, "gateway").is_some_and(|needs| needs.iter().any(|need| need == "tokio")));
    for package in metadata.workspace_packages() {
        let Some(there) = locked(&lock, &package.name) else { continue };
        let needed = package.dependencies.iter().filter(|need| need.kind != DependencyKind::Development);
        for need in needed.filter(|need| !need.optional) {
            if !there.iter().any(|there| there.split(' ').next() == Some(need.name.as_str())) {
                broken.push(format!("{} needs {}", package.name, need.name));
            }
        }
    }
    assert!(
        broken.is_empty(),
        "services/gateway/fuzz/Cargo.lock is old, run `cargo update --workspace` there: {broken:?}"
    );
}

/// Every file below `folder` with one of these endings, build output and fetched tools aside.
fn files(folder: &Path, endings: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                found.extend(files(&path, endings));
            }
        } else if endings.iter().any(|ending| name.ends_with(ending)) {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[test]
fn every_file_says_its_one_job_and_is_short() {
    let mut broken = Vec::new();
    for file in files(&root(), &[".rs"]) {
        let text = std::fs::read_to_string(&file).unwrap();
        let first = text.lines().next().unwrap_or_default();
        if first.strip_prefix("//! ").is_none_or(|job| job.len() < 10) {
            broken.push(format!("{}: the first line must say the file's one job, after //!", file.display()));
        }
        let lines = text.lines().count();
        if lines > LONGEST_FILE {
            broken.push(format!("{}: {lines} lines, at most {LONGEST_FILE}: split it by purpose", file.display()));
        }
        let name = file.file_stem().unwrap().to_string_lossy().into_owned();
        if ["utils", "util", "common", "helpers", "misc", "core"].contains(&name.as_str()) {
            broken.push(format!("{}: name it by what it is for", file.display()));
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn the_pure_crates_are_pure() {
    let mut broken = Vec::new();
    for folder in ["services/ledger/src", "schemas/src"] {
        for file in files(&root().join(folder), &[".rs"]) {
            let text = std::fs::read_to_string(&file).unwrap();
            // Tests may do as they like; by convention they come last in a file, or are a file of their own.
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            if file.ends_with("tests.rs") {
                continue;
            }
            let code: String = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
            broken.extend(
                IMPURE.iter().filter(|word| code.contains(**word)).map(|word| format!("{}: {word}", file.display())),
            );
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

/// The lines inside the fenced blocks of a Markdown file that are commands.
fn commands(markdown: &str) -> Vec<String> {
    let mut inside = false;
    let mut found = Vec::new();
    for line in markdown.lines() {
        if line.starts_with("```") {
            inside = !inside && ["```sh", "```bash", "```console"].contains(&line.trim());
        } else if inside {
            found.push(line.trim().trim_start_matches("$ ").to_owned());
        }
    }
    found
}

#[test]
fn the_commands_of_the_pages_exist() {
    let root = root();
    let makefile = std::fs::read_to_string(root.join("Makefile")).unwrap();
    // A subcommand that clap skips is planned only: a page must not tell people to type it.
    let roles = std::fs::read_to_string(root.join("services/tollgate/src/cli.rs")).unwrap().to_lowercase();
    let roles = roles.replace("#[command(skip)]\n    ", "planned: ");
    let mut broken = Vec::new();
    for page in ["README.md", "CONTRIBUTING.md"] {
        let text = std::fs::read_to_string(root.join(page)).unwrap();
        for command in commands(&text) {
            let mut words = command.split_whitespace();
            match (words.next(), words.next()) {
                (Some("make"), Some(target)) if !makefile.contains(&format!("\n{target}:")) => {
                    broken.push(format!("{page}: {command}: no such make target"));
                }
                (Some(program), Some(role))
                    if program.ends_with("tollgate") && !roles.contains(&format!("    {}(", role.replace('-', ""))) =>
                {
                    broken.push(format!("{page}: {command}: no such role"));
                }
                (Some(script), _)
                    if (script.starts_with("deploy/") || script.starts_with(".ci/"))
                        && !root.join(script).is_file() =>
                {
                    broken.push(format!("{page}: {command}: no such file"));
                }
                _ => {}
            }
        }
        // Links to files of the repository.
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = link.split('#').next().unwrap_or_default();
            if !path.is_empty() && !path.contains("://") && !root.join(path).exists() {
                broken.push(format!("{page} links to {link}, which does not exist"));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

//! Settings from one TOML file and the environment, with all that is wrong with them said at once.
//!
//! The binary composes one struct of all sections and calls [`load`]. A variable `TOLLGATE__SECTION__KEY` wins over the
//! file's `key` in `[section]`; deeper tables have more `__`. Variables are read as what the setting is: `true`, a number,
//! a string, or a list with commas between. An empty variable counts as unset.

mod errors;
mod reader;
mod values;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::Path;

use ::config::{Config, Environment, File, FileFormat, Map, Source, Value, ValueKind};
use serde::de::DeserializeOwned;

pub use errors::{ConfigErrors, Problem};
use reader::{Reader, Wrong};
pub use values::{Secret, byte_size, duration};

/// The prefix of every variable that is a setting.
pub const PREFIX: &str = "TOLLGATE";
const SEPARATOR: &str = "__";
const ENVIRONMENT: &str = "the environment";

/// Checks that one field alone cannot make: between fields, or of a value's range.
pub trait Validate {
    /// Everything that is wrong, each in one sentence that names the setting and says what to do. Never a secret's value.
    fn validate(&self) -> Vec<String>;
}

/// Puts a section's name before what [`Validate::validate`] said of it.
pub fn within(section: &str, problems: Vec<String>) -> Vec<String> {
    problems.into_iter().map(|problem| format!("[{section}] {problem}")).collect()
}

/// Reads `file` (none: only variables and defaults) and this process's environment.
///
/// # Errors
/// Everything that is wrong, at once: the file, unknown sections and keys, wrong types, and what
/// [`Validate`] found when the rest is right.
pub fn load<T: DeserializeOwned + Validate>(file: Option<&Path>) -> Result<T, ConfigErrors> {
    load_from(file, std::env::vars_os())
}

/// [`load`] with other variables than this process's.
///
/// # Errors
/// See [`load`].
pub fn load_from<T: DeserializeOwned + Validate>(
    file: Option<&Path>,
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<T, ConfigErrors> {
    let mut problems = Vec::new();
    let tree = merged(file, variables, &mut problems);
    let settings = read(tree, &mut problems);
    if let Some(settings) = &settings {
        let said = T::validate(settings).into_iter();
        problems.extend(said.map(Problem::of_rule));
    }
    match settings {
        Some(settings) if problems.is_empty() => Ok(settings),
        _ => Err(ConfigErrors::new(file, problems)),
    }
}

/// The file with the variables over it.
fn merged(
    file: Option<&Path>,
    variables: impl IntoIterator<Item = (OsString, OsString)>,
    problems: &mut Vec<Problem>,
) -> Map<String, Value> {
    let environment = Environment::with_prefix(PREFIX)
        .separator(SEPARATOR)
        .ignore_empty(true)
        .source(Some(settings_among(variables, problems)));
    let mut builder = Config::builder();
    if let Some(path) = file {
        match std::fs::read_to_string(path) {
            Ok(text) => match Config::builder().add_source(File::from_str(&text, FileFormat::Toml)).build() {
                Ok(parsed) => builder = builder.add_source(parsed),
                Err(error) => problems.push(Problem::of_syntax(&error)),
            },
            Err(error) => problems.push(Problem::of_file(&error)),
        }
    }
    let collected = builder.add_source(environment).build().and_then(|config| config.collect());
    collected.unwrap_or_else(|error| {
        problems.push(Problem::of_rule(format!("the settings could not be put together: {error}")));
        Map::new()
    })
}

/// Picks the variables that are settings; names those that look like one and are none.
fn settings_among(
    variables: impl IntoIterator<Item = (OsString, OsString)>,
    problems: &mut Vec<Problem>,
) -> Map<String, String> {
    let mut settings = Map::new();
    for (name, value) in variables {
        let Ok(name) = name.into_string() else { continue };
        let upper = name.to_ascii_uppercase();
        let Some(rest) = upper.strip_prefix(PREFIX).and_then(|rest| rest.strip_prefix('_')) else { continue };
        let well_formed = |key: &str| {
            key.split(SEPARATOR).all(|part| {
                !part.is_empty()
                    && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
                    && !part.starts_with('_')
            })
        };
        match rest.strip_prefix('_') {
            // TOLLGATE_CONFIG and the like belong to the command line and the scripts.
            None if !rest.contains(SEPARATOR) => {}
            Some(key) if well_formed(key) => match value.into_string() {
                Ok(value) => {
                    settings.insert(name, value);
                }
                Err(_) => problems.push(Problem::of_variable(&name, "its value is not valid UTF-8")),
            },
            _ => problems.push(Problem::of_variable(
                &name,
                "is not a setting; variables are named TOLLGATE__SECTION__KEY, with two underscores between the parts",
            )),
        }
    }
    settings
}

/// Reads the tree as `T`. Serde stops at the first wrong value, so what is wrong is noted, taken out, and the rest read
/// again: one run names everything.
fn read<T: DeserializeOwned>(mut tree: Map<String, Value>, problems: &mut Vec<Problem>) -> Option<T> {
    const TRIES: usize = 100;
    let mut unknown = BTreeSet::new();
    let mut taken_out: BTreeSet<Vec<String>> = BTreeSet::new();
    let mut settings = None;
    for _ in 0..TRIES {
        let root = Value::new(None, ValueKind::Table(tree.clone()));
        let mut track = serde_path_to_error::Track::new();
        let reader = serde_path_to_error::Deserializer::new(Reader::new(root), &mut track);
        let read = serde_ignored::deserialize(reader, |path| {
            unknown.insert(keys_of(&path));
        });
        let wrong = match read {
            Ok(whole) => {
                settings = Some(whole);
                break;
            }
            Err(wrong) => wrong,
        };
        let mut path = segments_of(&track.path());
        let mut known = false;
        if let Wrong::Missing(field) = wrong {
            path.push(field.to_owned());
            known = taken_out.contains(&path);
        }
        if !known {
            problems.push(Problem::of_value(&path, from_environment(&tree, &path), &wrong));
        }
        if matches!(wrong, Wrong::Missing(_)) {
            path.pop();
        }
        if !take_out(&mut tree, &path) {
            break;
        }
        taken_out.insert(path);
    }
    unknown.retain(|path| !taken_out.iter().any(|gone| path.starts_with(gone)));
    problems.extend(unknown.iter().map(|path| Problem::of_unknown(path, from_environment(&tree, path))));
    // Settings with a hole in them are not fit for cross-field checks.
    settings.filter(|_| taken_out.is_empty())
}

fn keys_of(path: &serde_ignored::Path<'_>) -> Vec<String> {
    use serde_ignored::Path;
    let (parent, key) = match path {
        Path::Root => return Vec::new(),
        Path::Seq { parent, index } => (parent, index.to_string()),
        Path::Map { parent, key } => (parent, key.clone()),
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => {
            return keys_of(parent);
        }
    };
    let mut keys = keys_of(parent);
    keys.push(key);
    keys
}

fn segments_of(path: &serde_path_to_error::Path) -> Vec<String> {
    use serde_path_to_error::Segment;
    path.iter()
        .filter_map(|segment| match segment {
            Segment::Seq { index } => Some(index.to_string()),
            Segment::Map { key } => Some(key.clone()),
            Segment::Enum { .. } | Segment::Unknown => None,
        })
        .collect()
}

/// Whether the value at `path`, or what it lies in, came from a variable.
fn from_environment(tree: &Map<String, Value>, path: &[String]) -> bool {
    let Some((first, rest)) = path.split_first() else { return false };
    let Some(value) = tree.get(first) else { return false };
    match &value.kind {
        ValueKind::Table(table) if !rest.is_empty() => from_environment(table, rest),
        _ => value.origin() == Some(ENVIRONMENT),
    }
}

/// Takes the value at `path` out of the tree (of a list: the whole list). False when there is nothing.
fn take_out(tree: &mut Map<String, Value>, path: &[String]) -> bool {
    let Some((first, rest)) = path.split_first() else { return false };
    if let (Some(Value { kind: ValueKind::Table(table), .. }), false) = (tree.get_mut(first), rest.is_empty())
        && take_out(table, rest)
    {
        return true;
    }
    tree.remove(first).is_some()
}

#[cfg(test)]
mod tests;

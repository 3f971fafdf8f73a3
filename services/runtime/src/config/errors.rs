//! What is wrong with a configuration: each problem says what, where and what to do; never a value.

use std::fmt;
use std::path::{Path, PathBuf};

use super::reader::Wrong;
use super::{PREFIX, SEPARATOR};

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem(String);

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Problem {
    pub(super) fn of_rule(said: String) -> Self {
        Self(said)
    }

    pub(super) fn of_file(error: &std::io::Error) -> Self {
        Self(format!("the file cannot be read ({error}); give the right path with --config"))
    }

    /// The library's text shows the line it stumbled over, which may hold a password: only place and reason are kept.
    pub(super) fn of_syntax(error: &::config::ConfigError) -> Self {
        let text = match error {
            ::config::ConfigError::FileParse { cause, .. } => cause.to_string(),
            other => other.to_string(),
        };
        let shows_source =
            |line: &&str| line.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ').starts_with('|');
        let kept: Vec<_> = text.lines().filter(|line| !shows_source(line)).map(str::trim).collect();
        Self(format!("the file is not valid TOML: {}", kept.join(": ")))
    }

    pub(super) fn of_variable(name: &str, what: &str) -> Self {
        Self(format!("the variable {name}: {what}"))
    }

    pub(super) fn of_unknown(path: &[String], by_variable: bool) -> Self {
        let what = if path.len() == 1 { "there is no such section" } else { "there is no such setting" };
        Self(format!("{}: {what}; check its spelling, or remove it", place(path, by_variable)))
    }

    pub(super) fn of_value(path: &[String], by_variable: bool, wrong: &Wrong) -> Self {
        match wrong {
            Wrong::Missing(_) => {
                let variable = variable(path);
                Self(format!("{}: is missing; set it in the file, or as the variable {variable}", place(path, false)))
            }
            Wrong::Value(said) => Self(format!("{}: {said}", place(path, by_variable))),
        }
    }
}

/// `[section] key.of.it`, and the variable if the value came from one.
fn place(path: &[String], by_variable: bool) -> String {
    let mut place = match path.split_first() {
        Some((section, [])) => format!("[{section}]"),
        Some((section, keys)) => format!("[{section}] {}", keys.join(".")),
        None => "the file".to_owned(),
    };
    if by_variable {
        place.push_str(&format!(" (from the variable {})", variable(path)));
    }
    place
}

fn variable(path: &[String]) -> String {
    let parts: Vec<_> = path.iter().map(|part| part.to_ascii_uppercase()).collect();
    format!("{PREFIX}{SEPARATOR}{}", parts.join(SEPARATOR))
}

/// Everything that is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub struct ConfigErrors {
    file: Option<PathBuf>,
    problems: Vec<Problem>,
}

impl ConfigErrors {
    pub(super) fn new(file: Option<&Path>, problems: Vec<Problem>) -> Self {
        Self { file: file.map(Path::to_owned), problems }
    }

    /// The problems, one by one.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let many = if self.problems.len() == 1 { "problem" } else { "problems" };
        write!(f, "{} {many} in the configuration (", self.problems.len())?;
        match &self.file {
            Some(file) => write!(f, "{} and the environment):", file.display())?,
            None => f.write_str("the environment; no file was given):")?,
        }
        for problem in &self.problems {
            write!(f, "\n  - {problem}")?;
        }
        Ok(())
    }
}

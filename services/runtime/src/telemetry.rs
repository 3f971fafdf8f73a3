//! The log of a process: structured, on standard error, for people or for machines.

use std::io::IsTerminal as _;

use serde::Deserialize;
use tracing_subscriber::EnvFilter;

use crate::config::Validate;

/// The section `[log]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// How lines are written.
    pub format: Format,
    /// What is written, in the syntax of `RUST_LOG`: `info`, `info,gateway=debug`.
    pub filter: String,
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people on a terminal, else JSON.
    Auto,
    /// One JSON object per line.
    Json,
    /// For people.
    Human,
}

impl Default for Settings {
    fn default() -> Self {
        Self { format: Format::Auto, filter: "info".into() }
    }
}

impl Validate for Settings {
    fn validate(&self) -> Vec<String> {
        match EnvFilter::try_new(&self.filter) {
            Ok(_) => Vec::new(),
            Err(error) => vec![format!(
                "filter {:?} is not understood ({error}); write it like RUST_LOG, e.g. \"info\" or \"info,gateway=debug\"",
                self.filter
            )],
        }
    }
}

/// Why logging could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter is not understood.
    #[error("[log] filter is not understood: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// Something in the process logs already.
    #[error("logging was started twice in one process: {0}")]
    Twice(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Starts logging for the whole process, once. `RUST_LOG`, when set, wins over the setting. Panics are logged too.
///
/// # Errors
/// A filter that is not understood, or a second call.
pub fn init(settings: &Settings) -> Result<(), Error> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(filter) if !filter.is_empty() => EnvFilter::try_new(filter)?,
        _ => EnvFilter::try_new(&settings.filter)?,
    };
    let terminal = std::io::stderr().is_terminal();
    let json = match settings.format {
        Format::Json => true,
        Format::Human => false,
        Format::Auto => !terminal,
    };
    // A line that cannot be written is lost: to complain of it on the same stream panics, and a full disk of logs ends nobody.
    let lines =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).log_internal_errors(false);
    if json {
        lines.json().flatten_event(true).with_current_span(false).try_init().map_err(Error::Twice)?;
    } else {
        lines.with_ansi(terminal).try_init().map_err(Error::Twice)?;
    }
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let message = panic.payload_as_str().unwrap_or("no message");
        let thread = std::thread::current().name().unwrap_or("unnamed").to_owned();
        tracing::error!(place, message, thread, "panic");
    }));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_filter_is_said_with_an_example() {
        let settings = Settings { filter: "gateway=loud".into(), ..Settings::default() };
        assert!(settings.validate().first().is_some_and(|e| e.contains("RUST_LOG")), "{:?}", settings.validate());
        assert_eq!(Settings::default().validate(), Vec::<String>::new());
    }
    #[test]
    #[ignore = "a process of the test below"]
    fn says_a_line() {
        init(&Settings::default()).unwrap();
        tracing::error!("a line");
    }

    #[test]
    fn a_full_disk_of_logs_ends_nobody() {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args(["--ignored", "--exact", "telemetry::tests::says_a_line"]).stderr(full);
        let done = child.output().unwrap();
        let said = String::from_utf8_lossy(&done.stdout);
        assert!(done.status.success() && said.contains("1 passed"), "{}: {said}", done.status);
    }
}

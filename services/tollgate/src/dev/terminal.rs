//! What `dev` says to the person at the terminal.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

/// Says a line. A terminal that went away is no reason to stop.
pub(crate) fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}

/// A step that may take a while: says so when it begins, and how long it took at its end.
pub(crate) struct Step {
    what: String,
    began: Instant,
}

impl Step {
    pub(crate) fn begin(what: impl Into<String>) -> Self {
        let what = what.into();
        say(&format!("  {what} ..."));
        Self { what, began: Instant::now() }
    }

    pub(crate) fn done(self) {
        say(&format!("  {} done ({})", self.what, seconds(self.began.elapsed())));
    }
}

/// `1.2 s`.
pub(crate) fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

/// Emphasis on a terminal, plain text elsewhere.
pub(crate) fn strong(text: &str) -> String {
    if std::io::stdout().is_terminal() { format!("\u{1b}[1m{text}\u{1b}[0m") } else { text.to_owned() }
}

//! What doctor found: one line each, with what to do.

use std::io::{IsTerminal as _, Write};

/// How a finding is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// As it should be.
    Ok,
    /// Works, but not as it should for long.
    Warn,
    /// Does not work, or loses something.
    Fail,
}

/// The findings, said as they come.
#[derive(Debug, Default)]
pub(crate) struct Report {
    findings: Vec<(Level, String)>,
    quiet: bool,
}

impl Report {
    /// One that only keeps the findings.
    #[cfg(test)]
    pub(crate) fn quiet() -> Self {
        Self { quiet: true, ..Self::default() }
    }

    pub(crate) fn ok(&mut self, found: impl Into<String>) {
        self.add(Level::Ok, found.into());
    }

    /// `found` says what is wrong, `remedy` what to do.
    pub(crate) fn warn(&mut self, found: impl Into<String>, remedy: &str) {
        self.add(Level::Warn, format!("{}\n       {remedy}", found.into()));
    }

    /// `found` says what is wrong, `remedy` what to do.
    pub(crate) fn fail(&mut self, found: impl Into<String>, remedy: &str) {
        self.add(Level::Fail, format!("{}\n       {remedy}", found.into()));
    }

    fn add(&mut self, level: Level, text: String) {
        if !self.quiet {
            let mut out = std::io::stdout().lock();
            let word = match (level, out.is_terminal()) {
                (Level::Ok, true) => "\u{1b}[32mOK  \u{1b}[0m",
                (Level::Warn, true) => "\u{1b}[33mWARN\u{1b}[0m",
                (Level::Fail, true) => "\u{1b}[31mFAIL\u{1b}[0m",
                (Level::Ok, false) => "OK  ",
                (Level::Warn, false) => "WARN",
                (Level::Fail, false) => "FAIL",
            };
            let _ = writeln!(out, "{word}   {text}");
        }
        self.findings.push((level, text));
    }

    /// How many findings have this level.
    pub(crate) fn count(&self, level: Level) -> usize {
        self.findings.iter().filter(|(of, _)| *of == level).count()
    }

    /// Everything said, for tests.
    #[cfg(test)]
    pub(crate) fn text(&self) -> String {
        self.findings.iter().map(|(level, text)| format!("{level:?} {text}\n")).collect()
    }
}

//! What doctor found: one line each, with what to do; as text for people or as JSON for programs.

use std::io::{IsTerminal as _, Write};

use serde::Serialize;

/// How a finding is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    /// As it should be.
    Ok,
    /// Works, but not as it should for long; or could not be looked at.
    Warn,
    /// Does not work, or loses something.
    Fail,
}

impl Level {
    const fn word(self, coloured: bool) -> &'static str {
        match (self, coloured) {
            (Self::Ok, true) => "\u{1b}[32mOK  \u{1b}[0m",
            (Self::Warn, true) => "\u{1b}[33mWARN\u{1b}[0m",
            (Self::Fail, true) => "\u{1b}[31mFAIL\u{1b}[0m",
            (Self::Ok, false) => "OK  ",
            (Self::Warn, false) => "WARN",
            (Self::Fail, false) => "FAIL",
        }
    }
}

#[derive(Debug, Serialize)]
struct Finding {
    level: Level,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

/// Where findings go.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// A line as each comes.
    #[default]
    Text,
    /// One object at the end.
    Json,
    /// Nowhere, for tests.
    #[cfg(test)]
    Quiet,
}

/// The findings.
#[derive(Debug, Default)]
pub(crate) struct Report {
    findings: Vec<Finding>,
    form: Form,
}

impl Report {
    pub(crate) fn new(form: Form) -> Self {
        Self { findings: Vec::new(), form }
    }

    /// One that only keeps the findings.
    #[cfg(test)]
    pub(crate) fn quiet() -> Self {
        Self::new(Form::Quiet)
    }

    pub(crate) fn ok(&mut self, found: impl Into<String>) {
        self.add(Level::Ok, found.into(), None);
    }

    /// `found` says what is not as it should be, `remedy` what to do.
    pub(crate) fn warn(&mut self, found: impl Into<String>, remedy: &str) {
        self.add(Level::Warn, found.into(), Some(remedy.to_owned()));
    }

    /// `found` says what is wrong, `remedy` what to do.
    pub(crate) fn fail(&mut self, found: impl Into<String>, remedy: &str) {
        self.add(Level::Fail, found.into(), Some(remedy.to_owned()));
    }

    fn add(&mut self, level: Level, found: String, remedy: Option<String>) {
        if self.form == Form::Text {
            let mut out = std::io::stdout().lock();
            let word = level.word(out.is_terminal());
            let remedy = remedy.as_ref().map(|remedy| format!("\n       {remedy}")).unwrap_or_default();
            let _ = writeln!(out, "{word}   {found}{remedy}");
        }
        self.findings.push(Finding { level, found, remedy });
    }

    /// Says the whole. True when nothing is wrong.
    pub(crate) fn close(self) -> bool {
        let (wrong, doubtful) = (self.count(Level::Fail), self.count(Level::Warn));
        let mut out = std::io::stdout().lock();
        let _ = match self.form {
            Form::Text => {
                let summary = match (wrong, doubtful) {
                    (0, 0) => "nothing is wrong".to_owned(),
                    (0, doubtful) => format!("nothing is wrong, {doubtful} to look at"),
                    (wrong, _) => format!("{wrong} wrong"),
                };
                writeln!(out, "\n{summary}")
            }
            Form::Json => {
                let whole = serde_json::json!({"ok": wrong == 0, "findings": self.findings});
                writeln!(out, "{whole:#}")
            }
            #[cfg(test)]
            Form::Quiet => Ok(()),
        };
        wrong == 0
    }

    /// How many findings have this level.
    pub(crate) fn count(&self, level: Level) -> usize {
        self.findings.iter().filter(|finding| finding.level == level).count()
    }

    /// Everything said, for tests.
    #[cfg(test)]
    pub(crate) fn text(&self) -> String {
        let line = |f: &Finding| format!("{:?} {} {}\n", f.level, f.found, f.remedy.as_deref().unwrap_or_default());
        self.findings.iter().map(line).collect()
    }
}

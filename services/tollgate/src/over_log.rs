//! What archive, audit, rebuild and seal share: settings with a quiet log, the archive beside the log, how far they are, an exit code.

use std::error::Error;
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use fold::archive::{Archive, Log};
use fold::audit::Progress;
use runtime::telemetry;
use sql::ClickHouseSettings;
use stream::kafka::KafkaSettings;

use crate::cli;
use crate::roles;
use crate::settings::{Section, Settings, Uses};

/// Differences were found.
const DIFFERENT: u8 = 1;
/// It cannot be said whether there are any.
const UNKNOWN: u8 = 2;
/// How far it is, is said so often.
const TELL: Duration = Duration::from_secs(1);

struct OverLog;

impl Uses for OverLog {
    const SECTIONS: &'static [Section] = &[Section::Kafka, Section::ClickHouse];
}

/// The settings of a command; none when they were only to be checked. What it finds it says in words of its own, so that the log
/// has errors alone.
pub(crate) fn settings(name: &str, role: &cli::Role) -> Result<Option<Settings>, Box<dyn Error>> {
    let settings = roles::settings::<OverLog>(name, role)?;
    if let Some(settings) = &settings {
        telemetry::init(&telemetry::Settings { filter: "error".into(), ..settings.log.clone() })?;
    }
    Ok(settings)
}

/// The exit code of what compares with the log, once it said whether all is the same.
pub(crate) fn ended(same: &Result<bool, Box<dyn Error>>) -> ExitCode {
    match same {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(DIFFERENT),
        Err(error) => {
            eprintln!("tollgate: {error}");
            ExitCode::from(UNKNOWN)
        }
    }
}

/// Does what reads the log, with the archive that was given for what Kafka no longer has, and says meanwhile how far it is.
pub(crate) async fn read<T>(
    kafka: &KafkaSettings,
    archive: &cli::ArchiveToRead,
    clickhouse: &ClickHouseSettings,
    work: impl AsyncFnOnce(Log<'_>, &mut Told) -> T,
) -> T {
    let archive = archive.dir.as_ref().map(|dir| Archive::new(dir, clickhouse));
    let mut told = Told::default();
    let done = work(Log { kafka, archive: archive.as_ref() }, &mut told).await;
    told.end();
    if let Some(archive) = archive {
        close(archive).await;
    }
    done
}

/// Leaves nothing in ClickHouse. What cannot be removed now is removed by a later run.
pub(crate) async fn close(archive: Archive) {
    if let Err(error) = archive.close().await {
        eprintln!("tollgate: a table log_rows_… is left in ClickHouse until another run removes it: {error}");
    }
}

/// How far it is, on standard error: a line that changes on a terminal, a line now and then elsewhere.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// Which line, since when, and from which offset on.
    line: Option<(&'static str, i32, Instant, i64)>,
    last: Option<Instant>,
}

impl Told {
    pub(crate) fn tell(&mut self, progress: Progress) {
        let Progress { topic, partition, done, of } = progress;
        let now = Instant::now();
        let (since, from) = match self.line {
            Some((t, p, since, from)) if (t, p) == (topic, partition) => (since, from),
            // The rate is known from the second time on.
            _ => return self.line = Some((topic, partition, now, done)),
        };
        if self.last.is_some_and(|last| now - last < TELL) || done == of {
            return;
        }
        self.last = Some(now);
        let rate = (done - from) as f64 / (now - since).as_secs_f64().max(0.001);
        let left = (of - done) as f64 / rate.max(1.0);
        let text = format!("{topic}/{partition}: {done} of {of} offsets, {rate:.0} per second, {left:.0} s left");
        let mut err = std::io::stderr().lock();
        let _ = if err.is_terminal() { write!(err, "\r\u{1b}[K{text}") } else { writeln!(err, "{text}") };
    }

    /// Leaves no line behind.
    pub(crate) fn end(&self) {
        if self.last.is_some() && std::io::stderr().is_terminal() {
            eprint!("\r\u{1b}[K");
        }
    }
}

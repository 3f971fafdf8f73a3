//! Writing documents: idempotent, by the revision that was seen, or over whatever is there.

use axum::http::{HeaderMap, header};
use ledger::control::{ControlState, Document, Kind, Rejected, Write};
use stream::control::WriteError;

use crate::app::App;
use crate::problem::Problem;

/// How often a write over the current revision is tried while others write the same document. Each time one of them has
/// been written, so that many at once all come through.
const TRIES: u32 = 64;

/// What must hold of a document before it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Precondition {
    /// Whatever is there is written over.
    None,
    /// It is at this revision.
    Revision(u64),
    /// It is there.
    Exists,
    /// It is not there.
    Absent,
}

impl Precondition {
    /// `If-Match: "revision"`, `If-Match: *`, `If-None-Match: *`, or nothing.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let text = |name: header::HeaderName| -> Result<Option<&str>, Problem> {
            let refused = |_| Problem::query(format!("the header `{name}` is not readable"));
            headers.get(&name).map(|value| value.to_str().map(str::trim).map_err(refused)).transpose()
        };
        match (text(header::IF_MATCH)?, text(header::IF_NONE_MATCH)?) {
            (None, None) => Ok(Self::None),
            (Some("*"), None) => Ok(Self::Exists),
            (None, Some("*")) => Ok(Self::Absent),
            (Some(tag), None) => revision(tag).map(Self::Revision).ok_or_else(|| {
                Problem::query("`If-Match` must be one entity tag that this API gave, for example \"3\", or *")
            }),
            (_, Some(_)) => Err(Problem::query("of `If-None-Match` only * is known, and not beside `If-Match`")),
        }
    }

    fn check(self, found: u64, there: bool) -> Result<(), Problem> {
        let holds = match self {
            Self::None => true,
            Self::Revision(seen) => there && seen == found,
            Self::Exists => there,
            Self::Absent => !there,
        };
        let now = if there { format!("it is at revision {found}") } else { "it is not there".to_owned() };
        if holds { Ok(()) } else { Err(Problem::precondition(format!("{now}: read it again, then write"))) }
    }
}

/// The entity tag of a revision.
pub(crate) fn tag(revision: u64) -> String {
    format!("\"{revision}\"")
}

fn revision(tag: &str) -> Option<u64> {
    tag.strip_prefix('"')?.strip_suffix('"')?.parse().ok()
}

/// What a write led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Put {
    /// The revision now.
    pub(crate) revision: u64,
    /// Whether it was not there before.
    pub(crate) created: bool,
}

/// Makes a document what it is to be. One that is so already is not written again.
pub(crate) async fn put(
    app: &App,
    actor: &str,
    id: &str,
    document: Document,
    when: Precondition,
) -> Result<Put, Problem> {
    let kind = document.kind();
    let (there, revision) = write(app, actor, kind, id, when, |_, _| Ok(Some(document.clone()))).await?;
    Ok(Put { revision, created: !there })
}

/// Makes a document what `becomes` makes of the state and of the one that is there. None deletes it.
/// Gives whether it was there, and the revision after.
pub(crate) async fn write(
    app: &App,
    actor: &str,
    kind: Kind,
    id: &str,
    when: Precondition,
    becomes: impl Fn(&ControlState, Option<&Document>) -> Result<Option<Document>, Problem>,
) -> Result<(bool, u64), Problem> {
    let mut last = None;
    for _ in 0..TRIES {
        let control = app.control()?;
        let (found, now) = current(&control.state, kind, id);
        when.check(found, now.is_some())?;
        let document = becomes(&control.state, now)?;
        if document.as_ref() == now {
            return Ok((now.is_some(), found));
        }
        let write = Write { kind, id: id.to_owned(), expected_revision: found, document };
        match app.control.write(write, actor).await {
            Ok(written) => {
                count(app, kind, "written");
                return Ok((now.is_some(), written.revision));
            }
            // Another one came first, and is in the view by now: with a condition it no longer holds, without one the
            // write is to be over that one.
            Err(WriteError::Rejected(rejected @ (Rejected::Conflict { .. } | Rejected::Overtaken { .. }))) => {
                count(app, kind, "conflict");
                last = Some(rejected);
            }
            Err(error) => {
                let unavailable = matches!(error, WriteError::Unavailable(_));
                count(app, kind, if unavailable { "unavailable" } else { "rejected" });
                return Err(error.into());
            }
        }
    }
    Err(last.map_or_else(|| Problem::internal(&"a write was tried and had no outcome"), Problem::from))
}

fn current<'a>(state: &'a ControlState, kind: Kind, id: &str) -> (u64, Option<&'a Document>) {
    (state.revision(kind, id), state.get(kind, id))
}

fn count(app: &App, kind: Kind, outcome: &str) {
    app.metrics.writes.with_label_values(&[kind.as_str(), outcome]).inc();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(header::HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_precondition_is_a_revision_or_a_star() {
        let of = |pairs: &[(header::HeaderName, &str)]| Precondition::of(&headers(pairs));
        assert_eq!(of(&[]), Ok(Precondition::None));
        assert_eq!(of(&[(header::IF_MATCH, "\"12\"")]), Ok(Precondition::Revision(12)));
        assert_eq!(of(&[(header::IF_MATCH, "*")]), Ok(Precondition::Exists));
        assert_eq!(of(&[(header::IF_NONE_MATCH, "*")]), Ok(Precondition::Absent));
        for wrong in ["12", "W/\"1\"", "\"a\"", "\"1\", \"2\""] {
            assert!(of(&[(header::IF_MATCH, wrong)]).is_err(), "{wrong}");
        }
        assert!(of(&[(header::IF_MATCH, "*"), (header::IF_NONE_MATCH, "*")]).is_err());
    }
}

//! Questions for dead letters: which there are, a page at a time, how many by reason, and one whole.

use serde::{Deserialize, Serialize};
use sql::{DeadLetterQuery, Table};
use stream::replay::{Place, topic_named};
use utoipa::{IntoParams, ToSchema};

use super::range;
use crate::app::App;
use crate::auth::Caller;
use crate::dead_letters::{DeadLetterShown, DeadLetterWhole, REASONS, letter, letters};
use crate::problem::Problem;

/// The most dead letters of one page.
const PAGE_MAX: usize = 1_000;
/// How many there are if nothing is said.
const PAGE: usize = 100;

/// Which dead letters, and which part of them.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct DeadLettersQuery {
    /// Of one topic: `tokens` or `requests`, or its whole name.
    pub(crate) topic: Option<String>,
    /// Of one partition.
    pub(crate) partition: Option<i32>,
    /// With one reason: `undecodable`, `unknown_mark`, `out_of_bounds`, `key_mismatch` or `seq_conflict`.
    pub(crate) reason: Option<String>,
    /// That Kafka took at this instant or later, as RFC 3339 has it.
    pub(crate) from: Option<String>,
    /// That Kafka took before this instant.
    pub(crate) to: Option<String>,
    /// `next_cursor` of the page before.
    pub(crate) cursor: Option<String>,
    /// How many at most: 1 to 1000, 100 by default.
    pub(crate) limit: Option<usize>,
}

/// How many dead letters have a reason.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct ReasonCount {
    pub(crate) topic: &'static str,
    pub(crate) reason: String,
    /// How many: of the partition and the time that were asked for.
    pub(crate) letters: u64,
}

/// Dead letters in the order of the log: by topic, partition and offset.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct DeadLetters {
    pub(crate) data: Vec<DeadLetterShown>,
    /// For the next page, as `cursor`; absent on the last one.
    pub(crate) next_cursor: Option<String>,
    /// All of them by topic and reason: of the topic, partition and time that were asked for, whatever the reason and the page.
    pub(crate) counts: Vec<ReasonCount>,
}

/// A question that can be answered.
struct Asked {
    topic: Option<&'static str>,
    after: Option<Place>,
    limit: usize,
    /// Of either topic.
    query: DeadLetterQuery,
}

impl Asked {
    fn of(asked: &DeadLettersQuery) -> Result<Self, Problem> {
        let topic = asked
            .topic
            .as_deref()
            .map(|name| topic_named(name).ok_or_else(|| Problem::query("`topic` must be tokens or requests")));
        if asked.partition.is_some_and(|partition| partition < 0) {
            return Err(Problem::query("`partition` must be 0 or more"));
        }
        if asked.reason.as_deref().is_some_and(|reason| !REASONS.contains(&reason)) {
            return Err(Problem::query(format!("`reason` must be one of {}", REASONS.join(", "))));
        }
        let limit = asked.limit.unwrap_or(PAGE);
        if !(1..=PAGE_MAX).contains(&limit) {
            return Err(Problem::query(format!("`limit` must be 1 to {PAGE_MAX}")));
        }
        let after = asked.cursor.as_deref().map(str::parse).transpose();
        let since_ms = asked.from.as_deref().map(|text| millis("from", text)).transpose()?;
        let before_ms = asked.to.as_deref().map(|text| millis("to", text)).transpose()?;
        if since_ms.zip(before_ms).is_some_and(|(from, to)| from >= to) {
            return Err(Problem::range("`from` must be before `to`, which is not in the span itself"));
        }
        Ok(Self {
            topic: topic.transpose()?,
            after: after.map_err(|_| Problem::query("`cursor` must be the `next_cursor` of the page before"))?,
            limit,
            query: DeadLetterQuery {
                partition: asked.partition,
                reason: asked.reason.clone(),
                since_ms: since_ms.unwrap_or(i64::MIN),
                before_ms: before_ms.unwrap_or(i64::MAX),
                whole: false,
                ..DeadLetterQuery::of(Table::Tokens)
            },
        })
    }

    /// The question for one topic, for no more than so many; none if the pages before were beyond it.
    fn rest(&self, table: Table, limit: usize) -> Option<DeadLetterQuery> {
        let after = self.after.map(|after| (crate::dead_letters::table(after.topic), after));
        let from = match after {
            Some((before, _)) if before > table => return None,
            Some((before, after)) if before == table => (after.partition, after.offset.saturating_add(1)),
            _ => (0, 0),
        };
        Some(DeadLetterQuery { table, from, limit: limit as u64, ..self.query.clone() })
    }
}

/// The first whole millisecond that is not before an instant: Kafka's times are whole ones.
fn millis(name: &str, text: &str) -> Result<i64, Problem> {
    let micros = range::instant(name, text)?.0;
    Ok(micros.div_euclid(1_000) + i64::from(micros.rem_euclid(1_000) > 0))
}

/// Answers a question for dead letters. They are the operator's: what a foreign writer sent is no tenant's.
pub(crate) async fn list(app: &App, caller: &Caller, asked: &DeadLettersQuery) -> Result<DeadLetters, Problem> {
    caller.admin()?;
    let asked = Asked::of(asked)?;
    let (mut data, mut counts) = (Vec::new(), Vec::new());
    for table in Table::ALL.into_iter().filter(|table| asked.topic.is_none_or(|topic| topic == table.topic())) {
        let whole = DeadLetterQuery { table, ..asked.query.clone() };
        let reasons = app.ask("dead_letter_reasons", app.clickhouse.dead_letter_reasons(&whole)).await?;
        let count = |(reason, letters)| ReasonCount { topic: table.topic(), reason, letters };
        counts.extend(reasons.into_iter().map(count));
        // One more tells whether there is another page.
        let missing = (asked.limit + 1).saturating_sub(data.len());
        if let Some(query) = asked.rest(table, missing) {
            let found = app.ask("dead_letters", letters(&app.clickhouse, &query)).await?;
            data.extend(found.into_iter().map(|whole| whole.letter));
        }
    }
    let more = data.len() > asked.limit;
    data.truncate(asked.limit);
    let next_cursor = data.last().filter(|_| more).map(|last| last.place.to_string());
    Ok(DeadLetters { data, next_cursor, counts })
}

/// One dead letter, with its bytes.
pub(crate) async fn one(app: &App, caller: &Caller, place: &str) -> Result<DeadLetterWhole, Problem> {
    caller.admin()?;
    let place: Place = place.parse().map_err(|error: stream::replay::NoPlace| Problem::id(error.to_string()))?;
    let found = app.ask("dead_letter", letter(&app.clickhouse, &app.kafka, place)).await?;
    found.ok_or_else(|| Problem::not_found("dead letter", &place.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(text: &str) -> Option<Place> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn a_page_goes_on_behind_the_one_before_through_both_topics() {
        let asked = |after| Asked { after, ..Asked::of(&DeadLettersQuery::default()).unwrap() };
        let from = |after, table| asked(after).rest(table, 5).map(|query| query.from);
        assert_eq!(from(None, Table::Tokens), Some((0, 0)));
        assert_eq!(from(place("tokens/3/17"), Table::Tokens), Some((3, 18)));
        assert_eq!(from(place("tokens/3/17"), Table::Requests), Some((0, 0)));
        assert_eq!(from(place("requests/1/2"), Table::Tokens), None);
        assert_eq!(from(place("requests/1/2"), Table::Requests), Some((1, 3)));
    }

    #[test]
    fn a_span_has_what_kafka_took_at_its_beginning_and_not_at_its_end() {
        for (text, ms) in [
            ("1970-01-01T00:00:00.001Z", 1),
            ("1970-01-01T00:00:00.001001Z", 2),
            ("1970-01-01T01:00:00+01:00", 0),
            ("1969-12-31T23:59:59.999999Z", 0),
        ] {
            assert_eq!(millis("from", text), Ok(ms), "{text}");
        }
    }
}

//! The operator's pages with what ClickHouse would say.

use serde_json::json;

use super::*;

fn letter(offset: i64, bytes: Option<u64>, replay: ReplayShown) -> DeadLetterShown {
    let place: stream::replay::Place = format!("tokens/3/{offset}").parse().unwrap();
    DeadLetterShown {
        place,
        topic: place.topic,
        partition: 3,
        offset,
        taken_at: "2026-11-24T11:00:00.123Z".into(),
        reason: "undecodable".into(),
        detail: "no <event>".into(),
        bytes,
        replay,
    }
}

fn whole(value: Option<&str>) -> DeadLetterWhole {
    DeadLetterWhole {
        letter: letter(17, Some(9), ReplayShown::None),
        key: Some("<acme>".into()),
        schema: None,
        record: None,
        value: value.map(str::to_owned),
        replayed_by: None,
        replay_reason: None,
    }
}

fn shows(html: &str, texts: &[&str]) {
    for text in texts {
        assert!(html.contains(text), "{text} is not in {html}");
    }
}

#[test]
fn letters_are_counted_by_reason_and_listed_with_what_became_of_them() {
    let count = ReasonCount { topic: "tollgate.tokens.v1", reason: "undecodable".into(), letters: 12_345 };
    let at = "tollgate.tokens.v1/3/99".to_owned();
    let data = vec![letter(17, Some(9), ReplayShown::None), letter(18, None, ReplayShown::Folded { at })];
    let found = DeadLetters { data, next_cursor: Some("tollgate.tokens.v1/3/18".into()), counts: vec![count] };
    let html = DeadLettersPage { asked: DeadLettersQuery::default(), found: found.clone() }.render().unwrap();
    shows(
        &html,
        &[
            "data-value=\"12345\"",
            "href=\"/console/dead-letters/tollgate.tokens.v1/3/17\"",
            "topic=tollgate.tokens.v1&#38;reason=undecodable",
            "?cursor=tollgate.tokens.v1%2F3%2F18",
            "no &#60;event&#62;",
            "a mark",
            "<td>not replayed</td>",
            "<td>replayed, counts</td>",
        ],
    );
    let asked = DeadLettersQuery {
        topic: Some("tollgate.tokens.v1".into()),
        reason: Some("undecodable".into()),
        ..DeadLettersQuery::default()
    };
    let html = DeadLettersPage { asked, found }.render().unwrap();
    shows(&html, &["<b>undecodable</b>", "Show all", "reason=undecodable&#38;cursor="]);
    let found = DeadLetters { data: vec![], next_cursor: None, counts: vec![] };
    shows(&DeadLettersPage { asked: DeadLettersQuery::default(), found }.render().unwrap(), &["id=\"none\""]);
}

#[test]
fn one_letter_is_shown_with_its_bytes_and_what_they_say() {
    let torn = DeadLetterPage { found: whole(Some("00ff")) }.render().unwrap();
    shows(
        &torn,
        &["&#60;acme&#62;", "no event of this topic", "00ff", "dead-letters fix tollgate.tokens.v1/3/17 --record"],
    );
    assert!(!torn.contains("The beginning"));
    let long = DeadLetterPage { found: whole(Some(&"ab".repeat(HEX_MAX))) }.render().unwrap();
    shows(&long, &["The beginning"]);
    assert_eq!(
        long.matches("ab").count(),
        DeadLetterPage { found: whole(Some(&"ab".repeat(HEX_MAX / 2))) }.render().unwrap().matches("ab").count()
    );
    let mark = DeadLetterPage { found: whole(None) }.render().unwrap();
    shows(&mark, &["a record without a value"]);
    let mut known = whole(Some("00"));
    known.record = Some(json!({"output": -5, "model": "<llama>"}));
    known.letter.replay = ReplayShown::Dead { at: "tollgate.tokens.v1/3/99".into() };
    (known.replayed_by, known.replay_reason) = (Some("ann".into()), Some("ticket <311>".into()));
    let html = DeadLetterPage { found: known }.render().unwrap();
    shows(
        &html,
        &["dead again at tollgate.tokens.v1/3/99", "<dd>ann</dd>", "ticket &#60;311&#62;", "&#60;llama&#62;", "-5"],
    );
    assert!(!html.contains("dead-letters replay"), "what was replayed is not replayed again");
}

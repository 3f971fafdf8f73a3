//! One dead letter as text, for people.

use std::fmt::Write as _;

use billing::dead_letters::{DeadLetterShown, DeadLetterWhole};

/// One line of a list.
pub(crate) fn line(letter: &DeadLetterShown) -> String {
    format!(
        "{:<34} {:<24} {:<14} {}; {}",
        letter.place.to_string(),
        letter.taken_at,
        letter.reason,
        letter.detail,
        letter.replay
    )
}

/// All of it.
pub(crate) fn whole(found: &DeadLetterWhole) -> String {
    let letter = &found.letter;
    let mut said = format!("{}\n", letter.place);
    let mut row = |name: &str, value: &str| _ = writeln!(said, "  {name:<10} {value}");
    row("reason", &letter.reason);
    row("detail", &letter.detail);
    row("taken at", &letter.taken_at);
    row("key", found.key.as_deref().unwrap_or("none"));
    row("replay", &letter.replay.to_string());
    for (name, text) in [("by", &found.replayed_by), ("because", &found.replay_reason)] {
        if let Some(text) = text {
            row(name, text);
        }
    }
    row("schema", found.schema.as_deref().unwrap_or("none that is known"));
    if let Some(record) = &found.record {
        row("record", &serde_json::to_string_pretty(record).unwrap_or_default().replace('\n', "\n             "));
    }
    match (&found.value, letter.bytes) {
        (Some(value), Some(bytes)) => row("value", &format!("{bytes} bytes: {value}")),
        _ => row("value", "none: a mark"),
    }
    said
}

//! The members of a JSON object as spans of its text: one can be read, replaced or taken out while all others stay as they are.

use std::borrow::Cow;
use std::ops::Range;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// One member.
#[derive(Debug)]
pub(crate) struct Member<'a> {
    /// The key, its escapes resolved: `"max\u005ftokens"` is `max_tokens` to every reader.
    pub key: Cow<'a, str>,
    /// The value's text.
    pub value: &'a str,
    /// Where the key begins in the object's text.
    pub start: usize,
    /// Where the value begins.
    pub value_start: usize,
}

impl Member<'_> {
    /// Where the value ends.
    pub(crate) fn end(&self) -> usize {
        self.value_start + self.value.len()
    }

    /// Where the value stands.
    pub(crate) fn value_span(&self) -> Range<usize> {
        self.value_start..self.end()
    }

    /// Whether the value is `null`.
    pub(crate) fn is_null(&self) -> bool {
        self.value == "null"
    }
}

/// The members of an object, in order. Nothing below them is looked at but for being JSON.
///
/// # Errors
/// When the text is no JSON object.
pub(crate) fn members(text: &str) -> Result<Vec<Member<'_>>, serde_json::Error> {
    let Pairs(pairs) = serde_json::from_str(text)?;
    // Both borrow from `text`, so the distance of their addresses is their place in it.
    let place = |part: &RawValue| (part.get().as_ptr() as usize).saturating_sub(text.as_ptr() as usize);
    let mut found = Vec::with_capacity(pairs.len());
    for (key, value) in pairs {
        let (start, value_start) = (place(key), place(value));
        found.push(Member { key: unescaped(key.get()), value: value.get(), start, value_start });
    }
    Ok(found)
}

fn unescaped(quoted: &str) -> Cow<'_, str> {
    if quoted.contains('\\') {
        // What cannot be resolved (half a surrogate pair) is no name that anybody knows.
        return Cow::Owned(serde_json::from_str(quoted).unwrap_or_else(|_| quoted.to_owned()));
    }
    Cow::Borrowed(quoted.trim_matches('"'))
}

struct Pairs<'a>(Vec<(&'a RawValue, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Pairs<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Vec<(&'de RawValue, &'de RawValue)>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut pairs = Vec::with_capacity(12);
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(pairs)
            }
        }
        deserializer.deserialize_map(Collect).map(Pairs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn members_are_found_by_their_place_and_their_true_name() {
        let text = " { \"a\" : [1, {\"b\":2}] ,\"max\\u005ftokens\":5,\"\":null}";
        let found = members(text).unwrap();
        let seen: Vec<_> = found.iter().map(|m| (m.key.as_ref(), m.value)).collect();
        assert_eq!(seen, [("a", "[1, {\"b\":2}]"), ("max_tokens", "5"), ("", "null")]);
        for member in &found {
            assert_eq!(&text[member.value_span()], member.value);
            assert!(text[member.start..].starts_with('"'));
        }
        for bad in ["[]", "{", "{\"a\":1}}", "{a:1}", "{\"a\":1,}", "7", "", "{\"a\":NaN}"] {
            assert!(members(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn depth_is_no_danger() {
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(members(&deep).unwrap().len(), 1);
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,60}") {
            let _ = members(&text);
        }

        #[test]
        fn any_object_is_found_whole(entries in prop::collection::vec(("\\PC{0,8}", "\\PC{0,8}"), 0..6)) {
            let quoted = |text: &str| serde_json::to_string(text).unwrap();
            let fields: Vec<_> = entries.iter().map(|(k, v)| format!("{}: {}", quoted(k), quoted(v))).collect();
            let text = format!("{{{}}}", fields.join(" , "));
            let found = members(&text).unwrap();
            prop_assert_eq!(found.len(), entries.len());
            for (member, (key, value)) in found.iter().zip(&entries) {
                prop_assert_eq!(member.key.as_ref(), key.as_str());
                prop_assert_eq!(&text[member.value_span()], quoted(value));
            }
        }
    }
}

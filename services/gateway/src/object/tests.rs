//! Objects are read as a library reads them, and what is none is refused.

use super::*;
use proptest::prelude::*;
use serde_json::value::RawValue;

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
    assert_eq!(members("{\"a\":tru}").unwrap_err().to_string(), "expected true at byte 5");
}

#[test]
fn depth_is_no_danger() {
    for depth in [1, 63, 64, 65, 128, 129, 100_000] {
        let deep = format!("{{\"a\":{}{}}}", "[{\"b\":".repeat(depth) + "1", "}]".repeat(depth));
        assert_eq!(members(&deep).unwrap().len(), 1);
        assert!(members(&deep.replacen("}]", "]}", 1)).is_err());
    }
}

/// What a library says of the same text: whether it is an object, and its values.
fn by_library(text: &str) -> Option<Vec<String>> {
    struct Values(Vec<String>);
    impl<'de> serde::Deserialize<'de> for Values {
        fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            struct Collect;
            impl<'de> serde::de::Visitor<'de> for Collect {
                type Value = Vec<String>;
                fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.write_str("an object")
                }
                fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                    let mut values = Vec::new();
                    while let Some((_, value)) = map.next_entry::<&RawValue, &RawValue>()? {
                        values.push(value.get().to_owned());
                    }
                    Ok(values)
                }
            }
            from.deserialize_map(Collect).map(Values)
        }
    }
    serde_json::from_str::<Values>(text).ok().map(|values| values.0)
}

fn agrees(text: &str) -> Result<(), TestCaseError> {
    let own = members(text).ok().map(|all| all.iter().map(|m| m.value.to_owned()).collect::<Vec<_>>());
    prop_assert_eq!(own, by_library(text), "{}", text);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_text_is_read_or_refused_as_a_library_does(text in "\\PC{0,60}") {
        agrees(&text)?;
    }

    /// Pieces of JSON in any order, most of them wrong by little.
    #[test]
    fn what_is_nearly_json_is_judged_as_a_library_does(
        pieces in prop::collection::vec(
            prop::sample::select(vec![
                "{", "}", "[", "]", ",", ":", "\"", "\"a\"", "\"\\u00e9\\n\"", "\\", "\\u12", "0", "-1.5e+3", "01", "1.", "true", "fals", "null",
                " ", "\n", "\u{1}", "\u{7f}", "é", "\"0123456789\"", "{\"a\":", "[1", "\"k\":2",
            ]),
            0..14,
        )
    ) {
        agrees(&pieces.concat())?;
        agrees(&format!("{{\"a\":{}}}", pieces.concat()))?;
    }

    #[test]
    fn any_object_is_found_whole(entries in prop::collection::vec(("\\PC{0,18}", "\\PC{0,18}"), 0..6)) {
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

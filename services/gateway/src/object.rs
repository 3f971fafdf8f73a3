//! The members of a JSON object as spans of its text: one can be read, replaced or taken out while all others stay as they are.
//!
//! Every body and every frame of a stream is read here, so it is one pass over the bytes. [`members`] lists what an object has;
//! a [`Walk`] goes through it, and into what is in it, without a list.

use std::borrow::Cow;
use std::ops::Range;

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

/// What is not the JSON that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected {wanted} at byte {at}")]
pub(crate) struct NotJson {
    wanted: &'static str,
    at: usize,
}

/// The members of an object, in order. Nothing below them is looked at but for being JSON.
///
/// # Errors
/// When the text is no JSON object.
pub(crate) fn members(text: &str) -> Result<Vec<Member<'_>>, NotJson> {
    let mut found = Vec::with_capacity(12);
    let mut walk = Walk::of(text);
    walk.object(|walk, key, start| {
        let value_start = walk.at;
        let value = walk.value()?;
        found.push(Member { key, value, start, value_start });
        Ok(())
    })?;
    walk.end()?;
    Ok(found)
}

/// A key with escapes. What cannot be resolved (half a surrogate pair) is no name that anybody knows.
fn unescaped(quoted: &str) -> Cow<'_, str> {
    Cow::Owned(serde_json::from_str(quoted).unwrap_or_else(|_| quoted.to_owned()))
}

/// What is open around a value: a bit for each level, set for objects.
#[derive(Default)]
struct Levels {
    depth: usize,
    bits: u64,
    /// Those of the levels further out, 64 at a time.
    outer: Vec<u64>,
}

impl Levels {
    fn push(&mut self, is_object: bool) {
        if self.depth > 0 && self.depth.is_multiple_of(64) {
            self.outer.push(self.bits);
        }
        (self.depth, self.bits) = (self.depth + 1, self.bits << 1 | u64::from(is_object));
    }

    fn pop(&mut self) {
        (self.depth, self.bits) = (self.depth - 1, self.bits >> 1);
        if self.depth > 0 && self.depth.is_multiple_of(64) {
            self.bits = self.outer.pop().unwrap_or_default();
        }
    }

    fn is_object(&self) -> bool {
        self.bits & 1 == 1
    }
}

const LOW: u64 = 0x0101_0101_0101_0101;
const HIGH: u64 = LOW << 7;

/// A bit at the first byte of eight that ends or escapes a string, or may not stand in one.
fn special(word: u64) -> u64 {
    let is_zero = |word: u64| word.wrapping_sub(LOW) & !word;
    let control = word.wrapping_sub(LOW * 0x20) & !word;
    (is_zero(word ^ (LOW * u64::from(b'"'))) | is_zero(word ^ (LOW * u64::from(b'\\'))) | control) & HIGH
}

/// A place in a text, in front of a value.
#[derive(Debug)]
pub(crate) struct Walk<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Walk<'a> {
    /// In front of the value that a text is.
    pub(crate) fn of(text: &'a str) -> Self {
        let mut walk = Self { text, at: 0 };
        walk.space();
        walk
    }

    /// How far it has come, in bytes.
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    /// Whether an object comes next.
    pub(crate) fn is_object(&self) -> bool {
        self.peek() == Some(b'{')
    }

    /// Whether a list comes next.
    pub(crate) fn is_list(&self) -> bool {
        self.peek() == Some(b'[')
    }

    /// Past `null`.
    ///
    /// # Errors
    /// When it is anything else.
    pub(crate) fn null(&mut self) -> Result<(), NotJson> {
        self.literal("null")
    }

    /// Through an object. For each member `see` gets the walk in front of its value, which it is to pass, the key, and where
    /// that began.
    ///
    /// # Errors
    /// When there is none, or it is no JSON, or `see` says so.
    pub(crate) fn object(
        &mut self,
        mut see: impl FnMut(&mut Self, Cow<'a, str>, usize) -> Result<(), NotJson>,
    ) -> Result<(), NotJson> {
        self.take(b'{', "an object")?;
        self.space();
        if self.takes(b'}') {
            return Ok(());
        }
        loop {
            let start = self.at;
            let (name, is_escaped) = self.name()?;
            let quoted = self.text.get(name).unwrap_or_default();
            let key = if is_escaped {
                unescaped(quoted)
            } else {
                Cow::Borrowed(quoted.get(1..quoted.len() - 1).unwrap_or_default())
            };
            see(self, key, start)?;
            self.space();
            if !self.takes(b',') {
                return self.take(b'}', "`,` or `}`");
            }
            self.space();
        }
    }

    /// Through a list. For each of its values `see` gets the walk in front of it, and is to pass it.
    ///
    /// # Errors
    /// When there is none, or it is no JSON, or `see` says so.
    pub(crate) fn list(&mut self, mut see: impl FnMut(&mut Self) -> Result<(), NotJson>) -> Result<(), NotJson> {
        self.take(b'[', "a list")?;
        self.space();
        if self.takes(b']') {
            return Ok(());
        }
        loop {
            see(self)?;
            self.space();
            if !self.takes(b',') {
                return self.take(b']', "`,` or `]`");
            }
            self.space();
        }
    }

    /// Past any value: its text.
    ///
    /// # Errors
    /// When it is no JSON.
    pub(crate) fn value(&mut self) -> Result<&'a str, NotJson> {
        let start = self.at;
        self.pass()?;
        Ok(self.text.get(start..self.at).unwrap_or_default())
    }

    /// Past a count, or nothing.
    ///
    /// # Errors
    /// When it is neither a whole number from 0 nor `null`.
    pub(crate) fn count(&mut self) -> Result<Option<u64>, NotJson> {
        let at = self.at;
        let text = self.value()?;
        let count = if text == "null" { Some(None) } else { text.parse().ok().map(Some) };
        count.ok_or(NotJson { wanted: "a count", at })
    }

    /// At the end of the text.
    ///
    /// # Errors
    /// When more follows.
    pub(crate) fn end(&mut self) -> Result<(), NotJson> {
        self.space();
        if self.at == self.text.len() { Ok(()) } else { self.wants("the end") }
    }

    #[inline]
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn wants<T>(&self, wanted: &'static str) -> Result<T, NotJson> {
        Err(NotJson { wanted, at: self.at })
    }

    #[inline]
    fn takes(&mut self, byte: u8) -> bool {
        let is_there = self.peek() == Some(byte);
        self.at += usize::from(is_there);
        is_there
    }

    fn take(&mut self, byte: u8, wanted: &'static str) -> Result<(), NotJson> {
        if self.takes(byte) { Ok(()) } else { self.wants(wanted) }
    }

    #[inline]
    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            self.at += 1;
        }
    }

    /// A key with its quotes, and whether it has escapes; the colon, and space up to the value.
    fn name(&mut self) -> Result<(Range<usize>, bool), NotJson> {
        let start = self.at;
        self.take(b'"', "a key in quotes")?;
        let is_escaped = self.string()?;
        let name = start..self.at;
        self.space();
        self.take(b':', "`:`")?;
        self.space();
        Ok((name, is_escaped))
    }

    /// The rest of a string, behind its first quote. True if it has escapes.
    fn string(&mut self) -> Result<bool, NotJson> {
        let mut is_escaped = false;
        loop {
            let rest = self.text.as_bytes().get(self.at..).unwrap_or_default();
            let Some(eight) = rest.first_chunk::<8>() else { break };
            let found = special(u64::from_le_bytes(*eight));
            if found == 0 {
                self.at += 8;
                continue;
            }
            self.at += found.trailing_zeros() as usize / 8;
            if self.takes(b'"') {
                return Ok(is_escaped);
            }
            is_escaped = true;
            self.closes()?;
        }
        loop {
            is_escaped |= self.peek() == Some(b'\\');
            if self.closes()? {
                return Ok(is_escaped);
            }
        }
    }

    /// One character of a string, or its last quote.
    fn closes(&mut self) -> Result<bool, NotJson> {
        match self.peek() {
            Some(b'"') => {
                self.at += 1;
                return Ok(true);
            }
            Some(b'\\') => {
                self.at += 1;
                match self.peek() {
                    Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 1,
                    Some(b'u') => {
                        let digits = self.text.as_bytes().get(self.at + 1..self.at + 5).unwrap_or_default();
                        if digits.len() < 4 || !digits.iter().all(u8::is_ascii_hexdigit) {
                            return self.wants("four digits of an escape");
                        }
                        self.at += 5;
                    }
                    _ => return self.wants("an escape"),
                }
            }
            None | Some(..0x20) => return self.wants("the rest of a string"),
            Some(_) => self.at += 1,
        }
        Ok(false)
    }

    fn digits(&mut self) -> Result<(), NotJson> {
        let start = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        if self.at > start { Ok(()) } else { self.wants("a digit") }
    }

    fn number(&mut self) -> Result<(), NotJson> {
        self.takes(b'-');
        if !self.takes(b'0') {
            self.digits()?;
        }
        if self.takes(b'.') {
            self.digits()?;
        }
        if self.takes(b'e') || self.takes(b'E') {
            let _ = self.takes(b'+') || self.takes(b'-');
            self.digits()?;
        }
        Ok(())
    }

    fn literal(&mut self, text: &'static str) -> Result<(), NotJson> {
        let is_there = self.text.as_bytes().get(self.at..).is_some_and(|rest| rest.starts_with(text.as_bytes()));
        if !is_there {
            return self.wants(text);
        }
        self.at += text.len();
        Ok(())
    }

    /// Past one value, whatever is in it, however deep.
    fn pass(&mut self) -> Result<(), NotJson> {
        let mut open = Levels::default();
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    self.string()?;
                }
                Some(bracket @ (b'{' | b'[')) => {
                    self.at += 1;
                    self.space();
                    // Each closing bracket is two behind its opening one in ASCII.
                    if !self.takes(bracket + 2) {
                        let is_object = bracket == b'{';
                        open.push(is_object);
                        if is_object {
                            self.name()?;
                        }
                        continue;
                    }
                }
                Some(b't') => self.literal("true")?,
                Some(b'f') => self.literal("false")?,
                Some(b'n') => self.literal("null")?,
                Some(b'-' | b'0'..=b'9') => self.number()?,
                _ => return self.wants("a value"),
            }
            if !self.goes_on(&mut open)? {
                return Ok(());
            }
        }
    }

    /// Behind a value: closes what ends with it; true if another one follows.
    fn goes_on(&mut self, open: &mut Levels) -> Result<bool, NotJson> {
        while open.depth > 0 {
            self.space();
            let is_object = open.is_object();
            if self.takes(b',') {
                self.space();
                if is_object {
                    self.name()?;
                }
                return Ok(true);
            }
            if is_object {
                self.take(b'}', "`,` or `}`")?;
            } else {
                self.take(b']', "`,` or `]`")?;
            }
            open.pop();
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
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
}

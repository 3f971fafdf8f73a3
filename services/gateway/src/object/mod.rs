//! The members of a JSON object as spans of its text: one can be read, replaced or taken out while all others stay as they are.
//!
//! Every body and every frame of a stream is read here, so it is one pass over the bytes. [`members`] lists what an object has;
//! a [`Walk`] goes through it, and into what is in it, without a list.

mod scalar;
#[cfg(test)]
mod tests;
mod value;
mod walk;

use std::borrow::Cow;
use std::ops::Range;

pub(crate) use walk::{NotJson, Walk};

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
pub(crate) fn members(text: &str) -> Result<Vec<Member<'_>>, NotJson> {
    let mut found = Vec::with_capacity(12);
    let mut walk = Walk::of(text);
    walk.object(|walk, key, start| {
        let value_start = walk.at();
        let value = walk.value()?;
        found.push(Member { key, value, start, value_start });
        Ok(())
    })?;
    walk.end()?;
    Ok(found)
}

//! A place in a text of JSON, which goes through objects and lists.

use std::borrow::Cow;
use std::ops::Range;

/// What is not the JSON that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected {wanted} at byte {at}")]
pub(crate) struct NotJson {
    wanted: &'static str,
    at: usize,
}

/// A place in a text, in front of a value.
#[derive(Debug)]
pub(crate) struct Walk<'a> {
    pub(super) text: &'a str,
    pub(super) at: usize,
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
    pub(super) fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    pub(super) fn wants<T>(&self, wanted: &'static str) -> Result<T, NotJson> {
        Err(NotJson { wanted, at: self.at })
    }

    #[inline]
    pub(super) fn takes(&mut self, byte: u8) -> bool {
        let is_there = self.peek() == Some(byte);
        self.at += usize::from(is_there);
        is_there
    }

    pub(super) fn take(&mut self, byte: u8, wanted: &'static str) -> Result<(), NotJson> {
        if self.takes(byte) { Ok(()) } else { self.wants(wanted) }
    }

    #[inline]
    pub(super) fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            self.at += 1;
        }
    }

    /// A key with its quotes, and whether it has escapes; the colon, and space up to the value.
    pub(super) fn name(&mut self) -> Result<(Range<usize>, bool), NotJson> {
        let start = self.at;
        self.take(b'"', "a key in quotes")?;
        let is_escaped = self.string()?;
        let name = start..self.at;
        self.space();
        self.take(b':', "`:`")?;
        self.space();
        Ok((name, is_escaped))
    }
}

/// A key with escapes. What cannot be resolved (half a surrogate pair) is no name that anybody knows.
fn unescaped(quoted: &str) -> Cow<'_, str> {
    Cow::Owned(serde_json::from_str(quoted).unwrap_or_else(|_| quoted.to_owned()))
}

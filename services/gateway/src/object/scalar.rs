//! Past the values that hold no others: strings, eight bytes at a time, numbers and literals.

use super::walk::{NotJson, Walk};

const LOW: u64 = 0x0101_0101_0101_0101;
const HIGH: u64 = LOW << 7;

/// A bit at the first byte of eight that ends or escapes a string, or may not stand in one.
fn special(word: u64) -> u64 {
    let is_zero = |word: u64| word.wrapping_sub(LOW) & !word;
    let control = word.wrapping_sub(LOW * 0x20) & !word;
    (is_zero(word ^ (LOW * u64::from(b'"'))) | is_zero(word ^ (LOW * u64::from(b'\\'))) | control) & HIGH
}

impl Walk<'_> {
    /// The rest of a string, behind its first quote. True if it has escapes.
    pub(super) fn string(&mut self) -> Result<bool, NotJson> {
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

    pub(super) fn number(&mut self) -> Result<(), NotJson> {
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

    pub(super) fn literal(&mut self, text: &'static str) -> Result<(), NotJson> {
        let is_there = self.text.as_bytes().get(self.at..).is_some_and(|rest| rest.starts_with(text.as_bytes()));
        if !is_there {
            return self.wants(text);
        }
        self.at += text.len();
        Ok(())
    }
}

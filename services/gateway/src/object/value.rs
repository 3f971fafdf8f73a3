//! Past any value, whatever is in it, without recursion: how deep a text is, is its author's choice.

use super::walk::{NotJson, Walk};

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

impl Walk<'_> {
    /// Past one value, whatever is in it, however deep.
    pub(super) fn pass(&mut self) -> Result<(), NotJson> {
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

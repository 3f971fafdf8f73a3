//! What several looks at a log tell together: it ends before what was folded, or its consumer hears nothing of what is there.

/// So often in turn the log must look the same, before that means anything: each look is of another moment.
const LOOKS: u32 = 5;

/// How far a line was when it asked where the log ends.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Known {
    /// What ClickHouse held.
    pub(crate) position: i64,
    /// The next offset to read.
    pub(crate) reads_from: i64,
}

/// What is known now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Nothing is wrong, or it may be of this moment only.
    Nothing,
    /// The log ends before this position, which was folded: it is another log.
    Shorter(i64),
    /// There is more from this offset on, and nothing of it comes.
    Silent(i64),
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Looks {
    asked_at: Known,
    shorter: u32,
    silent: u32,
}

impl Looks {
    /// Somebody asks where the log ends.
    pub(crate) fn ask(&mut self, known: Known) {
        self.asked_at = known;
    }

    /// It ends at `end`. `waits_at` is the offset whose record the line has nothing but to wait for, if it is so.
    pub(crate) fn see(&mut self, end: i64, waits_at: Option<i64>) -> Seen {
        let Known { position, reads_from } = self.asked_at;
        let in_turn = |is_so: bool, times: u32| if is_so { times + 1 } else { 0 };
        self.shorter = in_turn(end < position, self.shorter);
        self.silent = in_turn(waits_at == Some(reads_from) && end > reads_from, self.silent);
        if self.shorter >= LOOKS {
            self.shorter = 0;
            Seen::Shorter(position)
        } else if self.silent >= LOOKS {
            self.silent = 0;
            Seen::Silent(reads_from)
        } else {
            Seen::Nothing
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A line that folded up to `folded` and waits there for more.
    fn look(looks: &mut Looks, folded: i64, end: i64) -> Seen {
        looks.ask(Known { position: folded, reads_from: folded });
        looks.see(end, Some(folded))
    }

    #[test]
    fn a_log_that_is_shorter_once_may_have_been_asked_too_early() {
        let mut looks = Looks::default();
        for _ in 0..9 {
            for _ in 0..4 {
                assert_eq!(look(&mut looks, 10, 8), Seen::Nothing);
            }
            assert_eq!(look(&mut looks, 10, 10), Seen::Nothing, "it was not known to this broker yet");
        }
    }

    #[test]
    fn a_log_that_stays_shorter_is_another_one() {
        let mut looks = Looks::default();
        // It is told again as long as it is so.
        for _ in 0..2 {
            let seen: Vec<_> = (0..5).map(|_| look(&mut looks, 10, 0)).collect();
            assert_eq!(seen, [[Seen::Nothing; 4].as_slice(), &[Seen::Shorter(10)]].concat());
        }
    }

    #[test]
    fn a_consumer_that_hears_nothing_of_what_is_there_is_silent() {
        let mut looks = Looks::default();
        let seen: Vec<_> = (0..5).map(|_| look(&mut looks, 10, 30)).collect();
        assert_eq!(seen, [[Seen::Nothing; 4].as_slice(), &[Seen::Silent(10)]].concat());
    }

    #[test]
    fn a_line_that_reads_on_or_does_not_read_is_not_silent() {
        let mut looks = Looks::default();
        for n in 0..20 {
            assert_eq!(look(&mut looks, n, 30), Seen::Nothing, "it was elsewhere the last time");
            looks.ask(Known { position: n, reads_from: n });
            assert_eq!(looks.see(30, Some(n + 1)), Seen::Nothing, "something came while it asked");
        }
        for _ in 0..20 {
            looks.ask(Known { position: 5, reads_from: 7 });
            assert_eq!(looks.see(30, None), Seen::Nothing, "it has no room for records");
        }
    }
}

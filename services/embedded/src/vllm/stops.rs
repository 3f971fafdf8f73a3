//! Stop strings: text that may begin one is held back; the one that comes first ends the choice.

/// Watches the text of one choice.
#[derive(Clone, Debug)]
pub(super) struct StopWatch {
    stops: Vec<String>,
    include: bool,
    /// Not shown yet; with `include`: the end of what was shown.
    held: String,
    /// Characters kept back: one less than the longest stop string has.
    keep: usize,
}

impl StopWatch {
    pub(super) fn new(stops: &[String], include: bool) -> Self {
        let stops: Vec<String> = stops.iter().filter(|stop| !stop.is_empty()).cloned().collect();
        let longest = stops.iter().map(|stop| stop.chars().count()).max().unwrap_or(0);
        Self { stops, include, held: String::new(), keep: longest.saturating_sub(1) }
    }

    /// Takes text; gives what may be shown, and the stop string if one has come.
    pub(super) fn push(&mut self, text: &str) -> (String, Option<String>) {
        if self.stops.is_empty() {
            return (text.to_owned(), None);
        }
        if self.include {
            return self.push_included(text);
        }
        self.held.push_str(text);
        let first = self.first();
        if let Some((at, stop)) = first {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), Some(stop));
        }
        let rest = self.held.split_off(self.cut());
        (std::mem::replace(&mut self.held, rest), None)
    }

    /// With the stop string shown nothing is held back; the end of what was shown is remembered, to find one that spans tokens.
    fn push_included(&mut self, text: &str) -> (String, Option<String>) {
        let before = self.held.len();
        self.held.push_str(text);
        if let Some((at, stop)) = self.first() {
            let end = (at + stop.len()).max(before);
            return (self.held[before..end].to_owned(), Some(stop));
        }
        self.held = self.held.split_off(self.cut());
        (text.to_owned(), None)
    }

    /// The stop string that begins first in the text at hand, and where.
    fn first(&self) -> Option<(usize, String)> {
        let found = |stop: &String| self.held.find(stop.as_str()).map(|at| (at, stop.clone()));
        self.stops.iter().filter_map(found).min_by_key(|(at, _)| *at)
    }

    /// Where the text begins that might still become a stop string.
    fn cut(&self) -> usize {
        let shown = self.held.chars().count().saturating_sub(self.keep);
        self.held.char_indices().nth(shown).map_or(self.held.len(), |(at, _)| at)
    }

    /// What was held back, once the choice has ended for another reason.
    pub(super) fn rest(&mut self) -> String {
        if self.include { String::new() } else { std::mem::take(&mut self.held) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_held_back_and_cut_as_in_the_captured_stream() {
        let mut watch = StopWatch::new(&["eph a".to_owned()], false);
        let shown: Vec<_> =
            ["zake", " quonalal", "jumps", " keph", " anbaing"].iter().map(|text| watch.push(text)).collect();
        let texts: Vec<_> = shown.iter().map(|(text, _)| text.as_str()).collect();
        assert_eq!(texts, ["", "zake quon", "alalj", "umps ", "k"]);
        assert_eq!(shown[4].1.as_deref(), Some("eph a"));
    }

    #[test]
    fn an_included_stop_string_is_shown_and_found_across_tokens() {
        let mut watch = StopWatch::new(&["eph a".to_owned()], true);
        let shown: Vec<_> = ["jumps", " keph", " anbaing"].iter().map(|text| watch.push(text)).collect();
        assert_eq!(shown[2], (" a".to_owned(), Some("eph a".to_owned())));
        assert_eq!(shown[1].0, " keph");
    }

    #[test]
    fn without_a_stop_everything_comes_out() {
        let mut watch = StopWatch::new(&["never".to_owned()], false);
        assert_eq!(format!("{}{}", watch.push("東京 abc").0, watch.rest()), "東京 abc");
    }
}

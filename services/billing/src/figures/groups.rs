//! By what figures are told apart: `group_by` of a question.

use chrono_tz::Tz;
use ledger::time::{Period, Slot};
use sql::{Grain, Keys, Span};

use crate::problem::Problem;

/// What can be grouped by, as clients write it.
const KNOWN: &str = "tenant, project, key, model, version, endpoint, class, late, and one of hour, day, month";

/// By what figures are told apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Groups {
    /// As it was written.
    pub(crate) names: Vec<String>,
    pub(crate) keys: Keys,
    pub(crate) class: bool,
    /// Whether what came after its period could have been closed is told apart.
    pub(crate) late: bool,
    pub(crate) grain: Option<Grain>,
}

impl Groups {
    /// A list with commas; nothing for one sum.
    pub(crate) fn parse(text: Option<&str>) -> Result<Self, Problem> {
        let mut groups = Self::default();
        for name in text.unwrap_or_default().split(',').filter(|_| text.is_some_and(|text| !text.is_empty())) {
            if groups.names.iter().any(|known| known == name) {
                return Err(Problem::query(format!("`group_by` names {name} twice")));
            }
            groups.add(name)?;
            groups.names.push(name.to_owned());
        }
        Ok(groups)
    }

    fn add(&mut self, name: &str) -> Result<(), Problem> {
        match name {
            "tenant" => self.keys.tenant = true,
            "project" => self.keys.project = true,
            "key" => self.keys.api_key = true,
            "model" => self.keys.model = true,
            "version" => self.keys.version = true,
            "endpoint" => self.keys.endpoint = true,
            "class" => self.class = true,
            "late" => self.late = true,
            "hour" => self.span(Grain::Hour)?,
            "day" => self.span(Grain::Day)?,
            "month" => self.span(Grain::Month)?,
            _ => return Err(Problem::query(format!("`group_by` does not know {name:?}: use {KNOWN}"))),
        }
        Ok(())
    }

    fn span(&mut self, grain: Grain) -> Result<(), Problem> {
        match self.grain.replace(grain) {
            None => Ok(()),
            Some(_) => Err(Problem::query("`group_by` takes one of hour, day, month")),
        }
    }

    /// The spans of time that it cuts a period into.
    pub(crate) fn spans(&self, period: Period, zone: Tz) -> Result<Option<Spans>, Problem> {
        let Some(grain) = self.grain else { return Ok(None) };
        let span = Span { grain, zone };
        let starts = span.starts(period.from, period.to).map_err(|error| Problem::range(error.to_string()))?;
        Ok(Some(Spans { span, starts, to: period.to }))
    }
}

/// Spans of time that follow each other.
#[derive(Debug, Clone)]
pub(crate) struct Spans {
    pub(crate) span: Span,
    /// The first slots of all of them.
    pub(crate) starts: Vec<Slot>,
    to: Slot,
}

impl Spans {
    /// The span that holds a slot: its first slot.
    pub(crate) fn holding(&self, slot: Slot) -> Option<Slot> {
        let after = self.starts.partition_point(|start| *start <= slot);
        self.starts.get(after.checked_sub(1)?).copied()
    }

    /// The slot after the span that begins at `start`.
    pub(crate) fn end(&self, start: Slot) -> Slot {
        let after = self.starts.partition_point(|other| *other <= start);
        self.starts.get(after).copied().unwrap_or(self.to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ledger::time::Micros;

    #[test]
    fn what_is_not_known_or_said_twice_is_refused() {
        assert_eq!(Groups::parse(None), Ok(Groups::default()));
        assert_eq!(Groups::parse(Some("")), Ok(Groups::default()));
        let groups = Groups::parse(Some("model,class,day")).unwrap();
        assert!(groups.keys.model && groups.class && groups.grain == Some(Grain::Day) && !groups.keys.project);
        for wrong in ["colour", "model,model", "day,hour", "model,", ",", "Model", " model"] {
            assert!(Groups::parse(Some(wrong)).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn every_slot_is_in_the_span_that_holds_it() {
        let month = Period::month_of(Micros(0), chrono_tz::Europe::Berlin).unwrap();
        let spans = Groups::parse(Some("day")).unwrap().spans(month, chrono_tz::Europe::Berlin).unwrap().unwrap();
        assert_eq!(spans.starts.len(), 31);
        for slot in (month.from.0..month.to.0).map(Slot) {
            let start = spans.holding(slot).unwrap();
            assert!(start <= slot && slot < spans.end(start));
        }
        assert_eq!(spans.holding(Slot(month.from.0 - 1)), None);
        assert_eq!(spans.end(*spans.starts.last().unwrap()), month.to);
    }
}

//! What a period costs: lines of quantity × price, each rounded once, and a total that is their sum exactly.

use std::collections::BTreeMap;

use rust_decimal::Decimal;
use serde::Serialize;
use thiserror::Error;

use crate::control::UsageAdjustment;
use crate::ids::{ModelId, ProjectId};
use crate::money::{Currency, Money, MoneyError};
use crate::price::{PriceBook, PriceKey, RateError};
use crate::time::{Period, Slot};
use crate::tokens::{TokenClass, TokenCounts, TokenError};

/// Why a period cannot be billed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InvoiceError {
    /// Usage that is not of this period.
    #[error("usage of the slot {0:?} is outside of the period")]
    OutsidePeriod(Slot),
    /// A quantity could not be charged.
    #[error(transparent)]
    Rate(#[from] RateError),
    /// A sum of money is out of bounds.
    #[error(transparent)]
    Money(#[from] MoneyError),
    /// A sum of tokens is out of bounds.
    #[error(transparent)]
    Tokens(#[from] TokenError),
}

/// Tokens of one project and model in one slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotUsage {
    /// Whose part of the tenant.
    pub project: ProjectId,
    /// What was used.
    pub model: ModelId,
    /// When.
    pub slot: Slot,
    /// How much.
    pub counts: TokenCounts,
    /// Whether it came after its period could have been closed.
    pub late: bool,
}

/// A correction of usage, and the id that it has in control.
#[derive(Debug, Clone, Copy)]
pub struct Correction<'a> {
    /// Its id.
    pub id: &'a str,
    /// What it corrects.
    pub made: &'a UsageAdjustment,
    /// Whether it came after its period could have been closed.
    pub late: bool,
}

/// A quantity at one price. A price that changes within the period makes two lines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    /// Whose part of the tenant.
    pub project: ProjectId,
    /// What was used.
    pub model: ModelId,
    /// Which sort of tokens.
    pub class: TokenClass,
    /// Tokens.
    pub tokens: u64,
    /// Per million tokens.
    pub per_million: Decimal,
    /// Tokens × price, exactly: 12 decimals at most.
    pub exact: Money,
    /// The same, rounded half-even to the currency's minor unit.
    pub amount: Money,
    /// Whether this is usage that came after its period could have been closed.
    pub late: bool,
}

/// What one correction changes of one class. Never merged with usage, nor with another correction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AdjustmentLine {
    /// Its id in control.
    pub id: String,
    /// Why it was made.
    pub reason: String,
    /// Whose part of the tenant.
    pub project: ProjectId,
    /// What was used.
    pub model: ModelId,
    /// Which sort of tokens.
    pub class: TokenClass,
    /// The slot that it corrects.
    pub slot: Slot,
    /// Tokens that are added, or taken away.
    pub tokens: i64,
    /// Per million tokens, in that slot; absent where there is no price, and then nothing is charged: an alarm.
    pub per_million: Option<Decimal>,
    /// Tokens × price, exactly.
    pub exact: Money,
    /// The same, rounded half-even.
    pub amount: Money,
    /// Whether it came after its period could have been closed.
    pub late: bool,
}

/// A quantity that has no price. An alarm; never zero money.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unrated {
    /// Whose part of the tenant.
    pub project: ProjectId,
    /// What was used.
    pub model: ModelId,
    /// Which sort of tokens.
    pub class: TokenClass,
    /// Tokens.
    pub tokens: u64,
    /// Whether it came after its period could have been closed.
    pub late: bool,
}

/// What a period costs so far.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Preview {
    /// What it is charged in.
    pub currency: Currency,
    /// By project, model, class and price; what came late apart.
    pub lines: Vec<Line>,
    /// Corrections, by id and class.
    pub adjustments: Vec<AdjustmentLine>,
    /// What has no price.
    pub unrated: Vec<Unrated>,
    /// Tokens × price over all lines and corrections, before any rounding.
    pub exact: Money,
    /// What rounding each line left over, in minor units: a line of its own, so that the total is `exact` rounded once.
    pub rounding: Money,
    /// Σ of the amounts of lines and corrections, and `rounding`.
    pub total: Money,
}

/// The bill of a period: a pure function of what was used, what was corrected, the prices and the period.
pub fn preview<'a>(
    usage: impl IntoIterator<Item = SlotUsage>,
    corrections: impl IntoIterator<Item = Correction<'a>>,
    currency: Currency,
    book: &PriceBook,
    period: &Period,
) -> Result<Preview, InvoiceError> {
    let mut quantities: BTreeMap<(ProjectId, ModelId, TokenClass, Option<Decimal>, bool), TokenCounts> =
        BTreeMap::new();
    for SlotUsage { project, model, slot, counts, late } in usage {
        within(period, slot)?;
        for class in TokenClass::ALL.into_iter().filter(|class| counts.of(*class) > 0) {
            let price = book.price(&PriceKey { model: model.clone(), class, currency }, slot);
            let sum = quantities.entry((project.clone(), model.clone(), class, price, late)).or_default();
            *sum = sum.checked_add(TokenCounts::only(class, counts.of(class)))?;
        }
    }
    let (mut lines, mut unrated) = (Vec::new(), Vec::new());
    for ((project, model, class, price, late), counts) in quantities {
        let tokens = counts.of(class);
        match price {
            Some(per_million) => {
                let exact = crate::price::charge(tokens, per_million, currency).map_err(RateError::from)?;
                let amount = exact.rounded().0;
                lines.push(Line { project, model, class, tokens, per_million, exact, amount, late });
            }
            None => unrated.push(Unrated { project, model, class, tokens, late }),
        }
    }
    let mut adjustments = Vec::new();
    for correction in corrections {
        within(period, correction.made.slot())?;
        adjusted(correction, currency, book, &mut adjustments)?;
    }
    adjustments.sort_by(|a, b| (&a.id, a.class).cmp(&(&b.id, b.class)));
    let used = lines.iter().map(|line| (line.exact, line.amount));
    let all: Vec<_> = used.chain(adjustments.iter().map(|line| (line.exact, line.amount))).collect();
    let zero = Money::zero(currency);
    let exact = all.iter().try_fold(zero, |sum, (exact, _)| sum.checked_add(*exact))?;
    let rounded = all.iter().try_fold(zero, |sum, (_, amount)| sum.checked_add(*amount))?;
    let total = exact.rounded().0;
    let rounding = Money::new(total.amount() - rounded.amount(), currency)?;
    Ok(Preview { currency, lines, adjustments, unrated, exact, rounding, total })
}

fn within(period: &Period, slot: Slot) -> Result<(), InvoiceError> {
    if period.contains(slot.start()) { Ok(()) } else { Err(InvoiceError::OutsidePeriod(slot)) }
}

/// The lines of one correction: a class each.
fn adjusted(
    Correction { id, made, late }: Correction<'_>,
    currency: Currency,
    book: &PriceBook,
    lines: &mut Vec<AdjustmentLine>,
) -> Result<(), InvoiceError> {
    for class in TokenClass::ALL.into_iter().filter(|class| made.deltas.of(*class) != 0) {
        let tokens = made.deltas.of(class);
        let per_million = book.price(&PriceKey { model: made.model.clone(), class, currency }, made.slot());
        let exact = per_million.map(|price| crate::price::charge_signed(tokens, price, currency)).transpose()?;
        let exact = exact.unwrap_or_else(|| Money::zero(currency));
        lines.push(AdjustmentLine {
            id: id.to_owned(),
            reason: made.reason.clone(),
            project: made.project.clone(),
            model: made.model.clone(),
            class,
            slot: made.slot(),
            tokens,
            per_million,
            exact,
            amount: exact.rounded().0,
            late,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Corrected, Deltas};
    use crate::time::Micros;
    use proptest::prelude::*;

    fn usd() -> Currency {
        "USD".parse().unwrap()
    }

    fn period() -> Period {
        Period::month_of(Micros(0), chrono_tz::UTC).unwrap()
    }

    fn book() -> PriceBook {
        let mut book = PriceBook::default();
        let mut set = |class, from, price: &str| {
            let key = PriceKey { model: "llama".parse().unwrap(), class, currency: usd() };
            book.set(key, Slot(from), price.parse().unwrap()).unwrap();
        };
        set(TokenClass::Input, 0, "0.25");
        set(TokenClass::Output, 0, "1.5");
        set(TokenClass::Output, 10, "3");
        book
    }

    fn used(model: &str, slot: i64, input: u64, output: u64) -> SlotUsage {
        let counts = TokenCounts { input, output, ..Default::default() };
        SlotUsage {
            project: "search".parse().unwrap(),
            model: model.parse().unwrap(),
            slot: Slot(slot),
            counts,
            late: false,
        }
    }

    #[test]
    fn a_person_can_check_it_by_hand() {
        let usage = [
            used("llama", 1, 1_000_000, 30_000),
            used("llama", 9, 20_000, 0),
            used("llama", 10, 0, 5_000),
            used("mistral", 2, 7, 0),
        ];
        let bill = preview(usage, [], usd(), &book(), &period()).unwrap();
        let shown: Vec<String> = bill
            .lines
            .iter()
            .map(|line| {
                format!("{} {} × {} = {}", line.class.as_str(), line.tokens, line.per_million, line.amount.amount())
            })
            .collect();
        assert_eq!(shown, ["input 1020000 × 0.25 = 0.26", "output 30000 × 1.5 = 0.04", "output 5000 × 3 = 0.02"]);
        // 0.255 + 0.045 + 0.015 = 0.315, half-even 0.32; the lines alone are 0.32.
        assert_eq!((bill.exact.amount().to_string(), bill.total.amount().to_string()), ("0.315".into(), "0.32".into()));
        assert_eq!(bill.rounding, Money::zero(usd()));
        assert_eq!(bill.unrated.len(), 1);
        assert_eq!((bill.unrated[0].model.as_str(), bill.unrated[0].tokens), ("mistral", 7));
    }

    #[test]
    fn what_rounding_leaves_is_a_line() {
        let usage = [used("llama", 1, 16_000, 2_600), used("llama", 10, 0, 1_300)];
        let bill = preview(usage, [], usd(), &book(), &period()).unwrap();
        // 0.004, 0.0039 and 0.0039 round to nothing each; together they are 0.0118.
        assert!(bill.lines.iter().all(|line| line.amount == Money::zero(usd())));
        assert_eq!(bill.total.amount().to_string(), "0.01");
        assert_eq!(bill.rounding, bill.total);
    }

    #[test]
    fn usage_of_another_period_is_an_error() {
        let late = period().to;
        assert_eq!(
            preview([used("llama", late.0, 1, 1)], [], usd(), &book(), &period()),
            Err(InvoiceError::OutsidePeriod(late))
        );
    }

    fn made(slot: i64, input: i64, output: i64) -> UsageAdjustment {
        let of = Corrected {
            tenant: "acme".parse().unwrap(),
            project: "search".parse().unwrap(),
            model: "llama".parse().unwrap(),
            slot: Slot(slot),
        };
        UsageAdjustment::new(of, Deltas { input, output, ..Deltas::default() }, "counted twice")
    }

    #[test]
    fn corrections_and_late_usage_are_lines_of_their_own() {
        let late = SlotUsage { late: true, ..used("llama", 1, 400_000, 0) };
        let (less, more) = (made(10, 0, -1_000_000), made(2, 40_000, 0));
        let correction = |id, made| Correction { id, made, late: false };
        let corrections = [correction("b", &less), correction("a", &more)];
        let bill = preview([used("llama", 1, 1_000_000, 0), late], corrections, usd(), &book(), &period()).unwrap();
        let lines: Vec<_> = bill.lines.iter().map(|line| (line.tokens, line.late)).collect();
        assert_eq!(lines, [(1_000_000, false), (400_000, true)]);
        let shown: Vec<_> = bill
            .adjustments
            .iter()
            .map(|line| (line.id.as_str(), line.tokens, line.exact.amount().to_string()))
            .collect();
        assert_eq!(
            shown,
            [("a", 40_000, "0.01".to_owned()), ("b", -1_000_000, "-3".to_owned())],
            "at the slot's price"
        );
        // 0.25 + 0.1 + 0.01 − 3
        assert_eq!(bill.total.amount().to_string(), "-2.64");
        let outside = made(period().to.0, 1, 0);
        assert!(preview([], [correction("c", &outside)], usd(), &book(), &period()).is_err());
        let unpriced = UsageAdjustment { model: "mistral".parse().unwrap(), ..made(1, 5, 0) };
        let bill = preview([], [correction("d", &unpriced)], usd(), &book(), &period()).unwrap();
        assert_eq!((bill.adjustments[0].per_million, bill.total), (None, Money::zero(usd())));
    }

    proptest! {
        /// Σ lines + Σ corrections + rounding = total; and one that reverses another leaves nothing of it.
        #[test]
        fn corrections_add_up(usage in prop::collection::vec((0i64..40, 0u64..9_000_000), 0..9), deltas in prop::collection::vec((0i64..40, -9_000_000i64..9_000_000, -9_000_000i64..9_000_000), 0..9)) {
            let usage: Vec<_> = usage.into_iter().map(|(slot, output)| used("llama", slot, 7, output)).collect();
            let done: Vec<_> = deltas.iter().map(|&(slot, input, output)| made(slot, input, output)).collect();
            let ids: Vec<_> = (0..2 * done.len()).map(|n| n.to_string()).collect();
            let corrections = done.iter().zip(&ids).map(|(made, id)| Correction { id, made, late: false });
            let bill = preview(usage.clone(), corrections, usd(), &book(), &period()).unwrap();
            let amounts = bill.lines.iter().map(|line| line.amount.amount()).chain(bill.adjustments.iter().map(|line| line.amount.amount()));
            prop_assert_eq!(amounts.sum::<Decimal>() + bill.rounding.amount(), bill.total.amount());
            let reversed: Vec<_> = deltas.iter().map(|&(slot, input, output)| made(slot, -input, -output)).collect();
            let both = done.iter().chain(&reversed).zip(&ids).map(|(made, id)| Correction { id, made, late: false });
            let nothing = preview(usage.clone(), both, usd(), &book(), &period()).unwrap();
            let without = preview(usage, [], usd(), &book(), &period()).unwrap();
            prop_assert_eq!((nothing.exact, nothing.total), (without.exact, without.total));
        }

        /// Σ lines = total, whatever the usage, its order, and how it is cut into parts.
        #[test]
        fn the_lines_are_the_total(usage in prop::collection::vec((0i64..40, 0u64..9_000_000_000, 0u64..9_000_000), 0..40), cut in 1u64..9) {
            let whole: Vec<_> = usage.iter().map(|&(slot, input, output)| used("llama", slot, input, output)).collect();
            let bill = preview(whole, [], usd(), &book(), &period()).unwrap();
            let amounts = bill.lines.iter().map(|line| line.amount.amount()).sum::<Decimal>();
            prop_assert_eq!(amounts + bill.rounding.amount(), bill.total.amount());
            prop_assert!((bill.exact.amount() - bill.total.amount()).abs() <= "0.005".parse().unwrap());
            prop_assert!(bill.lines.iter().all(|line| line.amount.amount().scale() <= 2) && bill.rounding.amount().scale() <= 2);
            let parts = usage.iter().rev().flat_map(|&(slot, input, output)| {
                [used("llama", slot, input / cut, output / cut), used("llama", slot, input - input / cut, output - output / cut)]
            });
            prop_assert_eq!(preview(parts, [], usd(), &book(), &period()).unwrap(), bill);
        }
    }
}

//! The figures that people ask for. The API gives them as JSON, the console as a page: both from here.

pub(crate) mod adjustments;
pub(crate) mod balance;
pub(crate) mod costs;
pub(crate) mod dead_letters;
pub(crate) mod groups;
pub(crate) mod late;
pub(crate) mod preview;
pub(crate) mod range;
pub(crate) mod reconciliation;
pub(crate) mod requests;
pub(crate) mod usage;

use chrono::{DateTime, Utc};
use ledger::money::Money;
use ledger::time::{Micros, Slot};
use rust_decimal::Decimal;

use crate::problem::Problem;

/// A time of the calendar.
pub(crate) fn instant(time: Micros) -> Result<DateTime<Utc>, Problem> {
    time.to_utc().map_err(|error| Problem::internal(&error))
}

/// The start of a slot.
pub(crate) fn start(slot: Slot) -> Result<DateTime<Utc>, Problem> {
    instant(slot.start())
}

/// An exact amount, without zeros at its end.
pub(crate) fn exact(money: Money) -> String {
    money.amount().normalize().to_string()
}

/// An amount in whole minor units, with all of its places: `0.30`.
pub(crate) fn minor(money: Money) -> String {
    let mut amount: Decimal = money.amount();
    // Only zeros are added: what comes here is rounded already, and what is not keeps its places.
    if amount.scale() < money.currency().minor_unit() {
        amount.rescale(money.currency().minor_unit());
    }
    amount.to_string()
}

/// A count beside corrections, which may be below zero.
pub(crate) fn signed(count: u64) -> Result<i64, Problem> {
    i64::try_from(count).map_err(|error| Problem::internal(&error))
}

/// Sums in the ledger's bounds: beyond them is a fault, never a wrong figure.
pub(crate) fn add(sum: u64, more: u64) -> Result<u64, Problem> {
    sum.checked_add(more).ok_or_else(|| Problem::internal(&"a sum of tokens overflowed"))
}

/// [`add`], where corrections may be below zero.
pub(crate) fn add_signed(sum: i64, more: i64) -> Result<i64, Problem> {
    sum.checked_add(more).ok_or_else(|| Problem::internal(&"a sum of tokens overflowed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_keep_their_places() {
        let money = |text: &str, currency: &str| Money::new(text.parse().unwrap(), currency.parse().unwrap()).unwrap();
        assert_eq!(minor(money("0.3", "USD")), "0.30");
        assert_eq!(minor(money("12", "JPY")), "12");
        assert_eq!(minor(money("0", "EUR")), "0.00");
        assert_eq!(exact(money("0.300000", "USD")), "0.3");
        assert_eq!(exact(money("0", "USD")), "0");
    }
}

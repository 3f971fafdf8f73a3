//! The price book: effective-dated prices per model, token class and currency; and what usage of a slot costs by it.

use std::collections::BTreeMap;

use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::ids::ModelId;
use crate::money::{Currency, Money, MoneyError};
use crate::time::Slot;
use crate::tokens::{TokenClass, TokenCounts, TokenError};

/// Decimals of a price per million tokens.
pub const PRICE_SCALE: u32 = 6;

/// The highest price per million tokens.
pub const PRICE_MAX: u32 = 1_000_000;

/// Tokens that one price is for.
pub const PER_TOKENS: u32 = 1_000_000;

/// Why a price is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PriceError {
    /// Negative, above [`PRICE_MAX`], or with more than [`PRICE_SCALE`] decimals.
    #[error("a price of {0} per million tokens is refused: use 0 to {PRICE_MAX} with at most {PRICE_SCALE} decimals")]
    OutOfBounds(Decimal),
}

/// Why usage cannot be rated. An unknown price is no error: it is an [`Rated::unrated`] count.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RateError {
    /// The charge is out of bounds.
    #[error(transparent)]
    Money(#[from] MoneyError),
    /// The counts are out of bounds.
    #[error(transparent)]
    Tokens(#[from] TokenError),
}

/// What a price is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PriceKey {
    /// The model's public name.
    pub model: ModelId,
    /// The token class.
    pub class: TokenClass,
    /// The currency that is charged.
    pub currency: Currency,
}

/// Every price with the slot from which it holds. A price holds until the next one of its key begins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PriceBook {
    prices: BTreeMap<PriceKey, BTreeMap<Slot, Decimal>>,
}

/// What some usage costs, and what of it has no price.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rated {
    /// The exact charge of all that has a price.
    pub charge: Money,
    /// Tokens without a price, per class: an alarm and a line of its own, never zero money.
    pub unrated: TokenCounts,
}

impl PriceBook {
    /// Sets the price per million tokens from a slot on; a price that began there before is replaced.
    pub fn set(&mut self, key: PriceKey, from: Slot, per_million: Decimal) -> Result<(), PriceError> {
        let price = per_million.normalize();
        if price < Decimal::ZERO || price > Decimal::from(PRICE_MAX) || price.scale() > PRICE_SCALE {
            return Err(PriceError::OutOfBounds(per_million));
        }
        self.prices.entry(key).or_default().insert(from, price);
        Ok(())
    }

    /// The price per million tokens in a slot, if there is one. Never a default.
    pub fn price(&self, key: &PriceKey, slot: Slot) -> Option<Decimal> {
        self.prices.get(key)?.range(..=slot).next_back().map(|(_, &price)| price)
    }

    /// What `counts` of a model in one slot cost: the sum over the classes of tokens × price ÷ 1,000,000, exactly.
    pub fn rate(
        &self,
        model: &ModelId,
        currency: Currency,
        slot: Slot,
        counts: TokenCounts,
    ) -> Result<Rated, RateError> {
        let mut rated = Rated { charge: Money::zero(currency), unrated: TokenCounts::default() };
        for class in TokenClass::ALL {
            let tokens = counts.of(class);
            if tokens == 0 {
                continue;
            }
            match self.price(&PriceKey { model: model.clone(), class, currency }, slot) {
                Some(price) => rated.charge = rated.charge.checked_add(charge(tokens, price, currency)?)?,
                None => rated.unrated = rated.unrated.checked_add(TokenCounts::only(class, tokens))?,
            }
        }
        Ok(rated)
    }
}

/// What a correction of tokens costs: as [`PriceBook::rate`], and below zero where they are taken away.
///
/// # Errors
/// A charge out of bounds.
pub fn charge_signed(tokens: i64, per_million: Decimal, currency: Currency) -> Result<Money, MoneyError> {
    let charged = charge(tokens.unsigned_abs(), per_million, currency)?;
    if tokens < 0 { Money::new(-charged.amount(), currency) } else { Ok(charged) }
}

pub(crate) fn charge(tokens: u64, per_million: Decimal, currency: Currency) -> Result<Money, MoneyError> {
    // In millionths of millionths, so that the division by a million is a shift of the scale and nothing is rounded.
    let units = (per_million * Decimal::from(PER_TOKENS)).trunc().mantissa();
    let exact = i128::from(tokens).checked_mul(units).ok_or(MoneyError::OutOfBounds)?;
    let amount =
        Decimal::try_from_i128_with_scale(exact, crate::money::AMOUNT_SCALE).map_err(|_| MoneyError::OutOfBounds)?;
    Money::new(amount, currency)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn usd() -> Currency {
        "USD".parse().unwrap()
    }

    fn model() -> ModelId {
        ModelId::new("llama-3.1-8b").unwrap()
    }

    fn key(class: TokenClass) -> PriceKey {
        PriceKey { model: model(), class, currency: usd() }
    }

    #[test]
    fn a_price_holds_from_its_slot_until_the_next() {
        let mut book = PriceBook::default();
        book.set(key(TokenClass::Input), Slot(10), "0.5".parse().unwrap()).unwrap();
        book.set(key(TokenClass::Input), Slot(20), "0.7".parse().unwrap()).unwrap();
        let at = |slot| book.price(&key(TokenClass::Input), Slot(slot)).map(|price| price.to_string());
        assert_eq!([at(9), at(10), at(19), at(20)], [None, Some("0.5".into()), Some("0.5".into()), Some("0.7".into())]);
    }

    #[test]
    fn what_has_no_price_is_unrated_and_never_free() {
        let mut book = PriceBook::default();
        book.set(key(TokenClass::Input), Slot(0), "0.25".parse().unwrap()).unwrap();
        let counts = TokenCounts { input: 3, output: 5, ..Default::default() };
        let rated = book.rate(&model(), usd(), Slot(1), counts).unwrap();
        assert_eq!(rated.charge.amount().to_string(), "0.00000075");
        assert_eq!(rated.unrated, TokenCounts { output: 5, ..Default::default() });
        let euro = book.rate(&model(), "EUR".parse().unwrap(), Slot(1), counts).unwrap();
        assert_eq!(euro.unrated, counts);
    }

    #[test]
    fn prices_out_of_bounds_are_refused() {
        let mut book = PriceBook::default();
        for bad in ["-0.1", "1000000.1", "0.0000001"] {
            assert!(book.set(key(TokenClass::Output), Slot(0), bad.parse().unwrap()).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_charge_is_the_integer_product(tokens in 1u64..1_000_000_000_000, micros in 0u64..1_000_000_000) {
            let mut book = PriceBook::default();
            book.set(key(TokenClass::Output), Slot(0), Decimal::new(micros as i64, 6)).unwrap();
            let rated = book.rate(&model(), usd(), Slot(0), TokenCounts { output: tokens, ..Default::default() });
            let units = i128::from(tokens) * i128::from(micros);
            if units <= 10_000_000_000 * 1_000_000_000_000 {
                let expected = Decimal::from_i128_with_scale(units, 12).normalize();
                prop_assert_eq!(rated.unwrap().charge.amount(), expected);
            } else {
                prop_assert_eq!(rated, Err(RateError::Money(MoneyError::OutOfBounds)));
            }
        }

        #[test]
        fn rating_parts_is_rating_the_whole(a in 0u64..1_000_000_000, b in 0u64..1_000_000_000, micros in 0i64..1_000_000_000) {
            let mut book = PriceBook::default();
            book.set(key(TokenClass::Output), Slot(0), Decimal::new(micros, 6)).unwrap();
            let rate = |output| book.rate(&model(), usd(), Slot(5), TokenCounts { output, ..Default::default() }).unwrap().charge;
            prop_assert_eq!(rate(a).checked_add(rate(b)).unwrap(), rate(a + b));
        }
    }
}

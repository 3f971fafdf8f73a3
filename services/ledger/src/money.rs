//! Money as bounded decimals, rounded in one place. Never a float, never a silent wrap.

use std::fmt;
use std::str::FromStr;

use rust_decimal::{Decimal, RoundingStrategy};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

/// Decimals of an exact amount: a price has 6 per million tokens, so a charge is exact at 12.
pub const AMOUNT_SCALE: u32 = 12;

/// The largest amount, either sign: what a 96-bit decimal holds at [`AMOUNT_SCALE`], with room for sums.
pub const AMOUNT_MAX: Decimal = Decimal::from_parts(1_410_065_408, 2, 0, false, 0);

/// Why money is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MoneyError {
    /// Not a currency that Tollgate knows the minor unit of.
    #[error("{0:?} is no known ISO 4217 currency code")]
    Currency(String),
    /// Above [`AMOUNT_MAX`], or a sum or product that went above it.
    #[error("an amount is out of bounds (at most {AMOUNT_MAX} of a currency)")]
    OutOfBounds,
    /// More decimals than are kept.
    #[error("an amount has {0} decimals, at most {AMOUNT_SCALE} are kept exactly")]
    TooPrecise(u32),
    /// Two currencies in one sum.
    #[error("{0} and {1} cannot be added")]
    Mixed(Currency, Currency),
}

/// An ISO 4217 currency, with its minor unit.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Currency([u8; 3]);

/// Decimals of the minor unit, where they are not 2 (ISO 4217, list one).
const NOT_TWO: &[(&str, u32)] = &[
    ("BHD", 3),
    ("CLP", 0),
    ("ISK", 0),
    ("JOD", 3),
    ("JPY", 0),
    ("KRW", 0),
    ("KWD", 3),
    ("OMR", 3),
    ("TND", 3),
    ("VND", 0),
];

/// The currencies with 2 decimals that are taken. XTS is ISO's for testing, which nobody can pay in: a tenant that is not billed has it.
const WITH_TWO: &[&str] = &[
    "AED", "AUD", "BRL", "CAD", "CHF", "CNY", "CZK", "DKK", "EUR", "GBP", "HKD", "HUF", "IDR", "ILS", "INR", "MXN",
    "MYR", "NOK", "NZD", "PHP", "PLN", "RON", "SAR", "SEK", "SGD", "THB", "TRY", "TWD", "UAH", "USD", "XTS", "ZAR",
];

impl Currency {
    /// Its ISO 4217 code.
    pub fn code(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// Decimals of the minor unit: 2 for cents.
    pub fn minor_unit(&self) -> u32 {
        NOT_TWO.iter().find(|(code, _)| *code == self.code()).map_or(2, |&(_, decimals)| decimals)
    }
}

impl FromStr for Currency {
    type Err = MoneyError;
    fn from_str(code: &str) -> Result<Self, MoneyError> {
        let known = WITH_TWO.contains(&code) || NOT_TWO.iter().any(|(known, _)| *known == code);
        match (known, code.as_bytes()) {
            (true, &[a, b, c]) => Ok(Self([a, b, c])),
            _ => Err(MoneyError::Currency(code.to_owned())),
        }
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

impl fmt::Debug for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

impl Serialize for Currency {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.code())
    }
}

impl<'de> Deserialize<'de> for Currency {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// An exact amount of one currency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Money {
    /// At most [`AMOUNT_SCALE`] decimals, at most [`AMOUNT_MAX`].
    amount: Decimal,
    /// What of.
    currency: Currency,
}

impl Money {
    /// Checks the bounds.
    pub fn new(amount: Decimal, currency: Currency) -> Result<Self, MoneyError> {
        let amount = amount.normalize();
        if amount.scale() > AMOUNT_SCALE {
            return Err(MoneyError::TooPrecise(amount.scale()));
        }
        if amount.abs() > AMOUNT_MAX {
            return Err(MoneyError::OutOfBounds);
        }
        Ok(Self { amount, currency })
    }

    /// Nothing, of a currency.
    pub const fn zero(currency: Currency) -> Self {
        Self { amount: Decimal::ZERO, currency }
    }

    /// The exact amount.
    pub const fn amount(&self) -> Decimal {
        self.amount
    }

    /// The currency.
    pub const fn currency(&self) -> Currency {
        self.currency
    }

    /// Both together; an error for two currencies.
    pub fn checked_add(self, other: Self) -> Result<Self, MoneyError> {
        if self.currency != other.currency {
            return Err(MoneyError::Mixed(self.currency, other.currency));
        }
        let sum = self.amount.checked_add(other.amount).ok_or(MoneyError::OutOfBounds)?;
        Self::new(sum, self.currency)
    }

    /// The amount rounded half-even to the minor unit, and the residual: rounded + residual is this amount, exactly.
    pub fn rounded(self) -> (Self, Self) {
        let rounded =
            self.amount.round_dp_with_strategy(self.currency.minor_unit(), RoundingStrategy::MidpointNearestEven);
        let part = |amount| Self { amount, currency: self.currency };
        (part(rounded.normalize()), part((self.amount - rounded).normalize()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn usd(text: &str) -> Money {
        Money::new(text.parse().unwrap(), "USD".parse().unwrap()).unwrap()
    }

    #[test]
    fn rounding_is_half_even_and_keeps_the_residual() {
        for (exact, rounded) in
            [("0.005", "0"), ("0.015", "0.02"), ("0.0250000001", "0.03"), ("-0.005", "0"), ("1.335", "1.34")]
        {
            let (whole, residual) = usd(exact).rounded();
            assert_eq!(whole, usd(rounded), "{exact}");
            assert_eq!(whole.checked_add(residual).unwrap(), usd(exact));
        }
        let yen = Money::new("2.5".parse().unwrap(), "JPY".parse().unwrap()).unwrap();
        assert_eq!(yen.rounded().0.amount(), Decimal::from(2));
    }

    #[test]
    fn what_is_out_of_bounds_is_an_error() {
        assert_eq!(AMOUNT_MAX, Decimal::from(10_000_000_000u64));
        let most = Money::new(AMOUNT_MAX, "USD".parse().unwrap()).unwrap();
        assert_eq!(most.checked_add(usd("0.01")), Err(MoneyError::OutOfBounds));
        let fine = Money::new("0.0000000000001".parse().unwrap(), "USD".parse().unwrap());
        assert_eq!(fine, Err(MoneyError::TooPrecise(13)));
        let euro = Money::zero("EUR".parse().unwrap());
        assert!(matches!(usd("1").checked_add(euro), Err(MoneyError::Mixed(..))));
        assert!("usd".parse::<Currency>().is_err());
    }

    proptest! {
        #[test]
        fn rounded_and_residual_make_the_amount(units in -1_000_000_000_000_000_000i64..1_000_000_000_000_000_000) {
            let exact = Money::new(Decimal::new(units, AMOUNT_SCALE), "USD".parse().unwrap()).unwrap();
            let (whole, residual) = exact.rounded();
            prop_assert!(whole.amount().scale() <= 2);
            prop_assert!(residual.amount().abs() <= Decimal::new(5, 3));
            prop_assert_eq!(whole.checked_add(residual).unwrap(), exact);
        }
    }
}

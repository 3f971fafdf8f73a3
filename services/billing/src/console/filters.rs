//! What templates call to show figures and times.
#![expect(unreachable_pub, reason = "the attribute makes a public struct of each filter")]

use chrono::{DateTime, Utc};
use ledger::tokens::TokenClass;

/// Digits in groups of three.
#[askama::filter_fn]
pub(in crate::console) fn thousands(number: &u64, _: &dyn askama::Values) -> askama::Result<String> {
    Ok(grouped(*number))
}

/// The same of a number that may be below zero.
#[askama::filter_fn]
pub(in crate::console) fn signed(number: &i64, _: &dyn askama::Values) -> askama::Result<String> {
    let sign = if *number < 0 { "\u{2212}" } else { "" };
    Ok(format!("{sign}{}", grouped(number.unsigned_abs())))
}

/// An amount of money as text, with the sign that people write.
#[askama::filter_fn]
pub(in crate::console) fn amount(amount: &str, _: &dyn askama::Values) -> askama::Result<String> {
    Ok(amount.replace('-', "\u{2212}"))
}

/// A time of the day before a person's eyes, UTC.
#[askama::filter_fn]
pub(in crate::console) fn time(time: &DateTime<Utc>, _: &dyn askama::Values) -> askama::Result<String> {
    Ok(time.format("%Y-%m-%d %H:%M:%S").to_string())
}

/// The name of a token class.
#[askama::filter_fn]
pub(in crate::console) fn class(class: &TokenClass, _: &dyn askama::Values) -> askama::Result<&'static str> {
    Ok(match class {
        TokenClass::Input => "input",
        TokenClass::CachedInput => "cached input",
        TokenClass::Output => "output",
        TokenClass::Reasoning => "reasoning",
    })
}

fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            // A narrow space, which does not break: no language takes it for a decimal point.
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_come_in_groups_of_three() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1\u{202f}000"), (1_234_567, "1\u{202f}234\u{202f}567")] {
            assert_eq!(grouped(number), text);
        }
    }
}

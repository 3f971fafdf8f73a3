//! Prometheus' text form, as far as the sum of a metric over its labels: what cannot be read is passed over.

/// The sum of the samples with this name; none if there is none. A value that is no finite number makes it none too: what
/// is absurd says nothing.
pub fn sum(text: &str, name: &str) -> Option<f64> {
    let values = text.lines().filter_map(|line| sample(line, name));
    let sum = values.fold(None, |sum: Option<f64>, value| Some(sum.unwrap_or(0.0) + value))?;
    sum.is_finite().then_some(sum)
}

/// The largest of the samples with this name, likewise.
pub fn max(text: &str, name: &str) -> Option<f64> {
    let values = text.lines().filter_map(|line| sample(line, name));
    let max = values.fold(None, |max: Option<f64>, value| {
        Some(max.map_or(value, |max| if value.is_nan() || value > max { value } else { max }))
    })?;
    max.is_finite().then_some(max)
}

/// The value of a line that is a sample of this name: `name{labels} value timestamp`, labels and timestamp left out or not.
fn sample(line: &str, name: &str) -> Option<f64> {
    let rest = line.trim_start().strip_prefix(name)?;
    let value = match rest.strip_prefix('{') {
        Some(labels) => after_labels(labels)?,
        // A longer name begins alike.
        None => rest.strip_prefix([' ', '\t'])?,
    };
    value.split_whitespace().next()?.parse().ok()
}

/// What follows the closing brace. One within quotes is none.
fn after_labels(labels: &str) -> Option<&str> {
    let (mut quoted, mut escaped) = (false, false);
    for (at, c) in labels.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            '}' if !quoted => return labels.get(at + 1..),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn samples_are_found_whatever_stands_around_them() {
        let text = "# HELP a:b Help with a:b 7\n# TYPE a:b gauge\na:b{engine=\"0\",m=\"x}\\\"y\"} 2.0\na:b{engine=\"1\"} 3 1700000000\n  a:b 1e0\na:bc 100\na:b_total{} 50\na:b\na:b{ 9\na:b{} x\nc NaN\nc 1\nd +Inf\ne -1\nf 0.25\r\n";
        assert_eq!(sum(text, "a:b"), Some(6.0));
        assert_eq!(max(text, "a:b"), Some(3.0));
        assert_eq!((sum(text, "c"), max(text, "c"), sum(text, "d"), max(text, "d")), (None, None, None, None));
        assert_eq!((sum(text, "e"), max(text, "f"), sum(text, "g")), (Some(-1.0), Some(0.25), None));
        assert_eq!(sum("", "a"), None);
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "\\PC{0,60}|(a|\\{|\\}|\"|\\\\| |\n|1){0,30}") {
            let _ = (sum(&text, "a"), max(&text, "a"));
        }
    }
}

//! Just enough of ClickHouse's SQL to see how a statement is to be run: its bare words, and where its FORMAT is.

/// How a statement is to be run.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Statement<'a> {
    /// `INSERT INTO t (…) FORMAT X`, with the data in the body: the statement without its FORMAT clause, and X.
    Insert { statement: &'a str, format: &'a str },
    /// One that only reads and gives rows; with its FORMAT clause, if it has one.
    Select { format: Option<&'a str> },
    /// Anything else.
    Other,
}

/// What makes an INSERT more than a statement with its data in the body.
const WITH_OWN_ROWS: &[&str] = &["select", "with", "values", "input", "infile"];
/// What makes a SELECT more than rows: a file on the server, a write, a row that belongs to no piece.
const MORE_THAN_ROWS: &[&str] = &["outfile", "insert", "totals"];

/// Looks at a statement. What is not understood is [`Statement::Other`], which is always right, only less economical.
/// Keeps nothing of it: a statement with its values may be large.
pub(super) fn classify(sql: &str) -> Statement<'_> {
    let is = |word: &str, other: &str| word.eq_ignore_ascii_case(other);
    let mut words = bare_words(sql);
    let first = words.next().map_or("", |(_, word)| word);
    let inserts = is(first, "insert");
    if !inserts && !is(first, "select") && !is(first, "with") {
        return Statement::Other;
    }
    let refused = if inserts { WITH_OWN_ROWS } else { MORE_THAN_ROWS };
    let (mut before, mut last, mut has_format) = (None, None, false);
    for (at, word) in words {
        if refused.iter().any(|other| is(word, other)) {
            return Statement::Other;
        }
        has_format |= is(word, "format");
        (before, last) = (last, Some((at, word)));
    }
    // `FORMAT X` as the last two words, with nothing but white space or a semicolon after them.
    let format = before.zip(last).filter(|((_, word), _)| is(word, "format")).and_then(|((start, _), (at, name))| {
        let after = sql[at + name.len()..].trim();
        (after.is_empty() || after == ";").then_some((start, name))
    });
    match format {
        Some((start, format)) if inserts => Statement::Insert { statement: &sql[..start], format },
        Some((_, format)) => Statement::Select { format: Some(format) },
        None if inserts || has_format => Statement::Other,
        None => Statement::Select { format: None },
    }
}

/// The words outside of quotes and comments, with where they begin.
fn bare_words(sql: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < sql.len() {
            let rest = &sql.as_bytes()[at..];
            at += match rest {
                [quote @ (b'\'' | b'"' | b'`'), ..] => quoted(rest, *quote),
                [b'-', b'-', ..] | [b'#', b' ' | b'!', ..] => until(rest, b"\n"),
                [b'/', b'*', ..] => until(rest, b"*/"),
                [c, ..] if is_word(*c) => {
                    let length = rest.iter().take_while(|c| is_word(**c)).count();
                    let start = at;
                    at += length;
                    return Some((start, &sql[start..at]));
                }
                _ => 1,
            };
        }
        None
    })
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// The length of a quoted piece; a quote inside it is doubled or has a backslash before it.
fn quoted(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            c if c == quote && rest.get(at + 1) == Some(&quote) => at += 2,
            c if c == quote => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

fn until(rest: &[u8], end: &[u8]) -> usize {
    rest.windows(end.len()).position(|window| window == end).map_or(rest.len(), |at| at + end.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn insert(sql: &str) -> Option<(&str, &str)> {
        match classify(sql) {
            Statement::Insert { statement, format } => Some((statement.trim(), format)),
            _ => None,
        }
    }

    #[test]
    fn inserts_with_their_data_in_the_body() {
        let crate_form = "INSERT INTO requests(`a`,`select`) FORMAT RowBinaryWithNamesAndTypes";
        assert_eq!(insert(crate_form), Some(("INSERT INTO requests(`a`,`select`)", "RowBinaryWithNamesAndTypes")));
        assert_eq!(
            insert("-- why\n insert into t\nformat\tJSONEachRow ;\n"),
            Some(("-- why\n insert into t", "JSONEachRow"))
        );
        let settings = "INSERT INTO t SETTINGS async_insert=0 FORMAT CSV";
        assert_eq!(insert(settings), Some(("INSERT INTO t SETTINGS async_insert=0", "CSV")));
        for other in [
            "INSERT INTO t VALUES (1)",
            "INSERT INTO t VALUES ('x FORMAT CSV",
            "INSERT INTO t SELECT 1 FORMAT Null",
            "INSERT INTO t SELECT * FROM input('a UInt8') FORMAT CSV",
            "INSERT INTO t FROM INFILE 'x' FORMAT CSV",
            "INSERT INTO t FORMAT CSV 1,2,3",
            "INSERT INTO `t FORMAT CSV`",
            "INSERT INTO t /* FORMAT CSV */",
            "",
        ] {
            assert_eq!(insert(other), None, "{other}");
        }
    }

    #[test]
    fn selects_and_their_formats() {
        assert_eq!(classify("SELECT 1"), Statement::Select { format: None });
        assert_eq!(classify("with 1 as x select x FORMAT Parquet;"), Statement::Select { format: Some("Parquet") });
        assert_eq!(classify("SELECT 'it''s \\' format' AS a"), Statement::Select { format: None });
        assert_eq!(classify("SELECT 1 FORMAT CSV SETTINGS x=1"), Statement::Other);
        assert_eq!(classify("SELECT 1 INTO OUTFILE 'x'"), Statement::Other);
        assert_eq!(classify("SELECT a, count() FROM t GROUP BY a WITH TOTALS FORMAT CSV"), Statement::Other);
        assert_eq!(classify("CREATE VIEW v AS SELECT 1"), Statement::Other);
        assert_eq!(classify("SELECT 'unclosed \\"), Statement::Select { format: None });
        assert_eq!(classify("é SELECT"), Statement::Select { format: None });
    }
}

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

/// Looks at a statement. What is not understood is [`Statement::Other`], which is always right, only less economical.
pub(super) fn classify(sql: &str) -> Statement<'_> {
    let words = bare_words(sql);
    let is = |at: usize, word: &str| words.get(at).is_some_and(|(_, w)| w.eq_ignore_ascii_case(word));
    let has = |word: &str| words.iter().any(|(_, w)| w.eq_ignore_ascii_case(word));
    // `FORMAT X` as the last two words, with nothing but white space or a semicolon after them.
    let format = words.len().checked_sub(2).filter(|&at| is(at, "format")).and_then(|at| {
        let ((start, _), (name_start, name)) = (words[at], words[at + 1]);
        let after = sql[name_start + name.len()..].trim();
        (after.is_empty() || after == ";").then_some((start, name))
    });
    if is(0, "insert") {
        let embedded = ["select", "with", "values", "input", "infile"].into_iter().any(has);
        return match format {
            Some((start, format)) if !embedded => Statement::Insert { statement: &sql[..start], format },
            _ => Statement::Other,
        };
    }
    if (is(0, "select") || is(0, "with")) && !has("outfile") && !has("insert") {
        return match format {
            Some((_, format)) => Statement::Select { format: Some(format) },
            None if has("format") => Statement::Other,
            None => Statement::Select { format: None },
        };
    }
    Statement::Other
}

/// The words outside of quotes and comments, with where they begin.
fn bare_words(sql: &str) -> Vec<(usize, &str)> {
    let bytes = sql.as_bytes();
    let (mut words, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let rest = &sql.as_bytes()[at..];
        at += match rest {
            [quote @ (b'\'' | b'"' | b'`'), ..] => quoted(rest, *quote),
            [b'-', b'-', ..] | [b'#', b' ' | b'!', ..] => until(rest, b"\n"),
            [b'/', b'*', ..] => until(rest, b"*/"),
            [c, ..] if c.is_ascii_alphanumeric() || *c == b'_' => {
                let length = rest.iter().take_while(|c| c.is_ascii_alphanumeric() || **c == b'_').count();
                words.push((at, &sql[at..at + length]));
                length
            }
            _ => 1,
        };
    }
    words
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
        assert_eq!(classify("CREATE VIEW v AS SELECT 1"), Statement::Other);
        assert_eq!(classify("SELECT 'unclosed \\"), Statement::Select { format: None });
        assert_eq!(classify("é SELECT"), Statement::Select { format: None });
    }
}

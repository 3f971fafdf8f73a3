-- Which rows of a month stay when it is sealed, and what those of folded records then say. Looked up while the month is rewritten, and
-- dropped afterwards.
CREATE TABLE {sealing:Identifier}
(
    row_kind Int8,
    row_offset Int64,
    row_source UUID COMMENT 'of a source row; nil else',
    stands_for UInt64,
    input UInt64,
    cached_input UInt64,
    output UInt64,
    reasoning UInt64,
    requests UInt64,
    attempts Int64
)
ENGINE = Join(ANY, LEFT, row_kind, row_offset, row_source)

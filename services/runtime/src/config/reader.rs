//! Reads a tree of values as what a setting is: strictly from the file, by the wanted type from variables, which are text.

use std::fmt::{self, Display};

use ::config::{Value, ValueKind};
use serde::de::value::{MapAccessDeserializer, MapDeserializer, SeqDeserializer};
use serde::de::{self, Deserializer, Expected, IntoDeserializer, Unexpected, Visitor};

/// What is wrong with a value. Never holds the value: it may be a secret.
#[derive(Debug)]
pub(super) enum Wrong {
    Missing(&'static str),
    Value(String),
}

impl Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(field) => write!(f, "{field} is missing"),
            Self::Value(said) => f.write_str(said),
        }
    }
}

impl std::error::Error for Wrong {}

impl de::Error for Wrong {
    fn custom<T: Display>(said: T) -> Self {
        Self::Value(said.to_string())
    }

    fn missing_field(field: &'static str) -> Self {
        Self::Missing(field)
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::Value(format!("expected {expected}, found {}", kind(found)))
    }

    fn invalid_value(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::Value(format!("the value does not fit; expected {expected}"))
    }
}

fn kind(found: Unexpected<'_>) -> &'static str {
    match found {
        Unexpected::Bool(_) => "a boolean",
        Unexpected::Unsigned(_) | Unexpected::Signed(_) => "an integer",
        Unexpected::Float(_) => "a number with a fraction",
        Unexpected::Str(_) | Unexpected::Char(_) => "a string",
        Unexpected::Seq => "a list",
        Unexpected::Map => "a table",
        _ => "something else",
    }
}

/// A value on its way into a setting.
pub(super) struct Reader {
    kind: ValueKind,
    /// From a variable: text that stands for whatever the setting is.
    text: bool,
}

impl Reader {
    pub(super) fn new(value: Value) -> Self {
        let text = value.origin() == Some(super::ENVIRONMENT) && matches!(value.kind, ValueKind::String(_));
        Self { kind: value.kind, text }
    }

    fn of_text(text: &str) -> Self {
        Self { kind: ValueKind::String(text.trim().to_owned()), text: true }
    }

    /// The text as a `T`, if it is text from a variable.
    fn parsed<T: std::str::FromStr>(&self, wanted: &str) -> Option<Result<T, Wrong>> {
        match &self.kind {
            ValueKind::String(text) if self.text => {
                let parsed = text.trim().parse();
                Some(parsed.map_err(|_| Wrong::Value(format!("the variable's text is not {wanted}"))))
            }
            _ => None,
        }
    }
}

impl<'de> IntoDeserializer<'de, Wrong> for Reader {
    type Deserializer = Self;
    fn into_deserializer(self) -> Self {
        self
    }
}

macro_rules! numbers {
    ($($method:ident $visit:ident $type:ty: $wanted:literal;)+) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
            match self.parsed::<$type>($wanted) {
                Some(parsed) => visitor.$visit(parsed?),
                None => self.deserialize_any(visitor),
            }
        })+
    };
}

impl<'de> Deserializer<'de> for Reader {
    type Error = Wrong;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        match self.kind {
            ValueKind::Nil => visitor.visit_unit(),
            ValueKind::Boolean(value) => visitor.visit_bool(value),
            ValueKind::I64(value) => visitor.visit_i64(value),
            ValueKind::I128(value) => visitor.visit_i128(value),
            ValueKind::U64(value) => visitor.visit_u64(value),
            ValueKind::U128(value) => visitor.visit_u128(value),
            ValueKind::Float(value) => visitor.visit_f64(value),
            ValueKind::String(value) => visitor.visit_string(value),
            ValueKind::Array(values) => visitor.visit_seq(SeqDeserializer::new(values.into_iter().map(Self::new))),
            ValueKind::Table(table) => {
                // Sorted, so that problems are named in the same order every time.
                let mut entries: Vec<_> = table.into_iter().map(|(key, value)| (key, Self::new(value))).collect();
                entries.sort_by(|(a, _), (b, _)| a.cmp(b));
                visitor.visit_map(MapDeserializer::new(entries.into_iter()))
            }
        }
    }

    numbers! {
        deserialize_bool visit_bool bool: "true or false";
        deserialize_i8 visit_i8 i8: "a whole number of this size";
        deserialize_i16 visit_i16 i16: "a whole number of this size";
        deserialize_i32 visit_i32 i32: "a whole number of this size";
        deserialize_i64 visit_i64 i64: "a whole number of this size";
        deserialize_u8 visit_u8 u8: "a whole number from 0 to 255";
        deserialize_u16 visit_u16 u16: "a whole number from 0 to 65535";
        deserialize_u32 visit_u32 u32: "a whole number, 0 or more, of this size";
        deserialize_u64 visit_u64 u64: "a whole number, 0 or more, of this size";
        deserialize_f32 visit_f32 f32: "a number";
        deserialize_f64 visit_f64 f64: "a number";
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        match self.kind {
            ValueKind::Nil => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        match &self.kind {
            ValueKind::String(text) if self.text => {
                visitor.visit_seq(SeqDeserializer::new(text.split(',').map(Self::of_text)))
            }
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Wrong> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        match self.kind {
            ValueKind::String(variant) => visitor.visit_enum(variant.into_deserializer()),
            ValueKind::Table(table) => {
                let entries = table.into_iter().map(|(key, value)| (key, Self::new(value)));
                visitor.visit_enum(MapAccessDeserializer::new(MapDeserializer::new(entries)))
            }
            _ => Err(Wrong::Value("expected one of the setting's words, as a string".into())),
        }
    }

    serde::forward_to_deserialize_any! {
        i128 u128 char str string bytes byte_buf unit unit_struct tuple tuple_struct map struct identifier ignored_any
    }
}

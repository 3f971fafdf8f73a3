//! A record's bytes, as its own type lists its fields.

use apache_avro::Error;
use serde::Serialize;
use serde::ser::{Error as _, Impossible, SerializeSeq, SerializeStruct, Serializer};

/// Appends `record` to `out`.
///
/// # Errors
/// When something in it is of a kind that no record has.
pub(crate) fn write(record: &impl Serialize, out: &mut Vec<u8>) -> Result<(), Error> {
    record.serialize(&mut Binary(out))
}

struct Binary<'a>(&'a mut Vec<u8>);

impl Binary<'_> {
    /// Zigzag, then seven bits a byte, the lowest first.
    fn long(&mut self, number: i64) {
        let mut rest = ((number << 1) ^ (number >> 63)) as u64;
        while rest >= 0x80 {
            self.0.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        self.0.push(rest as u8);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.long(bytes.len() as i64);
        self.0.extend_from_slice(bytes);
    }
}

fn refused<T>(kind: &str) -> Result<T, Error> {
    Err(Error::custom(format!("no record has {kind}")))
}

macro_rules! refused {
    ($($method:ident($($kind:ty),*) = $words:literal -> $done:ty;)+) => {
        $(fn $method(self, $(_: $kind),*) -> Result<$done, Error> {
            refused($words)
        })+
    };
}

/// How what no record has would go on.
type Never = Impossible<(), Error>;

impl Serializer for &mut Binary<'_> {
    type Ok = ();
    type Error = Error;
    type SerializeSeq = Self;
    type SerializeTuple = Never;
    type SerializeTupleStruct = Never;
    type SerializeTupleVariant = Never;
    type SerializeMap = Never;
    type SerializeStruct = Self;
    type SerializeStructVariant = Never;

    fn serialize_bool(self, value: bool) -> Result<(), Error> {
        self.0.push(value.into());
        Ok(())
    }

    fn serialize_i32(self, value: i32) -> Result<(), Error> {
        self.serialize_i64(value.into())
    }

    fn serialize_i64(self, value: i64) -> Result<(), Error> {
        self.long(value);
        Ok(())
    }

    fn serialize_str(self, value: &str) -> Result<(), Error> {
        self.serialize_bytes(value.as_bytes())
    }

    fn serialize_bytes(self, value: &[u8]) -> Result<(), Error> {
        self.bytes(value);
        Ok(())
    }

    fn serialize_none(self) -> Result<(), Error> {
        self.serialize_i64(0)
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Error> {
        self.long(1);
        value.serialize(self)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Result<(), Error> {
        value.serialize(self)
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Self, Error> {
        Ok(self)
    }

    fn serialize_seq(self, length: Option<usize>) -> Result<Self, Error> {
        let Some(length) = length else { return refused("a list of unknown length") };
        // One block; the end is a block of none.
        if length > 0 {
            self.long(length as i64);
        }
        Ok(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: &T,
    ) -> Result<(), Error> {
        refused("a variant")
    }

    refused! {
        serialize_i8(i8) = "an i8" -> ();
        serialize_i16(i16) = "an i16" -> ();
        serialize_u8(u8) = "an u8" -> ();
        serialize_u16(u16) = "an u16" -> ();
        serialize_u32(u32) = "an u32" -> ();
        serialize_u64(u64) = "an u64" -> ();
        serialize_f32(f32) = "a float" -> ();
        serialize_f64(f64) = "a float" -> ();
        serialize_char(char) = "a char" -> ();
        serialize_unit() = "a unit" -> ();
        serialize_unit_struct(&'static str) = "a unit" -> ();
        serialize_unit_variant(&'static str, u32, &'static str) = "a variant" -> ();
        serialize_tuple(usize) = "a tuple" -> Never;
        serialize_tuple_struct(&'static str, usize) = "a tuple" -> Never;
        serialize_tuple_variant(&'static str, u32, &'static str, usize) = "a variant" -> Never;
        serialize_map(Option<usize>) = "a map" -> Never;
        serialize_struct_variant(&'static str, u32, &'static str, usize) = "a variant" -> Never;
    }
}

impl SerializeStruct for &mut Binary<'_> {
    type Ok = ();
    type Error = Error;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, _: &'static str, value: &T) -> Result<(), Error> {
        value.serialize(&mut **self)
    }

    fn end(self) -> Result<(), Error> {
        Ok(())
    }
}

impl SerializeSeq for &mut Binary<'_> {
    type Ok = ();
    type Error = Error;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        value.serialize(&mut **self)
    }

    fn end(self) -> Result<(), Error> {
        self.long(0);
        Ok(())
    }
}

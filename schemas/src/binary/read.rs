//! A record from its bytes, as its own type lists its fields: from those that it would be written in, and from no others.

use apache_avro::Error;
use serde::de::{DeserializeSeed, Deserializer, Error as _, SeqAccess, Visitor};
use serde::{Serialize, de::DeserializeOwned, forward_to_deserialize_any};

use super::write;

/// Reads a whole record. None where it would not be written in these very bytes: the library decides then what they are, and says why
/// they are nothing.
pub(crate) fn read<R: Serialize + DeserializeOwned>(bytes: &[u8]) -> Option<R> {
    let record = R::deserialize(&mut Binary(bytes)).ok()?;
    let mut written = Vec::with_capacity(bytes.len());
    write(&record, &mut written).ok()?;
    (written == bytes).then_some(record)
}

/// The bytes that are left.
struct Binary<'a>(&'a [u8]);

impl<'a> Binary<'a> {
    fn byte(&mut self) -> Result<u8, Error> {
        let (byte, rest) = self.0.split_first().ok_or_else(|| Error::custom("the bytes end early"))?;
        self.0 = rest;
        Ok(*byte)
    }

    fn long(&mut self) -> Result<i64, Error> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok((number >> 1) as i64 ^ -((number & 1) as i64));
            }
        }
        Err(Error::custom("a number of more than 64 bits"))
    }

    fn bytes(&mut self) -> Result<&'a [u8], Error> {
        let length = self.long()?;
        let length = usize::try_from(length).map_err(|_| Error::custom("a negative length"))?;
        let (bytes, rest) = self.0.split_at_checked(length).ok_or_else(|| Error::custom("the bytes end early"))?;
        self.0 = rest;
        Ok(bytes)
    }
}

impl<'de> Deserializer<'de> for &mut Binary<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        Err(Error::custom("no record has this"))
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_bool(self.byte()? != 0)
    }

    fn deserialize_i32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_i32(i32::try_from(self.long()?).map_err(Error::custom)?)
    }

    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_i64(self.long()?)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_borrowed_str(std::str::from_utf8(self.bytes()?).map_err(Error::custom)?)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_borrowed_bytes(self.bytes()?)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_bytes(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.long()? {
            0 => visitor.visit_none(),
            1 => visitor.visit_some(self),
            _ => Err(Error::custom("a union has two")),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_seq(Fields(self))
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_seq(Items { left: 0, of: self })
    }

    forward_to_deserialize_any! {
        i8 i16 i128 u8 u16 u32 u64 u128 f32 f64 char unit unit_struct tuple tuple_struct map enum identifier ignored_any
    }
}

/// The fields of a record, which asks for as many as it has.
struct Fields<'b, 'de>(&'b mut Binary<'de>);

impl<'de> SeqAccess<'de> for Fields<'_, 'de> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        seed.deserialize(&mut *self.0).map(Some)
    }
}

/// A list: blocks of items, and a block of none.
struct Items<'b, 'de> {
    left: i64,
    of: &'b mut Binary<'de>,
}

impl<'de> SeqAccess<'de> for Items<'_, 'de> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        if self.left == 0 {
            self.left = self.of.long()?;
        }
        match self.left {
            0 => Ok(None),
            1.. => {
                self.left -= 1;
                seed.deserialize(&mut *self.of).map(Some)
            }
            _ => Err(Error::custom("a list that says its bytes")),
        }
    }
}

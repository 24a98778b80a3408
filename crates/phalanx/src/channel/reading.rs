//! Reading what postcard wrote, when another process may have written something else.
//!
//! The crate writes, and its own reader is as good for bytes that it wrote. This one differs in what
//! it does with others, and in what it says:
//!
//! | the bytes | postcard's reader | this one |
//! | --- | --- | --- |
//! | a collection of things without bytes, like `Vec<()>`, whose length is a lie | counts up to it, for years | gives up after [`EMPTY`] of them |
//! | a value that says itself why it cannot be read | "Serde Deserialization Error" | passes that on |
//!
//! The format: <https://postcard.jamesmunns.com/wire-format>. A varint has the lowest seven bits first.

use std::fmt;
use std::ops::{BitOr, Shl};

use serde::de::value::U32Deserializer;
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, EnumAccess, IntoDeserializer as _, MapAccess,
    SeqAccess, VariantAccess, Visitor,
};

/// How many items of all collections in a value may take no bytes: some seconds' work at the most.
const EMPTY: usize = if cfg!(test) { 1 << 10 } else { 1 << 28 };

/// Why bytes are no value of their type.
#[derive(Debug)]
pub(crate) struct Why(Box<str>); // small, as every step may return one

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Why {}

impl de::Error for Why {
    fn custom<T: fmt::Display>(why: T) -> Self {
        Self(why.to_string().into())
    }
}

fn why<T>(why: &str) -> Result<T, Why> {
    Err(Why(why.into()))
}

/// The value at the front of `bytes`. What is behind it is not looked at.
pub(crate) fn from_bytes<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Why> {
    T::deserialize(&mut Reader { rest: bytes, empty: EMPTY })
}

struct Reader<'de> {
    rest: &'de [u8],
    /// How many more items may take no bytes.
    empty: usize,
}

impl<'de> Reader<'de> {
    #[inline]
    fn take(&mut self, len: usize) -> Result<&'de [u8], Why> {
        let Some((taken, rest)) = self.rest.split_at_checked(len) else {
            return why("the bytes end before the value does");
        };
        self.rest = rest;
        Ok(taken)
    }

    #[inline]
    fn byte(&mut self) -> Result<u8, Why> {
        Ok(self.take(1)?[0])
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Why> {
        Ok(self.take(N)?.try_into().expect("so many"))
    }

    /// A number without a sign, of so many bits.
    #[inline]
    fn varint<N>(&mut self, bits: u32) -> Result<N, Why>
    where
        N: From<u8> + Shl<u32, Output = N> + BitOr<Output = N>,
    {
        let mut number = N::from(0);
        for shift in (0..bits).step_by(7) {
            let byte = self.byte()?;
            number = number | N::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                let room = bits - shift;
                if room < 7 && byte >> room != 0 {
                    break;
                }
                return Ok(number);
            }
        }
        why("a number is larger than its type")
    }

    #[inline]
    fn len(&mut self) -> Result<usize, Why> {
        self.varint(usize::BITS)
    }

    #[inline]
    fn text(&mut self) -> Result<&'de str, Why> {
        let len = self.len()?;
        std::str::from_utf8(self.take(len)?).map_err(de::Error::custom)
    }

    #[inline]
    fn flag(&mut self) -> Result<bool, Why> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => why("a flag is neither 0 nor 1"),
        }
    }
}

macro_rules! numbers {
    ($($method:ident $visit:ident $number:ident,)*) => { $(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Why> {
            visitor.$visit(self.varint::<$number>($number::BITS)?)
        }
    )* };
}

/// Numbers with a sign, written in zigzag: 0, -1, 1, -2, ...
macro_rules! signed {
    ($($method:ident $visit:ident $number:ident $unsigned:ident,)*) => { $(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Why> {
            let number: $unsigned = self.varint($unsigned::BITS)?;
            visitor.$visit(((number >> 1) as $number) ^ -((number & 1) as $number))
        }
    )* };
}

impl<'de> de::Deserializer<'de> for &mut Reader<'de> {
    type Error = Why;

    fn is_human_readable(&self) -> bool {
        false
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Why> {
        why("bytes do not tell what they are, as this type wants them to")
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Why> {
        visitor.visit_bool(self.flag()?)
    }

    fn deserialize_u8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Why> {
        visitor.visit_u8(self.byte()?)
    }

    fn deserialize_i8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Why> {
        visitor.visit_i8(self.byte()?.cast_signed())
    }

    numbers! {
        deserialize_u16 visit_u16 u16,
        deserialize_u32 visit_u32 u32,
        deserialize_u64 visit_u64 u64,
        deserialize_u128 visit_u128 u128,
    }

    signed! {
        deserialize_i16 visit_i16 i16 u16,
        deserialize_i32 visit_i32 i32 u32,
        deserialize_i64 visit_i64 i64 u64,
        deserialize_i128 visit_i128 i128 u128,
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Why> {
        visitor.visit_f32(f32::from_le_bytes(self.array()?))
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Why> {
        visitor.visit_f64(f64::from_le_bytes(self.array()?))
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Why> {
        let text = self.text()?;
        match text.chars().next() {
            Some(char) if text.len() <= 4 => visitor.visit_char(char),
            _ => why("a character is not one"),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Why> {
        visitor.visit_borrowed_str(self.text()?)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Why> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Why> {
        let len = self.len()?;
        visitor.visit_borrowed_bytes(self.take(len)?)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Why> {
        self.deserialize_bytes(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Why> {
        if self.flag()? { visitor.visit_some(self) } else { visitor.visit_none() }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Why> {
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Why> {
        visitor.visit_unit()
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Why> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Why> {
        let left = self.len()?;
        visitor.visit_seq(Items { reader: self, left, told: true })
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Why> {
        visitor.visit_seq(Items { reader: self, left: len, told: false })
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, Why> {
        self.deserialize_tuple(len, visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Why> {
        let left = self.len()?;
        visitor.visit_map(Items { reader: self, left, told: true })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Why> {
        self.deserialize_tuple(fields.len(), visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Why> {
        visitor.visit_enum(self)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Why> {
        self.deserialize_any(visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Why> {
        self.deserialize_any(visitor)
    }
}

/// What is left of a collection.
struct Items<'a, 'de> {
    reader: &'a mut Reader<'de>,
    left: usize,
    /// The bytes have told how many there are, and not the type.
    told: bool,
}

impl<'de> Items<'_, 'de> {
    #[inline]
    fn item<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Why> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let before = self.reader.rest.len();
        let item = seed.deserialize(&mut *self.reader)?;
        if self.told && self.reader.rest.len() == before {
            let Some(empty) = self.reader.empty.checked_sub(1) else {
                return why("a collection has more items without bytes than it may have");
            };
            self.reader.empty = empty;
        }
        Ok(Some(item))
    }

    /// No more than if each had a byte, so that nobody takes memory for more.
    fn hint(&self) -> Option<usize> {
        Some(self.left.min(self.reader.rest.len()))
    }
}

impl<'de> SeqAccess<'de> for Items<'_, 'de> {
    type Error = Why;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Why> {
        self.item(seed)
    }

    fn size_hint(&self) -> Option<usize> {
        self.hint()
    }
}

impl<'de> MapAccess<'de> for Items<'_, 'de> {
    type Error = Why;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Why> {
        self.item(seed)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Why> {
        seed.deserialize(&mut *self.reader)
    }

    fn size_hint(&self) -> Option<usize> {
        self.hint()
    }
}

impl<'de> EnumAccess<'de> for &mut Reader<'de> {
    type Error = Why;
    type Variant = Self;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self), Why> {
        let number: U32Deserializer<Why> = self.varint::<u32>(u32::BITS)?.into_deserializer();
        Ok((seed.deserialize(number)?, self))
    }
}

impl<'de> VariantAccess<'de> for &mut Reader<'de> {
    type Error = Why;

    fn unit_variant(self) -> Result<(), Why> {
        Ok(())
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Why> {
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Why> {
        de::Deserializer::deserialize_tuple(self, len, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Why> {
        de::Deserializer::deserialize_tuple(self, fields.len(), visitor)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap};

    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::fuzz::Fuzz;

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    enum Kind {
        Unit,
        New(i128),
        Tuple(u16, f32),
        Struct { a: Option<char>, b: Box<Kind> },
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Nothing;

    type Numbers = (i8, i16, i32, i64, u8, u16, u32, u64, u128, bool, f64);

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct All {
        numbers: Vec<Numbers>,
        kinds: BTreeMap<String, Vec<Kind>>,
        nothing: (Nothing, (), [u8; 3]),
    }

    fn all() -> All {
        let least = (i8::MIN, i16::MIN, i32::MIN, i64::MIN, 0, 0, 0, 0, 0, false, -0.5);
        let (eight, sixteen) = ((i8::MAX, u8::MAX), (i16::MAX, u16::MAX));
        let (word, long) = ((i32::MAX, u32::MAX), (i64::MAX, u64::MAX));
        let most = (eight.0, sixteen.0, word.0, long.0, eight.1, sixteen.1, word.1, long.1);
        let most = (most.0, most.1, most.2, most.3, most.4, most.5, most.6, most.7, u128::MAX);
        let (a, b, c, d, e, f, g, h, i) = most;
        let last = Box::new(Kind::Struct { a: None, b: Box::new(Kind::Unit) });
        let kinds = vec![
            Kind::New(i128::MIN),
            Kind::Tuple(300, f32::MAX),
            Kind::Struct { a: Some('\u{1f980}'), b: last },
        ];
        All {
            numbers: vec![least, (a, b, c, d, e, f, g, h, i, true, f64::MAX)],
            kinds: [("a text".into(), kinds), (String::new(), vec![])].into(),
            nothing: (Nothing, (), [1, 2, 3]),
        }
    }

    #[test]
    fn what_postcard_wrote_is_read() {
        let bytes = postcard::to_stdvec(&all()).unwrap();
        assert_eq!(from_bytes::<All>(&bytes).unwrap(), all());
    }

    /// But for collections without bytes, which are not in it, and for NaN.
    #[test]
    fn what_is_spoilt_is_read_or_refused_as_by_postcard() {
        let valid = postcard::to_stdvec(&all()).unwrap();
        Fuzz::new("postcard").cost(2).allowance(4 << 20).run(&[valid], |bytes| {
            let ours = from_bytes::<All>(bytes).ok();
            let theirs = postcard::from_bytes::<All>(bytes).ok();
            assert_eq!(format!("{ours:?}"), format!("{theirs:?}"));
        });
    }

    #[test]
    fn a_lie_about_things_without_bytes_ends() {
        let lie = postcard::to_stdvec(&(1_u64 << 60)).unwrap();
        assert!(from_bytes::<Vec<()>>(&lie).unwrap_err().to_string().contains("without bytes"));
        assert!(from_bytes::<HashMap<(), Nothing>>(&lie).is_err());
        assert!(from_bytes::<Vec<[Nothing; 0]>>(&lie).is_err());
        let honest = postcard::to_stdvec(&vec![(); EMPTY]).unwrap();
        assert_eq!(from_bytes::<Vec<()>>(&honest).unwrap().len(), EMPTY);
        let fields = postcard::to_stdvec(&vec![(1_u8, ()); 2 * EMPTY]).unwrap();
        assert!(from_bytes::<Vec<(u8, ())>>(&fields).is_ok());
    }
}

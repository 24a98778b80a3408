//! Arguments and results as bytes.
//!
//! A vector of bytes or numbers, and a string, is its own memory: one copy, or none where the bytes
//! can be handed over. Everything else goes through serde as postcard. The types are the same on
//! both sides, so the bytes need not tell which it was.

use std::any::Any;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::channel::from_bytes;

/// What can travel to another process and back: any type that serde can write and read.
///
/// `Vec<u8>`, vectors of numbers and `String` do not go through serde but as they lie in memory,
/// as an argument, as a result, and as the items of a `map`. Deeper inside another type, put bytes
/// into a `serde_bytes::ByteBuf`, which serde moves in one piece.
pub trait Value: Serialize + DeserializeOwned + 'static {}

impl<T: Serialize + DeserializeOwned + 'static> Value for T {}

/// Why a value could not be written or read.
pub(crate) type Reason = String;

/// Calls a macro with the types whose vectors travel as they lie in memory.
macro_rules! numbers {
    ($with:ident) => {
        $with!(u8 i8 u16 i16 u32 i32 u64 i64 u128 i128 usize isize f32 f64)
    };
}

/// A value that lies in one piece of memory: that memory.
fn piece<T: 'static>(value: &T) -> Option<&[u8]> {
    let value: &dyn Any = value;
    macro_rules! try_each {
        ($($number:ty)*) => { $(
            if let Some(vector) = value.downcast_ref::<Vec<$number>>() {
                return Some(bytemuck::cast_slice(vector));
            }
        )* };
    }
    numbers!(try_each);
    value.downcast_ref::<String>().map(String::as_bytes)
}

/// Do values of this type lie in one piece of memory?
fn is_piece<T: 'static>() -> bool {
    let id = std::any::TypeId::of::<T>();
    macro_rules! any {
        ($($number:ty)*) => { false $(|| id == std::any::TypeId::of::<Vec<$number>>())* };
    }
    numbers!(any) || id == std::any::TypeId::of::<String>()
}

/// `value`, whose type is `T` under another name.
fn same<U: 'static, T: 'static>(value: U) -> Option<T> {
    let mut slot = Some(value);
    let slot: &mut dyn Any = &mut slot;
    slot.downcast_mut::<Option<T>>()?.take()
}

/// Turns what [`piece`] gave back into a value; `Err` with the bytes if they are no such thing.
fn from_piece<T: 'static>(bytes: Vec<u8>) -> Result<T, Reason> {
    let id = std::any::TypeId::of::<T>();
    if id == std::any::TypeId::of::<Vec<u8>>() {
        return Ok(same(bytes).expect("the same type"));
    }
    if id == std::any::TypeId::of::<String>() {
        let text = String::from_utf8(bytes).map_err(|error| error.to_string())?;
        return Ok(same(text).expect("the same type"));
    }
    macro_rules! try_each {
        ($($number:ty)*) => { $(
            if id == std::any::TypeId::of::<Vec<$number>>() {
                if bytes.len() % size_of::<$number>() != 0 {
                    return Err(format!("{} bytes are no whole numbers", bytes.len()));
                }
                let mut vector = vec![<$number>::default(); bytes.len() / size_of::<$number>()];
                bytemuck::cast_slice_mut(&mut vector).copy_from_slice(&bytes);
                return Ok(same(vector).expect("the same type"));
            }
        )* };
    }
    numbers!(try_each);
    Err("bytes for a type that has none".into())
}

/// The bytes of a value, with room for `more`.
pub(crate) fn encode<T: Value>(value: T, more: usize) -> Result<Vec<u8>, Reason> {
    if let Some(bytes) = piece(&value) {
        // Bytes are handed over as they are, others have another alignment.
        if std::any::TypeId::of::<T>() == std::any::TypeId::of::<Vec<u8>>() {
            return Ok(same(value).expect("the same type"));
        }
        let mut copy = Vec::with_capacity(bytes.len() + more);
        copy.extend_from_slice(bytes);
        return Ok(copy);
    }
    written(&value, Vec::with_capacity(size_of::<T>().min(4096) + more))
}

/// Reads what [`encode`] wrote.
pub(crate) fn decode<T: Value>(bytes: Vec<u8>) -> Result<T, Reason> {
    if is_piece::<T>() { from_piece(bytes) } else { read(&bytes) }
}

/// The bytes of the items of a chunk.
pub(crate) fn encode_all<T: Value>(values: Vec<T>, more: usize) -> Result<Vec<u8>, Reason> {
    if is_piece::<Vec<T>>() {
        return encode(values, more);
    }
    if !is_piece::<T>() {
        let guess = size_of_val(values.as_slice()) + 8;
        return written(&values, Vec::with_capacity(guess + more));
    }
    let pieces = values.iter().filter_map(piece);
    let len = pieces.clone().map(|piece| piece.len() + 8).sum::<usize>();
    let mut bytes = Vec::with_capacity(len + more);
    for piece in pieces {
        bytes.extend_from_slice(&(piece.len() as u64).to_ne_bytes());
        bytes.extend_from_slice(piece);
    }
    Ok(bytes)
}

/// Reads what [`encode_all`] wrote.
pub(crate) fn decode_all<T: Value>(bytes: Vec<u8>) -> Result<Vec<T>, Reason> {
    if is_piece::<Vec<T>>() {
        return decode(bytes);
    }
    if !is_piece::<T>() {
        return read(&bytes);
    }
    let (mut values, mut rest) = (Vec::new(), &bytes[..]);
    while let Some((len, after)) = rest.split_first_chunk::<8>() {
        let len = usize::try_from(u64::from_ne_bytes(*len)).unwrap_or(usize::MAX);
        let (piece, after) = after.split_at_checked(len).ok_or("a length beyond the end")?;
        values.push(from_piece(piece.to_vec())?);
        rest = after;
    }
    Ok(values)
}

fn written<T: Serialize>(value: &T, into: Vec<u8>) -> Result<Vec<u8>, Reason> {
    postcard::to_extend(value, into).map_err(|error| error.to_string())
}

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Reason> {
    from_bytes(bytes).map_err(|why| why.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there_and_back<T: Value + Clone + PartialEq + std::fmt::Debug>(value: T) {
        assert_eq!(decode::<T>(encode(value.clone(), 8).unwrap()).unwrap(), value);
        let all = vec![value.clone(), value.clone(), value];
        assert_eq!(decode_all::<T>(encode_all(all.clone(), 8).unwrap()).unwrap(), all);
    }

    #[test]
    fn values_come_back_as_they_went() {
        there_and_back(17_u64);
        there_and_back(());
        there_and_back(-0.5_f64);
        there_and_back("a text".to_string());
        there_and_back(vec![1_u8, 2, 3]);
        there_and_back(vec![f64::MIN, 2.5]);
        there_and_back(Vec::<i32>::new());
        there_and_back((1_u8, vec![Some("a".to_string()), None]));
        there_and_back(vec![vec![1_u16], vec![]]);
    }

    #[test]
    fn bytes_are_handed_over_without_a_copy() {
        let bytes = vec![7_u8; 1000];
        let address = bytes.as_ptr();
        let bytes = decode::<Vec<u8>>(encode(bytes, 8).unwrap()).unwrap();
        assert_eq!(bytes.as_ptr(), address);
    }

    #[test]
    fn numbers_take_no_more_room_than_in_memory() {
        assert_eq!(encode(vec![u64::MAX; 10], 0).unwrap().len(), 80);
        assert_eq!(encode_all(vec![1.5_f32; 10], 0).unwrap().len(), 40);
    }

    #[test]
    fn nonsense_is_an_error() {
        assert!(decode::<Vec<u32>>(vec![1, 2, 3]).is_err());
        assert!(decode::<String>(vec![0xff]).is_err());
        assert!(decode_all::<String>(vec![9, 0, 0, 0, 0, 0, 0, 0, 1]).is_err());
        assert!(decode::<(u8, String)>(vec![]).is_err());
    }
}

//! The border of messages in a stream of bytes: the length first, as CPython's `Connection` has it.
//!
//! | length | what stands before the message |
//! | --- | --- |
//! | up to 2^31 - 1 | the length in 4 bytes, the highest first |
//! | more | -1 in 4 bytes, then the length in 8 |
//!
//! From CPython 3.3 on, `Lib/multiprocessing/connection.py`.

const SHORT: usize = 4;
const LONG: usize = 12;

/// The bytes that stand before a message.
#[derive(Debug)]
pub(crate) struct Header {
    bytes: [u8; LONG],
    len: usize,
}

impl Header {
    /// For a message of `len` bytes.
    pub(crate) fn of(len: usize) -> Self {
        let mut bytes = [0; LONG];
        if let Ok(short) = i32::try_from(len) {
            bytes[..SHORT].copy_from_slice(&short.to_be_bytes());
            return Self { bytes, len: SHORT };
        }
        bytes[..SHORT].copy_from_slice(&(-1_i32).to_be_bytes());
        bytes[SHORT..].copy_from_slice(&(len as u64).to_be_bytes());
        Self { bytes, len: LONG }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// A header that is being read.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    bytes: [u8; LONG],
    got: usize,
}

/// What is known of a message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Length {
    /// The header is not there yet.
    Unknown,
    Known(usize),
    /// No header is like this.
    Bad,
}

impl Reader {
    /// Has anything been read?
    pub(crate) fn has_begun(&self) -> bool {
        self.got > 0
    }

    /// What to read next; empty once the length is known.
    pub(crate) fn missing(&mut self) -> &mut [u8] {
        let end = if self.got >= SHORT && self.is_long() { LONG } else { SHORT };
        &mut self.bytes[self.got..end]
    }

    /// Says that so many bytes of [`missing`](Self::missing) were read.
    pub(crate) fn advance(&mut self, read: usize) {
        self.got += read;
    }

    fn short(&self) -> i32 {
        let [a, b, c, d, ..] = self.bytes;
        i32::from_be_bytes([a, b, c, d])
    }

    fn is_long(&self) -> bool {
        self.short() == -1
    }

    pub(crate) fn length(&self) -> Length {
        if self.got < SHORT || self.is_long() && self.got < LONG {
            return Length::Unknown;
        }
        let length = if self.is_long() {
            let [_, _, _, _, long @ ..] = self.bytes;
            usize::try_from(u64::from_be_bytes(long)).ok()
        } else {
            usize::try_from(self.short()).ok()
        };
        // No message is longer than memory can be.
        length.filter(|len| isize::try_from(*len).is_ok()).map_or(Length::Bad, Length::Known)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> (Length, usize) {
        let (mut reader, mut rest) = (Reader::default(), bytes);
        while !reader.missing().is_empty() && !rest.is_empty() {
            // One byte at a time: a header may come in pieces.
            reader.missing()[0] = rest[0];
            reader.advance(1);
            rest = &rest[1..];
        }
        (reader.length(), bytes.len() - rest.len())
    }

    #[test]
    fn a_header_is_read_as_it_was_written_and_no_byte_more() {
        for len in [0, 1, 255, 65_536, 0x7fff_ffff, 0x8000_0000, 3 << 30, 1 << 40] {
            let header = Header::of(len);
            let bytes = [header.bytes(), b"the message"].concat();
            assert_eq!(read(&bytes), (Length::Known(len), header.bytes().len()));
            assert_eq!(header.bytes().len(), if len < 1 << 31 { 4 } else { 12 });
        }
    }

    #[test]
    fn a_header_that_is_none_is_told() {
        assert_eq!(read(&(-2_i32).to_be_bytes()).0, Length::Bad);
        assert_eq!(read(&[255; 12]).0, Length::Bad);
        assert_eq!(read(&[0, 0, 0]).0, Length::Unknown);
        assert_eq!(read(&[255; 11]).0, Length::Unknown);
    }
}

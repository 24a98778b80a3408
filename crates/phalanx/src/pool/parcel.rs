//! A message as it travels: in one piece through the ring, or with its large pieces aside.
//!
//! What is pickled, or encoded, is a *stream* and any number of *buffers* that it refers to in order
//! (pickle protocol 5, PEP 574). If a piece is large it is put into a slot (`shm/slab.rs`), and what
//! goes through the ring is a table and the small pieces:
//!
//! ```text
//! | count | (place, len) of the stream | (place, len) of each buffer | small pieces |
//! ```
//!
//! | who holds a slot | until |
//! | --- | --- |
//! | the owner, for a task | the task is done and its worker has let go (`shm/claim.rs`), or is dead |
//! | a worker, for an outcome | its owner has let go (a loan in `shm/seat.rs`), or all ends |
//!
//! A worker's span is never written again after its death, so what it has sent stays as it is.

use std::io;
use std::sync::Arc;

use super::store::{Buffer, Kind};
use crate::error::{Error, Result};
use crate::shm::{Seat, Slot, Span, View};
use crate::sys::fork;

/// Pieces of fewer bytes are copied out of their slots, of more seen where they are.
const SEEN: usize = 256 << 10;
/// In place of a place: the piece is in the message.
const INSIDE: u64 = u64::MAX;
/// More pieces than this are in no message.
const MOST: usize = 1 << 24;

/// A message, ready for the ring.
#[derive(Debug, Default)]
pub(crate) struct Packed {
    pub(crate) bytes: Vec<u8>,
    /// Of a message in pieces: the slots, which must stay while somebody can see them.
    pub(crate) slots: Option<Vec<Arc<Slot>>>,
}

impl Packed {
    /// A message in one piece.
    pub(super) fn plain(bytes: Vec<u8>) -> Self {
        Self { bytes, slots: None }
    }

    /// A message in pieces, the stream first.
    pub(super) fn new(pieces: Vec<Buffer>) -> Self {
        let inside = pieces.iter().map(|piece| match &piece.0 {
            Kind::Slot(_) => 0,
            Kind::Bytes(bytes) => bytes.len(),
        });
        let mut bytes = Vec::with_capacity(8 + 16 * pieces.len() + inside.sum::<usize>());
        bytes.extend_from_slice(&(pieces.len() as u64).to_ne_bytes());
        for piece in &pieces {
            let (place, len) = match &piece.0 {
                Kind::Slot(slot) => slot.place(),
                Kind::Bytes(bytes) => (INSIDE, bytes.len() as u64),
            };
            bytes.extend_from_slice(&place.to_ne_bytes());
            bytes.extend_from_slice(&len.to_ne_bytes());
        }
        let mut slots = Vec::new();
        for piece in pieces {
            match piece.0 {
                Kind::Slot(slot) => slots.push(slot),
                Kind::Bytes(piece) => bytes.extend_from_slice(&piece),
            }
        }
        Self { bytes, slots: Some(slots) }
    }

    /// The same message without slots, for a receiver who cannot hold any more of them.
    pub(crate) fn inside(mut self) -> Self {
        let Some(mut slots) = self.slots.take().map(Vec::into_iter) else { return self };
        let table = Table::read(&self.bytes).expect("written by us");
        let pieces = table.pieces.iter().map(|&(place, len, at)| {
            Buffer(Kind::Bytes(match place {
                INSIDE => self.bytes[at..at + len].to_vec(),
                _ => slots.next().expect("one for each place").to_vec(),
            }))
        });
        Self::new(pieces.collect())
    }
}

/// What stands at the beginning of a message in pieces.
struct Table {
    /// Of each piece: its place, its length, and where it is in the message if it is inside.
    pieces: Vec<(u64, usize, usize)>,
}

impl Table {
    fn read(bytes: &[u8]) -> Result<Self> {
        let corrupt = || Error::corrupt("a message in pieces");
        let (count, rest) = bytes.split_first_chunk::<8>().ok_or_else(corrupt)?;
        let count = usize::try_from(u64::from_ne_bytes(*count)).map_err(|_| corrupt())?;
        if count == 0 || count > MOST || count > rest.len() / 16 {
            return Err(corrupt());
        }
        let (table, _) = rest.split_at(16 * count);
        let mut at = 8 + table.len();
        let mut pieces = Vec::with_capacity(count);
        for entry in table.chunks_exact(16) {
            let word =
                |at: usize| u64::from_ne_bytes(entry[at..at + 8].try_into().expect("eight bytes"));
            let (place, len) = (word(0), usize::try_from(word(8)).map_err(|_| corrupt())?);
            pieces.push((place, len, at));
            if place == INSIDE {
                at = at.checked_add(len).filter(|end| *end <= bytes.len()).ok_or_else(corrupt)?;
            }
        }
        Ok(Self { pieces })
    }
}

/// Who must be told that nobody sees the slots of a message any more.
#[derive(Debug)]
pub(crate) enum Ties {
    /// The owner, by a task's claim.
    Claim { seat: Arc<Seat>, claim: u16, task: u64 },
    /// A worker, by its loan; its span stays while something of it can be seen.
    Loan { seat: Arc<Seat>, loan: usize, number: u32, _span: Arc<Lent> },
    /// Nobody: all is copied.
    Cut,
}

/// The span of a worker, as its owner has it: when nobody needs it any more, and the worker is
/// gone, its pages go back.
#[derive(Debug)]
pub(crate) struct Lent {
    pub(crate) span: Span,
    generation: u32,
}

impl Lent {
    pub(crate) fn new(span: Span) -> Arc<Self> {
        Arc::new(Self { span, generation: fork::generation() })
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if self.generation == fork::generation() {
            self.span.discard();
        }
    }
}

impl Drop for Ties {
    fn drop(&mut self) {
        match self {
            Self::Claim { seat, claim, task } => seat.claim(*claim).let_go(*task),
            Self::Loan { seat, loan, number, .. } => seat.give_back(*loan, *number),
            Self::Cut => {}
        }
    }
}

/// A message that has arrived.
#[derive(Clone, Debug)]
pub struct Parcel(Inner);

#[derive(Clone, Debug)]
enum Inner {
    Plain(Vec<u8>),
    Pieces(Arc<Pieces>),
}

#[derive(Debug)]
struct Pieces {
    bytes: Vec<u8>,
    table: Vec<(u64, usize, usize)>,
    /// The sender's; without one, all pieces are in the message.
    span: Option<Span>,
    /// Pieces are copied, whatever their size.
    copied: bool,
    /// In a forked child, what it would tell is told by its parent.
    ties: Option<Ties>,
    generation: u32,
}

impl Drop for Pieces {
    fn drop(&mut self) {
        if self.generation != fork::generation() {
            std::mem::forget(self.ties.take());
        }
    }
}

impl Parcel {
    pub(crate) fn plain(bytes: Vec<u8>) -> Self {
        Self(Inner::Plain(bytes))
    }

    /// A message in pieces; `span` is that of its sender.
    ///
    /// # Errors
    ///
    /// If the sender wrote nonsense.
    pub(crate) fn in_pieces(bytes: Vec<u8>, span: Option<Span>, ties: Ties) -> Result<Self> {
        let copied = matches!(ties, Ties::Cut);
        let generation = fork::generation();
        let ties = Some(ties);
        let table = Table::read(&bytes)?.pieces;
        Ok(Self(Inner::Pieces(Arc::new(Pieces { bytes, table, span, copied, ties, generation }))))
    }

    /// All of a message that came in one piece.
    #[must_use]
    pub fn whole(&self) -> Option<&[u8]> {
        match &self.0 {
            Inner::Plain(bytes) => Some(bytes),
            Inner::Pieces(_) => None,
        }
    }

    /// The stream and then the buffers of a message in pieces.
    pub fn pieces(&self) -> impl Iterator<Item = Result<Piece>> {
        let pieces = match &self.0 {
            Inner::Plain(_) => None,
            Inner::Pieces(pieces) => Some(pieces),
        };
        let each = |pieces: &Arc<Pieces>| {
            let pieces = pieces.clone();
            (0..pieces.table.len()).map(move |index| Pieces::open(&pieces, index))
        };
        pieces.map(each).into_iter().flatten()
    }

    /// The stream, as bytes of its own.
    ///
    /// # Errors
    ///
    /// If there is no memory for them, or the sender wrote nonsense.
    pub(crate) fn into_stream(self) -> Result<Vec<u8>> {
        let pieces = match self.0 {
            Inner::Plain(bytes) => return Ok(bytes),
            Inner::Pieces(pieces) => pieces,
        };
        let (place, len, at) = pieces.table[0];
        match place {
            INSIDE => Ok(pieces.bytes[at..at + len].to_vec()),
            _ => pieces.span()?.read(place, len as u64).map_err(unreadable),
        }
    }
}

fn unreadable(error: io::Error) -> Error {
    Error::os("take a large argument or result", error)
}

impl Pieces {
    fn span(&self) -> Result<&Span> {
        self.span.as_ref().ok_or_else(|| Error::corrupt("a message in pieces"))
    }

    fn open(this: &Arc<Self>, index: usize) -> Result<Piece> {
        let (place, len, at) = this.table[index];
        if place == INSIDE {
            return Ok(Piece::Copied(this.bytes[at..at + len].to_vec()));
        }
        let span = this.span()?;
        let copied = || span.read(place, len as u64).map(Piece::Copied);
        let seen = || {
            let view = span.view(place, len as u64, Box::new(this.clone()))?;
            Ok::<_, io::Error>(Piece::Seen(Seen(view)))
        };
        if this.copied || len < SEEN {
            return copied().map_err(unreadable);
        }
        // Out of descriptors, or of mappings (vm.max_map_count).
        seen().or_else(|_| copied()).map_err(unreadable)
    }
}

/// A piece of a message.
#[derive(Debug)]
pub enum Piece {
    /// Bytes of its own.
    Copied(Vec<u8>),
    /// Where it is.
    Seen(Seen),
}

impl Piece {
    /// Where its bytes begin. They may be written to: that is seen by nobody else.
    #[must_use]
    pub fn start(&mut self) -> *mut u8 {
        match self {
            Self::Copied(bytes) => bytes.as_mut_ptr(),
            Self::Seen(Seen(view)) => view.start().as_ptr(),
        }
    }

    /// How many bytes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Copied(bytes) => bytes.len(),
            Self::Seen(Seen(view)) => view.len(),
        }
    }

    /// Is there nothing in it?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Bytes in another process's memory.
#[derive(Debug)]
pub struct Seen(View);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonsense_in_a_table_is_an_error_not_a_crash() {
        let word = |n: u64| n.to_ne_bytes().to_vec();
        let cases = [
            vec![],
            word(0),
            word(1),
            word(u64::MAX),
            [word(1), word(INSIDE), word(1)].concat(),
            [word(1), word(INSIDE), word(u64::MAX)].concat(),
            [word(2), word(INSIDE), word(1), word(INSIDE), word(9), vec![0; 9]].concat(),
        ];
        for bytes in cases {
            assert!(Table::read(&bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn a_message_without_slots_is_the_same_message() {
        let bytes = |bytes: &[u8]| Buffer(Kind::Bytes(bytes.to_vec()));
        let packed = Packed::new(vec![bytes(b"stream"), bytes(b"large")]).inside();
        let table = Table::read(&packed.bytes).unwrap().pieces;
        let piece = |index: usize| {
            let (place, len, at) = table[index];
            assert_eq!(place, INSIDE);
            &packed.bytes[at..at + len]
        };
        assert_eq!((piece(0), piece(1), table.len()), (&b"stream"[..], &b"large"[..], 2));
    }
}

//! What a template and its owner say to each other, over one socket that keeps messages whole.
//!
//! ```text
//! owner                                        template
//!   Lifeline + its end of one, at the start
//!   Request {id, fds: n} + hint,            -->   fork
//!     payload and more fds, n in all
//!   (more than fit: Rest {id} + fds, ...)
//!                                          <--   Launched {id, pid} + the child's pidfd and gate
//!                                                or Refused {id, errno}
//!                                          <--   Exited {id, wait status}, when it has ended
//! ```
//!
//! Numbers are three 64-bit words in the machine's own order: both ends are one machine. `id` is
//! the owner's, never used twice, so a report cannot be taken for that of a later child with the
//! same pid. The hint is for the template itself: bytes after the numbers.

pub(super) const WORDS: usize = 3;
pub(super) const LEN: usize = WORDS * 8;
pub(super) const HINT_LEN: usize = 4000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Message {
    Request {
        id: u64,
        fds: usize,
    },
    Rest {
        id: u64,
    },
    Launched {
        id: u64,
        pid: u32,
    },
    Refused {
        id: u64,
        errno: i32,
    },
    Exited {
        id: u64,
        status: i32,
    },
    /// The owner has no descriptor left for the child that was launched: it is not to be.
    Unwatched {
        id: u64,
    },
    /// What the template holds for as long as it lives: see `sys/linux/lifeline.rs`.
    Lifeline,
}

impl Message {
    pub(super) fn encode(self) -> [u8; LEN] {
        let words: [u64; WORDS] = match self {
            Self::Request { id, fds } => [1, id, fds as u64],
            Self::Rest { id } => [2, id, 0],
            Self::Launched { id, pid } => [3, id, pid.into()],
            Self::Refused { id, errno } => [4, id, errno.cast_unsigned().into()],
            Self::Exited { id, status } => [5, id, status.cast_unsigned().into()],
            Self::Unwatched { id } => [6, id, 0],
            Self::Lifeline => [7, 0, 0],
        };
        bytemuck::cast(words)
    }

    /// The message, if it is one.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let [kind, id, value]: [u64; WORDS] = bytemuck::pod_read_unaligned(bytes.get(..LEN)?);
        let low = u32::try_from(value).ok()?;
        match kind {
            1 => Some(Self::Request { id, fds: low as usize }),
            2 => Some(Self::Rest { id }),
            3 => Some(Self::Launched { id, pid: low }),
            4 => Some(Self::Refused { id, errno: low.cast_signed() }),
            5 => Some(Self::Exited { id, status: low.cast_signed() }),
            6 => Some(Self::Unwatched { id }),
            7 if [id, value] == [0, 0] => Some(Self::Lifeline),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_is_heard() {
        for message in [
            Message::Request { id: u64::MAX, fds: 1000 },
            Message::Rest { id: 1 },
            Message::Launched { id: 2, pid: 4711 },
            Message::Refused { id: 3, errno: 11 },
            Message::Exited { id: 4, status: -1 },
            Message::Unwatched { id: 5 },
            Message::Lifeline,
        ] {
            assert_eq!(Message::decode(&message.encode()), Some(message));
        }
    }

    #[test]
    fn noise_is_not_a_message() {
        assert_eq!(Message::decode(&[]), None);
        assert_eq!(Message::decode(&[9; LEN]), None);
    }
}

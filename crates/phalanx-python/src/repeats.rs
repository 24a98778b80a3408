//! What comes more than once in the arguments of one call is copied once.
//!
//! `starmap(f, [(table, row) for row in rows])` names one table in each of its tasks. The bytes that
//! were sent are known again by where they are; meanwhile they are held, so that nothing else can be
//! there. Another call copies them anew, since they may have changed.

use std::collections::VecDeque;

use phalanx::pool::{Again, Buffer, Store};
use pyo3::prelude::*;

use crate::buffer::{Held, Part, fill};

/// The buffers that were sent last in a call.
#[derive(Default)]
pub struct Repeats(VecDeque<(Held, Again)>);

/// So many different ones are known.
const KNOWN: usize = 8;

impl Repeats {
    /// The bytes as what is sent: a copy, or the one that was made before.
    pub fn buffer(&mut self, py: Python<'_>, store: &Store, held: Held) -> PyResult<Buffer> {
        self.0.retain(|(_, again)| !again.is_gone());
        let place = held.place();
        if let Some(at) = self.0.iter().position(|(held, _)| held.place() == place)
            && let Some((held, mut again)) = self.0.remove(at)
            && let Some(buffer) = again.buffer()
        {
            self.0.push_back((held, again));
            return Ok(buffer);
        }
        let buffer = fill(py, store, &[Part::Held(&held)])?;
        if let Some(again) = buffer.again() {
            if self.0.len() == KNOWN {
                self.0.pop_front();
            }
            self.0.push_back((held, again));
        }
        Ok(buffer)
    }
}

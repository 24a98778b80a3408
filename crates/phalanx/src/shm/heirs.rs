//! When memory that is seen through private views may be written again, although children were
//! forked meanwhile.
//!
//! A private view shows what is in the memory until its owner writes to the page. A forked child
//! inherits the views, and may look at them long after its parent has let go of them. So the memory
//! behind a view is written again only when all children are gone that were forked while the view
//! was there.
//!
//! Time is cut into eras, which end with a fork. Each has a pipe; its write end is here and in the
//! children that were forked in it, and in theirs. Once the era is over the end here is closed, and
//! the pipe says when the last of them has ended, however it did, or runs another program.
//!
//! A child that closes descriptors that it does not know (`os.closerange`) counts as ended.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

use crate::sys::fork::{self, ForkClosed, Whole};
use crate::sys::heirloom;
use crate::sys::socket::wait_readable;

static ERAS: Whole<Eras> = Whole::new(Eras {
    generation: 0,
    next: 1,
    views: 0,
    eras: VecDeque::new(),
    waiting: Vec::new(),
});

struct Eras {
    generation: u32,
    next: u64,
    /// Views that there are now.
    views: usize,
    eras: VecDeque<Era>,
    /// What is let go of when all eras from this one on are over and without children.
    waiting: Vec<(u64, Box<dyn Send>)>,
}

struct Era {
    number: u64,
    /// How many children had been forked when it began.
    children: u64,
    ended: ForkClosed,
    /// Closed when the era is over.
    heirs: Option<OwnedFd>,
}

impl Eras {
    /// In a forked child, what its parent knew is nothing to it: it only keeps its ends open.
    fn enter_generation(&mut self) {
        if self.generation != fork::generation() {
            self.generation = fork::generation();
            self.views = 0;
            self.eras.drain(..).for_each(std::mem::forget);
            self.waiting.drain(..).for_each(std::mem::forget);
        }
    }

    /// The era that is now, if there is one.
    fn now(&self) -> Option<u64> {
        let last = self.eras.back()?;
        (last.children == fork::children()).then_some(last.number)
    }

    fn begin(&mut self) -> io::Result<u64> {
        if let Some(number) = self.now() {
            return Ok(number);
        }
        let (ended, heirs) = heirloom()?;
        self.close();
        let (number, children) = (self.next, fork::children());
        self.next += 1;
        self.eras.push_back(Era { number, children, ended, heirs: Some(heirs) });
        Ok(number)
    }

    /// Closes the last era, if it is over.
    fn close(&mut self) {
        let over = self.now().is_none();
        if let Some(last) = self.eras.back_mut().filter(|_| over) {
            last.heirs = None;
        }
    }

    /// What nobody can see any more, to be dropped outside.
    fn sweep(&mut self) -> Vec<Box<dyn Send>> {
        self.close();
        let gone = |era: &Era| {
            era.heirs.is_none() && wait_readable(&era.ended, Some(Instant::now())).unwrap_or(false)
        };
        self.eras.retain(|era| !gone(era));
        let now = self.now();
        // The era that is now has no children yet.
        let last =
            self.eras.iter().map(|era| era.number).filter(|number| Some(*number) != now).max();
        let held = |since: u64| last.is_some_and(|last| since <= last);
        let (keep, free) = self.waiting.drain(..).partition(|(since, _)| held(*since));
        self.waiting = keep;
        if self.views == 0 && self.waiting.is_empty() {
            self.eras.clear();
        }
        free.into_iter().map(|(_, it): (u64, _)| it).collect()
    }
}

/// Stands for a private view. It knows the era that the view began in.
#[derive(Debug)]
pub(super) struct Presence {
    since: u64,
    generation: u32,
}

impl Presence {
    /// # Errors
    ///
    /// If there is no descriptor for a pipe; then there must be no view.
    pub(super) fn begin() -> io::Result<Self> {
        let since = ERAS.with(|eras| {
            eras.enter_generation();
            let since = eras.begin()?;
            eras.views += 1;
            Ok::<_, io::Error>(since)
        })?;
        Ok(Self { since, generation: fork::generation() })
    }

    /// The view is gone: drops `what`, now or when the last child that may have the view is gone.
    pub(super) fn end(self, what: Box<dyn Send>) {
        if self.generation != fork::generation() {
            // Not ours: our parent has it.
            std::mem::forget(what);
            return;
        }
        let free = ERAS.with(|eras| {
            eras.enter_generation();
            eras.views -= 1;
            eras.waiting.push((self.since, what));
            eras.sweep()
        });
        drop(free);
    }
}

/// Lets go of what waits for children that have ended meanwhile. True: something waits still.
pub(crate) fn sweep() -> bool {
    let (free, waits) = ERAS.with(|eras| {
        eras.enter_generation();
        (eras.sweep(), !eras.waiting.is_empty())
    });
    drop(free);
    waits
}

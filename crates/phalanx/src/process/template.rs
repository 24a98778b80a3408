//! The owner's side of a template: a warm process that forks when asked.
//!
//! The template runs alone in its single thread, so its forks are safe, and has imported what its
//! children need, so they are quick. It is reached over an inherited socket pair and has neither a
//! path nor a port. What is said is in `wire.rs`, the other side in `template_server.rs`.
//!
//! Replies and exit reports come over the one socket, and whoever waits for one reads them all:
//! one thread at a time is the reader and sleeps in poll(2), the others sleep until it has read
//! something. If the template dies, its children live on and their ends are still seen by pidfd;
//! only their codes are lost (255). If we die, the template reads the end of the stream, and ends;
//! where it does not come to that, as it imports something or was stopped, the kernel sees to it by
//! its lifeline. A forked child has neither (`ForkClosed`), and must start a template of its own.
//!
//! A template that somebody has stopped (SIGSTOP) answers nothing until it goes on. Whoever waits for a
//! word of it looks each second what state it is in, and when it was stopped at [`PATIENCE`] looks in a
//! row, it is killed: then it is as with one that has died. Who asked is told EPIPE and can ask another
//! template, as Python's `forkserver` does, and no child runs twice, for none runs whose answer we have
//! not read. Looks are counted, and not seconds, as we may have been stopped ourselves, in the same job.
//! One that a debugger holds (state t) is left to it, and one that is at work, however long, is awaited.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::warn;

use super::child::{Child, Parent};
use super::exit::Exit;
use super::wire::{HINT_LEN, LEN, Message};
use crate::error::{Error, Result};
use crate::sync::fault;
use crate::sys::child as os;
use crate::sys::fork::{self, ForkClosed};
use crate::sys::lifeline;
use crate::sys::socket::{self, MESSAGE_FDS, Received};

/// A template process that this process started.
#[derive(Debug)]
pub struct Template {
    link: Arc<Link>,
    process: Arc<Child>,
}

/// Between two looks at a template that one waits for.
const LOOK: Duration = Duration::from_secs(1);
/// How many looks in a row may find it stopped.
const PATIENCE: u32 = 10;

impl Template {
    /// Runs the program `path`, which is to make a [`TemplateServer`](super::TemplateServer) of
    /// the descriptor whose number is added to `args` as the last.
    ///
    /// # Errors
    ///
    /// As [`Child::spawn`].
    pub fn start(path: &CStr, args: &[CString], env: Option<&[CString]>) -> Result<Self> {
        let pair = || socket::pair().map(|(ours, theirs)| (ForkClosed::new(ours), theirs));
        let (socket, theirs) =
            fork::undivided(pair).map_err(|e| Error::os("make a socket pair", e))?;
        let (owner, lifeline) = lifeline().map_err(|e| Error::os("make a lifeline", e))?;
        // It is not left to it by its number, as its own children are not to have it.
        socket::send(&socket, &Message::Lifeline.encode(), &[lifeline.as_fd()], false)
            .map_err(|e| Error::os("send a lifeline", e))?;
        let fd = theirs.as_raw_fd();
        let number = CString::new(fd.to_string()).expect("digits");
        let args: Vec<CString> = args.iter().cloned().chain([number]).collect();
        let process = Child::spawn(path, &args, env, &[fd])?;
        process.end_with_us(&lifeline).inspect_err(|_| os::kill_and_reap(process.pid()))?;
        let process = Arc::new(process);
        let link = Link::new(socket, Some(owner), process.clone());
        Ok(Self { link: Arc::new(link), process })
    }

    /// The template itself.
    #[must_use]
    pub fn process(&self) -> &Child {
        &self.process
    }

    /// Can it be asked: is it ours, and does it run?
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.link.socket.is_ours() && matches!(self.process.try_exit(), Ok(None))
    }

    /// Asks for a child that is given `payload`, of any size, and copies of `fds`, of any number.
    ///
    /// `hint` is for the template itself, before it forks: at most 4000 bytes.
    ///
    /// # Errors
    ///
    /// The system's EPIPE when the template has ended, or was stopped for ten seconds, and so killed.
    pub fn launch(&self, payload: &[u8], fds: &[RawFd], hint: &[u8]) -> Result<Launch> {
        if hint.len() > HINT_LEN {
            return Err(Error::invalid("a hint for a template has at most 4000 bytes"));
        }
        let id = self.link.ask(payload, fds, hint).map_err(|e| Error::os(ASKING, e))?;
        Ok(Launch { link: Arc::clone(&self.link), id: Some(id) })
    }

    /// Ends it, and waits for its end as long as `timeout`. Its children live on.
    ///
    /// # Errors
    ///
    /// As [`Child::wait_until`].
    pub fn stop(&self, timeout: Duration) -> Result<()> {
        if let Ok(socket) = self.link.socket.get() {
            let _ = socket::shutdown(socket);
            self.process.wait_until(Some(Instant::now() + timeout))?;
        }
        Ok(())
    }
}

const ASKING: &str = "ask the template process for a child";

/// A child that was asked for. Dropped before the answer, it is killed as soon as it is known.
#[derive(Debug)]
pub struct Launch {
    link: Arc<Link>,
    /// `None` once it was answered.
    id: Option<u64>,
}

impl Launch {
    /// Waits for the child; `None` when the deadline came first, or a signal.
    ///
    /// # Errors
    ///
    /// The system's error when the template could not fork; EPIPE when it has ended, or was stopped for
    /// ten seconds, and so killed.
    pub fn wait_until(&mut self, deadline: Instant) -> Result<Option<Child>> {
        let Some(id) = self.id else { return Ok(None) };
        let answer = self.link.wait_answer(id, deadline).map_err(|e| Error::os(ASKING, e))?;
        Ok(answer.map(|Launched { pid, pidfd, gate }| {
            fault("owner: an answer is read, before the gate");
            self.id = None;
            socket::nudge(gate);
            fault("owner: a gate is open");
            Child::new(pid, pidfd, Parent::Template { link: Arc::clone(&self.link), id })
        }))
    }
}

impl Drop for Launch {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.link.forget(id);
        }
    }
}

/// The socket, and what was read from it and not yet asked for.
#[derive(Debug)]
pub(super) struct Link {
    socket: ForkClosed,
    /// After the socket, whose end is to be found by one whom this wakes.
    _lifeline: Option<ForkClosed>,
    /// The template.
    process: Arc<Child>,
    state: Mutex<State>,
    /// Something was read, or nobody reads now.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    last_id: u64,
    /// What is known of each child that somebody still asks about.
    known: HashMap<u64, Known>,
    is_being_read: bool,
    /// When to look what state the template is in, if somebody waits, and how many looks in a row have
    /// found it stopped.
    look: Option<Instant>,
    stopped: u32,
    /// Why nothing more will come.
    ended: Option<i32>,
}

/// What was heard of a child. Both may have come before anybody looked.
#[derive(Debug, Default)]
struct Known {
    /// The child, or why there is none; taken by whoever asked for it.
    answer: Option<io::Result<Launched>>,
    exit: Option<Exit>,
}

/// A child that waits at its gate.
#[derive(Debug)]
struct Launched {
    pid: u32,
    pidfd: OwnedFd,
    gate: OwnedFd,
}

impl Link {
    fn new(socket: ForkClosed, _lifeline: Option<ForkClosed>, process: Arc<Child>) -> Self {
        Self { socket, _lifeline, process, state: Mutex::default(), changed: Condvar::new() }
    }

    fn ask(&self, payload: &[u8], fds: &[RawFd], hint: &[u8]) -> io::Result<u64> {
        let socket = self.socket.get()?;
        let payload = socket::sealed(payload)?;
        let fds: Vec<BorrowedFd<'_>> = [Ok(payload.as_fd())]
            .into_iter()
            .chain(fds.iter().map(|fd| socket::borrow(*fd)))
            .collect::<io::Result<_>>()?;

        let mut state = self.lock();
        state.last_id += 1;
        let id = state.last_id;
        let request = Message::Request { id, fds: fds.len() };
        let mut message = [&request.encode(), hint].concat();
        // The lock keeps the parts of a request together. A template that runs makes room soon, whether
        // its answers are read or not.
        for part in fds.chunks(MESSAGE_FDS) {
            fault("owner: a request is made, and not sent");
            while let Err(error) = socket::send(socket, &message, part, false) {
                match error.kind() {
                    io::ErrorKind::WouldBlock => {
                        let look = self.look_after(&mut state);
                        socket::wait_writable_or(socket, &self.process, Some(look))?;
                    }
                    // It has ended with requests unread.
                    io::ErrorKind::ConnectionReset => {
                        return Err(io::Error::from_raw_os_error(libc::EPIPE));
                    }
                    _ => return Err(error),
                }
            }
            fault("owner: a request is sent in part");
            message = Message::Rest { id }.encode().to_vec();
        }
        fault("owner: a request is sent, and not noted");
        state.known.insert(id, Known::default());
        Ok(id)
    }

    fn wait_answer(&self, id: u64, deadline: Instant) -> io::Result<Option<Launched>> {
        let answer = self.wait_for(deadline, |state| {
            let heard = state.known.get_mut(&id).and_then(|known| known.answer.take());
            heard.or(state.ended.map(|errno| Err(io::Error::from_raw_os_error(errno))))
        })?;
        answer.transpose()
    }

    /// The exit of a child that has ended.
    pub(super) fn wait_exit(&self, id: u64, deadline: Instant) -> Result<Option<Exit>> {
        self.wait_for(deadline, |state| {
            let heard = state.known.get(&id).and_then(|known| known.exit);
            heard.or(state.ended.map(|_| Exit::UNKNOWN))
        })
        .map_err(|e| Error::os("learn how a child ended", e))
    }

    pub(super) fn forget(&self, id: u64) {
        if !self.socket.is_ours() {
            return;
        }
        let known = self.lock().known.remove(&id);
        if let Some(Known { answer: Some(Ok(launched)), .. }) = known {
            launched.give_up();
        }
    }

    /// Reads until `look` finds what it looks for.
    fn wait_for<T>(
        &self,
        deadline: Instant,
        mut look: impl FnMut(&mut State) -> Option<T>,
    ) -> io::Result<Option<T>> {
        let socket = self.socket.get()?;
        let mut state = self.lock();
        loop {
            if !state.is_being_read {
                state.read(socket);
                self.changed.notify_all();
            }
            if let Some(found) = look(&mut state) {
                return Ok(Some(found));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let look = self.look_after(&mut state);
            let left = left.min(look.saturating_duration_since(Instant::now()));
            if state.is_being_read {
                let woken = self.changed.wait_timeout(state, left);
                state = woken.unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            state.is_being_read = true;
            drop(state);
            let (until, over) = (deadline.min(look), deadline <= look);
            let readable = socket::wait_readable(socket, Some(until));
            state = self.lock();
            state.is_being_read = false;
            self.changed.notify_all();
            // Before its time, a signal has ended it.
            if !readable? && (over || Instant::now() < until) {
                return Ok(None);
            }
        }
    }

    /// Of one who waits: looks what state the template is in if it is time, kills one that was stopped for
    /// too long, and says when to look next.
    fn look_after(&self, state: &mut State) -> Instant {
        let now = Instant::now();
        match state.look {
            Some(look) if now < look => return look,
            // Nobody has waited for a while.
            Some(look) if now > look + LOOK * PATIENCE => state.stopped = 0,
            Some(_) if os::is_stopped(self.process.pid()) => state.stopped += 1,
            _ => state.stopped = 0,
        }
        if state.stopped >= PATIENCE {
            state.stopped = 0;
            let pid = self.process.pid();
            warn!(pid, "a template process was stopped for {PATIENCE} s, and is killed");
            let _ = self.process.signal(libc::SIGKILL);
        }
        *state.look.insert(now + LOOK)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes in all that has arrived.
    fn read(&mut self, socket: BorrowedFd<'_>) {
        let mut bytes = [0; LEN];
        while self.ended.is_none() {
            let received = socket::try_receive(socket, &mut bytes);
            if received.is_ok() {
                self.stopped = 0;
            }
            match received {
                Ok(Received { len: 0, .. }) => self.ended = Some(libc::EPIPE),
                Ok(Received { len, fds }) => self.hear(Message::decode(&bytes[..len]), fds),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.raw_os_error() == Some(libc::ECONNRESET) => {
                    self.ended = Some(libc::EPIPE);
                }
                Err(error) if error.raw_os_error() == Some(libc::EMFILE) => {
                    self.refuse_descriptor(socket, Message::decode(&bytes));
                }
                Err(error) => self.ended = Some(error.raw_os_error().unwrap_or(libc::EIO)),
            }
        }
    }

    /// A child came, and we could not take its pidfd: whoever asked is told so, and the template, which
    /// has one, ends the child.
    fn refuse_descriptor(&mut self, socket: BorrowedFd<'_>, message: Option<Message>) {
        let Some(Message::Launched { id, .. }) = message else {
            self.ended = Some(libc::EPROTO);
            return;
        };
        if let Some(known) = self.known.get_mut(&id) {
            known.answer = Some(Err(io::Error::from_raw_os_error(libc::EMFILE)));
        }
        // Without a template there is nobody to be told. And its gate has gone with its pidfd.
        let _ = socket::send(socket, &Message::Unwatched { id }.encode(), &[], false);
    }

    fn hear(&mut self, message: Option<Message>, fds: Vec<OwnedFd>) {
        match message {
            Some(Message::Launched { id, pid }) => {
                let Ok([pidfd, gate]) = <[OwnedFd; 2]>::try_from(fds) else {
                    self.ended = Some(libc::EPROTO);
                    return;
                };
                let launched = Launched { pid, pidfd, gate };
                match self.known.get_mut(&id) {
                    Some(known) => known.answer = Some(Ok(launched)),
                    None => launched.give_up(),
                }
            }
            Some(Message::Refused { id, errno }) => {
                if let Some(known) = self.known.get_mut(&id) {
                    known.answer = Some(Err(io::Error::from_raw_os_error(errno)));
                }
            }
            Some(Message::Exited { id, status }) => {
                if let Some(known) = self.known.get_mut(&id) {
                    known.exit = Some(Exit::from_wait_status(status));
                }
            }
            // What only we say.
            Some(
                Message::Request { .. }
                | Message::Rest { .. }
                | Message::Unwatched { .. }
                | Message::Lifeline,
            )
            | None => {
                self.ended = Some(libc::EPROTO);
            }
        }
    }
}

impl Launched {
    /// Nobody waits any more for this child.
    fn give_up(self) {
        let _ = os::signal(self.pidfd, libc::SIGKILL);
    }
}

/// A template that is none, and always runs.
#[cfg(test)]
fn ourselves() -> Arc<Child> {
    Arc::new(Child::of_pid(std::process::id()).unwrap())
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_child_that_is_given_up_before_or_after_its_answer_was_read_never_runs() {
        for is_read in [false, true] {
            let (template, ours) = socket::pair().unwrap();
            let link = Link::new(ForkClosed::new(ours), None, ourselves());
            link.lock().known.insert(1, Known::default());
            let mut child = Command::new("sleep").arg("600").spawn().unwrap();
            let (pidfd, (gate, childs)) = (os::open(child.id()).unwrap(), socket::pair().unwrap());
            let answer = Message::Launched { id: 1, pid: child.id() }.encode();
            socket::send(&template, &answer, &[pidfd.as_fd(), gate.as_fd()], true).unwrap();
            drop(gate);
            // As a thread does that waits for another child.
            let read = || assert!(link.wait_for(Instant::now(), |_| None::<()>).unwrap().is_none());
            if is_read {
                read();
            }
            link.forget(1);
            read();
            assert!(!socket::drain(&childs).unwrap(), "its gate was opened");
            assert_eq!(child.wait().unwrap().signal(), Some(9));
        }
    }
}

#[cfg(all(test, not(loom)))]
mod fuzz {
    use super::super::fuzz::{say, valid};
    use super::*;
    use crate::fuzz::{Fuzz, Script};

    #[test]
    fn an_owner_hears_of_its_children_or_that_there_is_no_template() {
        Fuzz::new("template answer").cost(40).run(&[valid().concat()], |bytes| {
            let (template, ours) = socket::pair().unwrap();
            let link = Link::new(ForkClosed::new(ours), None, ourselves());
            link.lock().known.insert(1, Known::default());
            say(&template, &mut Script(bytes));
            drop(template);
            let now = Instant::now();
            let answer = link.wait_answer(1, now);
            assert!(!matches!(answer, Ok(None)), "the template is gone, and nobody was told");
            assert!(link.wait_exit(1, now).unwrap().is_some());
        });
    }
}

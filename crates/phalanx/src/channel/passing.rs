//! Descriptors inside of values.
//!
//! A descriptor is a number that means something in one process. A value that holds one is
//! written with a *ticket* in its place, and whoever reads the value comes with the ticket to the
//! process that wrote it and is handed a copy of the descriptor (SCM_RIGHTS). So the bytes may take
//! any way: a task's argument, a channel in shared memory, a pipe.
//!
//! | step | who | what a death leaves |
//! | --- | --- | --- |
//! | issue: a copy of the descriptor is put under a number | the writer | nothing: the copy goes with the process |
//! | the bytes travel | anyone | a ticket that nobody takes: until its [`Tickets`] are dropped |
//! | come: connect to the writer's listener, name the process and the number | the reader | a guest that hangs up |
//! | hand over | a thread of the writer, which ends with the last ticket | the reader sees the end of the stream, and says so |
//! | have | the reader | a copy that is good for once and was handed over is gone with it |
//!
//! A ticket is good only while its writer lives. The listener has a name that the kernel chose, is
//! reached by processes of the same user only, and asks for the writer's [`ProcessId`], so that a
//! later process with the same name in its place hands out nothing. A forked child has no tickets:
//! those were its parent's.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

use crate::sync::fault;
use crate::sys::fork::{self, Whole};
use crate::sys::socket::{send, shutdown, try_receive, wait_readable};
use crate::sys::{ProcessId, block_signals, rendezvous};

/// How long a guest may take to say what it came for.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long a host may take to answer; it serves one guest after the other.
const HOST_PATIENCE: Duration = Duration::from_secs(60);

static OFFICE: Whole<Office> = Whole::new(Office { listener: None, tickets: BTreeMap::new() });
static NEXT: AtomicU64 = AtomicU64::new(0);

/// What this process hands out.
struct Office {
    listener: Option<Listener>,
    tickets: BTreeMap<u64, Entry>,
}

#[derive(Debug)]
struct Listener {
    socket: Arc<OwnedFd>,
    name: Vec<u8>,
    generation: u32,
}

struct Entry {
    fd: OwnedFd,
    /// The copy is handed over once and is then gone.
    once: bool,
}

impl Office {
    /// The listener, if this process has one; what a fork left here is put away.
    fn listener(&mut self) -> Option<&Listener> {
        if self.listener.as_ref().is_some_and(|l| l.generation != fork::generation()) {
            self.listener = None;
            self.tickets.clear();
        }
        self.listener.as_ref()
    }

    fn take(&mut self, number: u64) -> io::Result<OwnedFd> {
        let entry = self.tickets.get(&number).ok_or(io::ErrorKind::NotFound)?;
        if entry.once {
            return Ok(self.tickets.remove(&number).expect("it was there").fd);
        }
        entry.fd.try_clone()
    }
}

/// Closes the office of this process if it has nothing left to hand out.
fn close_if_idle() {
    let idle = OFFICE.with(|office| {
        office.listener()?;
        if office.tickets.is_empty() { office.listener.take() } else { None }
    });
    if let Some(listener) = idle {
        // Its thread wakes and leaves. A listener that was never connected can be shut down, too.
        let _ = shutdown(&*listener.socket);
    }
}

thread_local! {
    /// The tickets of what this thread is writing, if it is for another process.
    static WRITING: RefCell<Option<Scope>> = const { RefCell::new(None) };
}

/// For how long tickets are good.
#[derive(Debug)]
pub(crate) enum Scope {
    /// Until the [`Tickets`] are dropped, any number of times.
    Held(Vec<u64>),
    /// Until they are taken, once; or until this process ends.
    Once,
}

/// Keeps what was written into bytes good, until dropped.
#[derive(Debug, Default)]
pub(crate) struct Tickets(Vec<u64>);

impl Scope {
    /// Runs `write`, which may write descriptors.
    pub(crate) fn run<R>(self, write: impl FnOnce() -> R) -> (R, Tickets) {
        /// Gives the thread its former scope back, also when `write` panics.
        struct Former(Option<Scope>);
        impl Drop for Former {
            fn drop(&mut self) {
                if let Some(Scope::Held(tickets)) = WRITING.replace(self.0.take()) {
                    drop(Tickets(tickets));
                }
            }
        }
        let _former = Former(WRITING.replace(Some(self)));
        let result = write();
        let tickets = WRITING.with_borrow_mut(|scope| match scope {
            Some(Self::Held(tickets)) => std::mem::take(tickets),
            _ => Vec::new(),
        });
        (result, Tickets(tickets))
    }
}

impl Drop for Tickets {
    fn drop(&mut self) {
        if !self.0.is_empty() {
            let numbers = &self.0;
            // What is closed is closed outside.
            let removed = |office: &mut Office| {
                numbers.iter().map(|number| office.tickets.remove(number)).collect()
            };
            let _closed: Vec<_> = OFFICE.with(removed);
            close_if_idle();
        }
    }
}

/// What stands in the bytes.
#[derive(Debug, Serialize, Deserialize)]
struct Ticket {
    name: Vec<u8>,
    process: u64,
    number: u64,
}

/// A descriptor, to be written.
#[derive(Debug)]
pub(crate) struct Passing<'a>(pub(crate) BorrowedFd<'a>);

/// A descriptor that was read: a copy of its writer's.
#[derive(Debug)]
pub(crate) struct Passed(pub(crate) OwnedFd);

/// As [`Passing`], but whoever reads it takes it: no copy stays here, whose being open would hide
/// the death of the one that took it.
#[derive(Debug)]
pub(crate) struct Handing<'a>(pub(crate) BorrowedFd<'a>);

impl Serialize for Passing<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        write(self.0, false, serializer)
    }
}

impl Serialize for Handing<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        write(self.0, true, serializer)
    }
}

fn write<S: Serializer>(fd: BorrowedFd<'_>, taken: bool, serializer: S) -> Result<S::Ok, S::Error> {
    let once = WRITING.with_borrow(|scope| scope.as_ref().map(|s| matches!(s, Scope::Once)));
    let once = once.ok_or_else(|| {
        ser::Error::custom(
            "a descriptor can be written only into what goes to another process: the argument \
                 of a task, the result of a pool's task, or an item of a channel or a pipe",
        )
    })?;
    let ticket = issue(fd, once || taken);
    let ticket = ticket.map_err(|e| ser::Error::custom(format!("pass a descriptor on: {e}")))?;
    WRITING.with_borrow_mut(|scope| {
        if let Some(Scope::Held(tickets)) = scope {
            tickets.push(ticket.number);
        }
    });
    fault("passing: a ticket is issued, and not written");
    ticket.serialize(serializer)
}

impl<'de> Deserialize<'de> for Passed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let ticket = Ticket::deserialize(deserializer)?;
        ticket.take().map(Self).map_err(|error| {
            let pid = ProcessId::from_bits(ticket.process).map_or(0, ProcessId::pid);
            de::Error::custom(format!("a descriptor of process {pid} cannot be had: {error}"))
        })
    }
}

/// Puts a copy of `fd` under a number.
fn issue(fd: BorrowedFd<'_>, once: bool) -> io::Result<Ticket> {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut entry = Some(Entry { fd: fd.try_clone_to_owned()?, once });
    loop {
        let name = OFFICE.with(|office| {
            let name = office.listener()?.name.clone();
            office.tickets.insert(number, entry.take()?);
            Some(name)
        });
        match name {
            Some(name) => return Ok(Ticket { name, process: ProcessId::own().bits(), number }),
            None => open()?,
        }
    }
}

/// Opens the office of this process; of two threads that try, one does.
fn open() -> io::Result<()> {
    let (socket, name) = rendezvous::listen()?;
    let (socket, generation) = (Arc::new(socket), fork::generation());
    let listener = Listener { socket: socket.clone(), name, generation };
    let opened = OFFICE.with(|office| {
        let closed = office.listener().is_none();
        if closed {
            office.listener = Some(listener);
        }
        closed
    });
    if opened {
        let thread = std::thread::Builder::new().name("phalanx-passing".into());
        if let Err(error) = block_signals(|| thread.spawn(move || serve(&socket))) {
            OFFICE.with(|office| office.listener = None);
            return Err(error);
        }
    }
    Ok(())
}

/// Hands out, until the office is closed or the process ends.
fn serve(socket: &Arc<OwnedFd>) {
    let ours = |office: &mut Office| {
        office.listener().is_some_and(|listener| Arc::ptr_eq(&listener.socket, socket))
    };
    while OFFICE.with(ours) {
        match rendezvous::accept(&**socket) {
            // A guest that does not keep to the protocol gets nothing, and loses nothing of ours.
            Ok(guest) => drop(receive(&guest)),
            Err(_) if !OFFICE.with(ours) => return,
            // Out of descriptors, or a guest that has gone: the next may have more luck.
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

fn receive(guest: &OwnedFd) -> io::Result<()> {
    wait_readable(guest, Instant::now().checked_add(PATIENCE))?;
    fault("passing: a guest has spoken, and is not heard");
    let mut words = [0_u64; 2];
    let received = try_receive(guest, bytemuck::bytes_of_mut(&mut words))?;
    let [process, number] = words;
    let known = received.len == size_of_val(&words) && process == ProcessId::own().bits();
    let taken = known.then(|| OFFICE.with(|office| office.take(number)));
    fault("passing: a descriptor is taken, and not handed over");
    close_if_idle();
    let answered = match taken {
        Some(Ok(fd)) => send(guest, &[1], &[fd.as_fd()], false),
        _ => send(guest, &[0], &[], false),
    };
    fault("passing: a descriptor is handed over");
    answered
}

impl Ticket {
    fn take(&self) -> io::Result<OwnedFd> {
        if self.process == ProcessId::own().bits() {
            let taken = OFFICE.with(|office| office.take(self.number));
            close_if_idle();
            return taken.map_err(|_| gone());
        }
        self.ask_host().map_err(|error| match error.kind() {
            // Nobody is there; he has gone before we spoke; he has gone without having heard us.
            io::ErrorKind::ConnectionRefused
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset => ended(),
            _ => error,
        })
    }

    fn ask_host(&self) -> io::Result<OwnedFd> {
        let host = rendezvous::meet(&self.name)?;
        fault("passing: a guest has come, and has not spoken");
        let words = [self.process, self.number];
        send(&host, bytemuck::bytes_of(&words), &[], true)?;
        fault("passing: a guest has spoken");
        let deadline = Instant::now().checked_add(HOST_PATIENCE);
        while !wait_readable(&host, deadline)? {
            if deadline.is_some_and(|at| at <= Instant::now()) {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        let received = try_receive(&host, &mut [0])?;
        fault("passing: a guest has what it came for");
        match received.fds.into_iter().next() {
            Some(fd) => Ok(fd),
            None if received.len == 0 => Err(ended()),
            None => Err(gone()),
        }
    }
}

fn ended() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "the process has ended")
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "what it was sent with has ended, or it was taken")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    fn written(fd: &impl AsFd, scope: Scope) -> (Vec<u8>, Tickets) {
        let (bytes, tickets) = scope.run(|| postcard::to_stdvec(&Passing(fd.as_fd())));
        (bytes.unwrap(), tickets)
    }

    fn read(bytes: &[u8]) -> Result<std::fs::File, postcard::Error> {
        postcard::from_bytes(bytes).map(|Passed(fd)| fd.into())
    }

    /// Comes to the listener as another process would.
    fn read_from_outside(bytes: &[u8], process: u64) -> io::Result<OwnedFd> {
        let ticket: Ticket = postcard::from_bytes(bytes).unwrap();
        let host = rendezvous::meet(&ticket.name)?;
        send(&host, bytemuck::bytes_of(&[process, ticket.number]), &[], true)?;
        assert!(wait_readable(&host, Instant::now().checked_add(HOST_PATIENCE))?);
        try_receive(&host, &mut [0])?.fds.pop().ok_or_else(gone)
    }

    #[test]
    fn a_descriptor_that_is_read_is_a_copy_of_the_one_that_was_written() {
        let (mut here, there) = std::io::pipe().unwrap();
        let (bytes, tickets) = written(&there, Scope::Held(Vec::new()));
        drop(there);
        let own = ProcessId::own().bits();
        let mut copy = read(&bytes).unwrap();
        let mut outside = std::fs::File::from(read_from_outside(&bytes, own).unwrap());
        drop(tickets);
        copy.write_all(b"one ").unwrap();
        outside.write_all(b"two").unwrap();
        drop((copy, outside));
        let mut text = String::new();
        here.read_to_string(&mut text).unwrap(); // and all writers are closed
        assert_eq!(text, "one two");
    }

    #[test]
    fn a_ticket_ends_with_what_it_was_written_for() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let (bytes, tickets) = written(&file, Scope::Held(Vec::new()));
        drop(tickets);
        assert!(read(&bytes).is_err());
        let (bytes, _) = written(&file, Scope::Once);
        assert!(read(&bytes).is_ok());
        assert!(read(&bytes).is_err(), "it was taken");
    }

    #[test]
    fn a_guest_that_means_another_process_gets_nothing() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let (bytes, _tickets) = written(&file, Scope::Held(Vec::new()));
        assert!(read_from_outside(&bytes, ProcessId::own().bits() + (1 << 30)).is_err());
        assert!(read_from_outside(&bytes, ProcessId::own().bits()).is_ok());
    }

    #[test]
    fn a_descriptor_is_not_written_where_it_could_not_be_read() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(postcard::to_stdvec(&Passing(file.as_fd())).is_err());
    }
}

#[cfg(test)]
mod fuzz {
    use super::*;
    use crate::fuzz::Fuzz;
    use crate::sys::socket;

    /// May another test, which runs at the same time, have a ticket with that number?
    fn is_of_a_test(number: u64) -> bool {
        number < 1 << 20
    }

    #[test]
    fn a_ticket_of_ours_is_taken_or_refused() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let (bytes, tickets) =
            Scope::Held(Vec::new()).run(|| postcard::to_stdvec(&Passing(file.as_fd())).unwrap());
        Fuzz::new("ticket").cost(4).run(&[bytes], |bytes| {
            let ticket: Result<Ticket, _> = postcard::from_bytes(bytes);
            let Ok(ticket) = ticket else { return };
            let ours = tickets.0.contains(&ticket.number);
            // Others would be asked for, by whatever name is in it.
            if ticket.process == ProcessId::own().bits() && (ours || !is_of_a_test(ticket.number)) {
                assert_eq!(ticket.take().is_ok(), ours);
            }
        });
    }

    #[test]
    fn a_guest_gets_what_it_came_for_or_nothing() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let ticket = issue(file.as_fd(), false).unwrap();
        let tickets = Tickets(vec![ticket.number]);
        let words = [ticket.process, ticket.number];
        Fuzz::new("guest").cost(20).run(&[bytemuck::bytes_of(&words).to_vec()], |bytes| {
            let meant = bytes.starts_with(bytemuck::bytes_of(&words));
            let number = bytes.get(8..16).map_or(0, bytemuck::pod_read_unaligned);
            if !meant && is_of_a_test(number) {
                return;
            }
            let (guest, host) = socket::pair().unwrap();
            // Something, as an empty message is the end of a guest.
            let said = [bytes, &[0][..usize::from(bytes.is_empty())]].concat();
            send(&guest, &said, &[file.as_fd()], false).unwrap();
            receive(&host).unwrap();
            let got = try_receive(&guest, &mut [0; 2]).unwrap();
            assert_eq!((got.len, got.fds.len()), (1, usize::from(meant)));
        });
        drop(tickets);
    }
}

//! This program, run again: how a child is started, and how it learns what it is to do.
//!
//! A child runs `/proc/self/exe`, which is this executable even if its file has been replaced, with
//! the same arguments and environment and one variable more. That tells its [`Role`] and the
//! numbers of the descriptors that it was given. [`init`] takes the variable out again before
//! anybody can inherit it.

use std::ffi::{CString, OsString};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{env, fs};

use serde::{Deserialize, Serialize};

use super::{process, worker};
use crate::error::{Error, Result};
use crate::process::Child;
use crate::sys::again::take_variable;
use crate::sys::child::Surroundings;
use crate::sys::socket::adopt;

const VARIABLE: &str = "PHALANX_CHILD";

/// Has `init` been called here?
static READY: AtomicBool = AtomicBool::new(false);

/// What a child is to do. Descriptors go by the order in which they were given.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Role {
    /// Serve in a pool. Descriptors: memory, event, lifeline, report, and the initializer if there is
    /// one.
    Worker { seat: usize, life: Option<u64>, tree: bool },
    /// Run one task. Descriptors: its payload, where its result goes, its lifeline if it has a tie,
    /// and, if it is to wait until it has been set up, the pipe that says so.
    Process { tie: Option<Tie> },
}

/// A child that ends with its supervisor.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Tie {
    /// What it has started ends with it.
    pub(crate) tree: bool,
}

/// Does nothing in your program; in a child, which is your program run again, it does the child's
/// work and never returns. Call it first in `main`.
///
/// ```
/// fn main() -> phalanx::Result<()> {
///     phalanx::init();
///     let process = phalanx::Process::spawn(|name: String| format!("hello {name}"), "you".into())?;
///     assert_eq!(process.join()?, "hello you");
///     Ok(())
/// }
/// ```
///
/// What stands before it in `main` is run by every worker, too. Without it,
/// [`Pool::new`](crate::Pool::new) and [`Process::spawn`](crate::Process::spawn) fail, and say so.
/// For the tests of a crate there is [`enable_tests!`](crate::enable_tests).
pub fn init() {
    READY.store(true, Ordering::Release);
    if let Some(orders) = take_variable(VARIABLE) {
        let code = match read(&orders) {
            Ok((Role::Worker { seat, life, tree }, fds)) => worker::serve(seat, life, tree, fds),
            Ok((Role::Process { tie }, fds)) => process::run(tie, fds),
            Err(error) => Err(error),
        };
        let code = code.unwrap_or_else(|error| {
            eprintln!("phalanx: a child cannot begin its work: {error}");
            1
        });
        // Flushes what tasks have printed.
        std::process::exit(code);
    }
}

/// Starts this program again, to be what `role` says, with copies of the descriptors.
pub(crate) fn again(role: &Role, fds: &[BorrowedFd<'_>]) -> Result<Child> {
    again_in(role, fds, env::vars_os(), &Surroundings::default())
}

/// As [`again`], with another environment and other surroundings.
pub(crate) fn again_in(
    role: &Role,
    fds: &[BorrowedFd<'_>],
    environment: impl Iterator<Item = (OsString, OsString)>,
    surroundings: &Surroundings<'_>,
) -> Result<Child> {
    if !READY.load(Ordering::Acquire) {
        return Err(Error::invalid(
            "phalanx::init() has not been called: make it the first line of `main`, for a worker is \
             this program run again; in a test crate, write `phalanx::enable_tests!();` once",
        ));
    }
    let numbers: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let arguments: Vec<_> = env::args_os().map(|each| c_string(each.into_vec())).collect();
    let mut environment: Vec<_> = environment
        .filter(|(name, _)| name != VARIABLE)
        .map(|(name, value)| c_string([&name.into_vec()[..], b"=", &value.into_vec()].concat()))
        .collect();
    environment.push(c_string(format!("{VARIABLE}={}", orders(role, &numbers)?).into_bytes()));
    let program = c"/proc/self/exe";
    Child::spawn_in(program, &arguments, Some(&environment), &numbers, surroundings)
}

/// From the system, so there is no NUL in it.
fn c_string(bytes: Vec<u8>) -> CString {
    CString::new(bytes).unwrap_or_default()
}

pub(super) fn orders(role: &Role, fds: &[RawFd]) -> Result<String> {
    let bytes = postcard::to_stdvec(&(build()?, fds, role));
    let bytes = bytes.map_err(|error| Error::codec("write a child's orders", error))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn read(orders: &str) -> Result<(Role, Vec<OwnedFd>)> {
    let (theirs, fds, role) = told(orders)?;
    if theirs != build()? {
        return Err(Error::invalid(format!("{VARIABLE} was meant for another program")));
    }
    let fds = fds.into_iter().map(|fd| adopt(fd).map_err(|e| Error::os("take a descriptor", e)));
    Ok((role, fds.collect::<Result<_>>()?))
}

/// What the orders say: for which program they are, the numbers of descriptors, and the role.
pub(super) fn told(orders: &str) -> Result<(Build, Vec<RawFd>, Role)> {
    let doing = "read a child's orders";
    let digits = orders.as_bytes().chunks(2).map(|digits| {
        let text = std::str::from_utf8(digits).ok()?;
        u8::from_str_radix(text, 16).ok()
    });
    let bytes: Option<Vec<u8>> = digits.collect();
    let bytes = bytes.ok_or_else(|| Error::codec(doing, VARIABLE))?;
    postcard::from_bytes(&bytes).map_err(|error| Error::codec(doing, error))
}

/// What tells one executable from another: its file system, its file and its size.
type Build = (u64, u64, u64);

fn build() -> Result<Build> {
    let file = fs::metadata("/proc/self/exe").map_err(|e| Error::os("look at this program", e))?;
    Ok((file.dev(), file.ino(), file.size()))
}

#[cfg(test)]
mod tests {
    #[test]
    fn without_init_there_is_a_clear_error_and_no_process() {
        let error = crate::Pool::new(1).unwrap_err();
        assert!(error.is_invalid() && error.to_string().contains("phalanx::init()"), "{error}");
        assert!(crate::Process::spawn(|()| (), ()).unwrap_err().is_invalid());
    }
}

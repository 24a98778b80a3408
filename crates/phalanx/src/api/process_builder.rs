//! `Process::builder`: a process with other surroundings than ours.

use std::any::type_name;
use std::env;
use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, PipeReader, PipeWriter, Write as _, pipe};
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::process::{Process, reap_dropped};
use super::start::{Role, Tie, again_in};
use super::task;
use super::value::Value;
use crate::channel::Tickets;
use crate::error::{Error, Result};
use crate::pool::Task;
use crate::process::Child;
use crate::sys::again::scratch;
use crate::sys::child::Surroundings;
use crate::sys::code::Captures;
use crate::sys::limits::{self, Resource};
use crate::sys::socket::sealed;

/// Describes a [`Process`] before it is spawned: see [`Process::builder`].
///
/// ```
/// use std::io::Read;
/// use phalanx::{Process, Stdio};
///
/// fn main() -> phalanx::Result<()> {
///     phalanx::init();
///     let mut process = Process::builder()
///         .env("GREETING", "hello")
///         .current_dir("/")
///         .stdout(Stdio::piped())
///         .nice(5)
///         .limit(phalanx::Resource::CpuTime, 60)
///         .spawn(|name: String| println!("{} {name}", std::env::var("GREETING").unwrap()), "you".into())?;
///     let mut printed = String::new();
///     process.take_stdout().unwrap().read_to_string(&mut printed).unwrap();
///     process.join()?;
///     assert_eq!(printed, "hello you\n");
///     Ok(())
/// }
/// ```
///
/// What is not named is this process's own. Environment, directory and streams are there before
/// the program starts; niceness, CPUs and limits before the task does, and what the system refuses
/// of these is an error of [`spawn`](Self::spawn), which then leaves no process behind.
#[derive(Debug, Default)]
#[must_use = "a builder does nothing until it spawns"]
pub struct ProcessBuilder {
    fresh: bool,
    /// In the order in which they were named; without a value, the variable goes.
    environment: Vec<(OsString, Option<OsString>)>,
    directory: Option<PathBuf>,
    stdin: Stdio,
    stdout: Stdio,
    stderr: Stdio,
    niceness: Option<i32>,
    cpus: Option<Vec<usize>>,
    limits: Vec<(Resource, u64)>,
}

/// What a process has as one of its standard streams.
#[derive(Debug, Default)]
pub struct Stdio(Stream);

#[derive(Debug, Default)]
enum Stream {
    #[default]
    Inherit,
    Null,
    Piped,
    Owned(OwnedFd),
}

impl Stdio {
    /// That of this process; the default.
    #[must_use]
    pub fn inherit() -> Self {
        Self(Stream::Inherit)
    }

    /// `/dev/null`.
    #[must_use]
    pub fn null() -> Self {
        Self(Stream::Null)
    }

    /// A pipe, whose other end the [`Process`] has: [`Process::take_stdout`] and its like.
    #[must_use]
    pub fn piped() -> Self {
        Self(Stream::Piped)
    }
}

/// A file, a socket, an end of a pipe.
impl<T: Into<OwnedFd>> From<T> for Stdio {
    fn from(owner: T) -> Self {
        Self(Stream::Owned(owner.into()))
    }
}

impl Stdio {
    /// What the child has, and our end of the pipe if it is one.
    fn input(self) -> io::Result<(Option<OwnedFd>, Option<PipeWriter>)> {
        self.open(|reader, writer| (reader.into(), writer))
    }

    fn output(self) -> io::Result<(Option<OwnedFd>, Option<PipeReader>)> {
        self.open(|reader, writer| (writer.into(), reader))
    }

    fn open<End>(
        self,
        sort: impl FnOnce(PipeReader, PipeWriter) -> (OwnedFd, End),
    ) -> io::Result<(Option<OwnedFd>, Option<End>)> {
        Ok(match self.0 {
            Stream::Inherit => (None, None),
            Stream::Null => {
                let null = File::options().read(true).write(true).open("/dev/null")?;
                (Some(null.into()), None)
            }
            Stream::Piped => {
                let (reader, writer) = pipe()?;
                let (theirs, ours) = sort(reader, writer);
                (Some(theirs), Some(ours))
            }
            Stream::Owned(fd) => (Some(fd), None),
        })
    }
}

impl ProcessBuilder {
    /// Sets a variable of its environment.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.as_ref().into(), Some(value.as_ref().into())));
        self
    }

    /// Leaves a variable out of its environment.
    pub fn env_remove(mut self, name: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.as_ref().into(), None));
        self
    }

    /// Starts with an empty environment, to which [`env`](Self::env) adds from here on.
    pub fn env_clear(mut self) -> Self {
        self.fresh = true;
        self.environment.clear();
        self
    }

    /// Starts it in this directory.
    pub fn current_dir(self, directory: impl AsRef<Path>) -> Self {
        Self { directory: Some(directory.as_ref().into()), ..self }
    }

    /// What it reads as its standard input.
    pub fn stdin(self, stdio: impl Into<Stdio>) -> Self {
        Self { stdin: stdio.into(), ..self }
    }

    /// Where its standard output goes.
    pub fn stdout(self, stdio: impl Into<Stdio>) -> Self {
        Self { stdout: stdio.into(), ..self }
    }

    /// Where its standard error goes.
    pub fn stderr(self, stdio: impl Into<Stdio>) -> Self {
        Self { stderr: stdio.into(), ..self }
    }

    /// Its niceness: -20 is served first, 19 last. Less than one's own takes a privilege.
    ///
    /// setpriority(2)
    pub fn nice(self, niceness: i32) -> Self {
        Self { niceness: Some(niceness), ..self }
    }

    /// The CPUs that it may run on, by their numbers from 0 on.
    ///
    /// sched_setaffinity(2)
    pub fn cpus(self, cpus: impl IntoIterator<Item = usize>) -> Self {
        Self { cpus: Some(cpus.into_iter().collect()), ..self }
    }

    /// Limits a resource, hard and soft: the process cannot raise it again unless it is privileged.
    ///
    /// prlimit(2)
    pub fn limit(mut self, resource: Resource, most: u64) -> Self {
        self.limits.push((resource, most));
        self
    }

    /// Starts a process that calls `task` with `argument`.
    ///
    /// # Errors
    ///
    /// As [`Process::spawn`]; if a variable's name is empty, or one has `=` or NUL in it; if the
    /// directory is none; if the niceness is not from -20 to 19; if there is no CPU; if the system
    /// refuses the niceness, the CPUs or a limit.
    pub fn spawn<F, A, R>(self, task: F, argument: A) -> Result<Process<R>>
    where
        F: Fn(A) -> R + Copy + Send + Sync + 'static,
        A: Value,
        R: Value,
    {
        let () = Captures::<F>::NOTHING;
        self.check()?;
        let Task { payload, tickets, .. } = task::call(task, argument)?;
        let payload = sealed(&payload).map_err(|e| Error::os("keep an argument", e))?;
        let mut process = self.run(payload.as_fd(), None, type_name::<F>())?;
        process.tickets = tickets;
        Ok(process)
    }

    /// Starts a process that runs what is in `payload`, and ends with the other end of a lifeline.
    pub(super) fn run<R>(
        self,
        payload: BorrowedFd<'_>,
        lifeline: Option<(BorrowedFd<'_>, Tie)>,
        task: &'static str,
    ) -> Result<Process<R>> {
        self.check()?;
        reap_dropped();
        let output = scratch().map_err(|e| Error::os("make room for a result", e))?;
        let directory = self.directory.as_ref().map(|path| path.as_os_str().as_bytes());
        let directory = directory.map(CString::new).transpose();
        let directory =
            directory.map_err(|_| Error::invalid("a directory's name has a NUL in it"))?;
        let environment = self.environment();
        let Self { stdin, stdout, stderr, niceness, cpus, limits, .. } = self;
        let os = |error| Error::os("open a standard stream", error);
        let (their_in, stdin) = stdin.input().map_err(os)?;
        let (their_out, stdout) = stdout.output().map_err(os)?;
        let (their_err, stderr) = stderr.output().map_err(os)?;
        let streams = [&their_in, &their_out, &their_err].map(|s| s.as_ref().map(AsFd::as_fd));
        let surroundings = Surroundings { directory: directory.as_deref(), streams, held: false };
        let role = Role::Process { tie: lifeline.map(|(_, tie)| tie) };
        let start = |ready: Option<BorrowedFd<'_>>| {
            let fds = [payload, output.as_fd()].into_iter();
            let fds: Vec<_> = fds.chain(lifeline.map(|(fd, _)| fd)).chain(ready).collect();
            again_in(&role, &fds, environment.into_iter(), &surroundings)
        };
        let child = if niceness.is_none() && cpus.is_none() && limits.is_empty() {
            start(None)?
        } else {
            let (ready, mut go) = pipe().map_err(|e| Error::os("make a pipe", e))?;
            let child = start(Some(ready.as_fd()))?;
            if let Err(error) = confine(&child, niceness, cpus.as_deref(), &limits) {
                // It has not begun, and must not.
                child.signal(libc::SIGKILL)?;
                child.wait_until(None)?;
                return Err(error);
            }
            // Where it has been killed meanwhile, its exit says so.
            let _ = go.write_all(&[1]);
            child
        };
        let (child, tickets, result) = (Some(Arc::new(child)), Tickets::default(), PhantomData);
        Ok(Process { child, output, task, tickets, stdin, stdout, stderr, result })
    }

    /// Says what is wrong before anything is started.
    fn check(&self) -> Result<()> {
        for (name, value) in &self.environment {
            let value = value.as_deref().unwrap_or_default().as_bytes();
            if name.is_empty() || name.as_bytes().contains(&b'=') {
                return Err(Error::invalid(format!("{name:?} is no name of a variable")));
            }
            if name.as_bytes().contains(&0) || value.contains(&0) {
                return Err(Error::invalid(format!("the variable {name:?} has a NUL in it")));
            }
        }
        if let Some(directory) = &self.directory {
            let file = fs::metadata(directory)
                .map_err(|e| Error::os("start a process in its directory", e))?;
            if !file.is_dir() {
                return Err(Error::invalid(format!("{directory:?} is no directory")));
            }
        }
        if let Some(niceness) = self.niceness.filter(|nice| !(-20..=19).contains(nice)) {
            return Err(Error::invalid(format!("niceness is from -20 to 19, not {niceness}")));
        }
        if self.cpus.as_ref().is_some_and(Vec::is_empty) {
            return Err(Error::invalid("a process needs a CPU to run on"));
        }
        Ok(())
    }

    fn environment(&self) -> Vec<(OsString, OsString)> {
        let mut variables: Vec<_> = if self.fresh { Vec::new() } else { env::vars_os().collect() };
        for (name, value) in &self.environment {
            variables.retain(|(known, _)| known != name);
            variables.extend(value.clone().map(|value| (name.clone(), value)));
        }
        variables
    }
}

/// Sets up a process that has not begun.
fn confine(
    child: &Child,
    niceness: Option<i32>,
    cpus: Option<&[usize]>,
    limits: &[(Resource, u64)],
) -> Result<()> {
    let pid = child.pid();
    if let Some(niceness) = niceness {
        limits::set_niceness(pid, niceness)
            .map_err(|e| Error::os("set a process's niceness", e))?;
    }
    if let Some(cpus) = cpus {
        limits::set_cpus(pid, cpus).map_err(|e| Error::os("bind a process to CPUs", e))?;
    }
    limits.iter().try_for_each(|(resource, most)| {
        limits::limit(pid, *resource, *most)
            .map_err(|e| Error::os("limit what a process may use", e))
    })
}

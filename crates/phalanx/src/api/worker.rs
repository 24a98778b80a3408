//! The worker's loop: take a task, run it, send what became of it.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt as _;

use super::failure::{Failure, below_task, caught, watch_panics};
use super::task;
use crate::channel::Scope;
use crate::error::{Error, Result};
use crate::pool::{Duty, End, Worker};
use crate::sys::answer_trace;
use crate::sys::code::Reply;

/// Serves in a seat until the pool says to leave. Returns the exit code.
pub(super) fn serve(seat: usize, life: Option<u64>, tree: bool, fds: Vec<OwnedFd>) -> Result<i32> {
    let mut fds = fds.into_iter();
    let mut next = || fds.next().ok_or_else(|| Error::corrupt("a worker's orders"));
    let (memory, event, lifeline) = (next()?, next()?, next()?);
    let mut worker =
        Worker::sit(memory.as_raw_fd(), event.as_raw_fd(), lifeline.as_raw_fd(), seat, tree)?;
    drop((memory, event, lifeline));
    answer_trace(next()?, below_task).map_err(|e| Error::os("prepare a worker's stack", e))?;
    watch_panics(true);
    if let Some(initializer) = fds.next()
        && let Err(failure) = run(read_from(&File::from(initializer), 0, None)?)
    {
        let (message, trace) = Failure::from_bytes(&failure).into_text();
        worker.unfit(&message, &trace);
        return Ok(1);
    }
    worker.ready(life, true);
    loop {
        match worker.duty()? {
            // A descriptor in a result is kept until the owner reads it.
            Duty::Run(_, _, arguments) => {
                let payload = arguments.into_stream()?;
                match Scope::Once.run(|| run(payload)).0 {
                    Ok(result) => worker.finish(End::Returned, result, Vec::new()),
                    Err(failure) => worker.finish(End::Unlucky, failure, Vec::new()),
                }
            }
            Duty::Idle => worker.sleep(None),
            Duty::Leave => return Ok(0),
            // Our tasks bring their code's place with them.
            Duty::Define(..) => {}
        }
    }
}

/// Runs a task, and lets go of what it has printed.
pub(super) fn run(payload: Vec<u8>) -> Reply {
    let reply = caught(|| task::run(payload)).unwrap_or_else(|failure| Err(failure.to_bytes()));
    // Nobody is there to be told that the terminal has gone.
    let _ = io::stdout().flush();
    reply
}

/// The bytes of a file from `start` on, `most` of them; its position, which others share, stays.
pub(super) fn read_from(file: &File, start: u64, most: Option<u64>) -> Result<Vec<u8>> {
    let doing = "read what a process was given";
    let len = file.metadata().map_err(|e| Error::os(doing, e))?.len().saturating_sub(start);
    let len = usize::try_from(len.min(most.unwrap_or(len))).map_err(|e| Error::codec(doing, e))?;
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, start).map_err(|e| Error::os(doing, e))?;
    Ok(bytes)
}

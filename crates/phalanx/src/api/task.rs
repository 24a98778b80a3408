//! A function and its types as bytes, and how it is called where they arrive.

use std::any::type_name;
use std::marker::PhantomData;

use super::failure::Failure;
use super::value::{Reason, Value, decode, decode_all, encode, encode_all};
use crate::channel::Scope;
use crate::error::{Error, Result};
use crate::pool::{Outcome, Task};
use crate::sys::code::{Place, Reply, Shape};

/// Calls a function with one argument.
struct One<A, R>(PhantomData<fn(A) -> R>);

impl<F: Fn(A) -> R, A: Value, R: Value> Shape<F> for One<A, R> {
    fn run(function: F, payload: Vec<u8>) -> Reply {
        let argument = decode(payload).map_err(|why| Failure::Argument { why }.to_bytes())?;
        encode(function(argument), 0).map_err(|why| Failure::Result { why }.to_bytes())
    }
}

/// Calls a function with each item of a chunk.
struct Each<A, R>(PhantomData<fn(A) -> R>);

impl<F: Fn(A) -> R, A: Value, R: Value> Shape<F> for Each<A, R> {
    fn run(function: F, payload: Vec<u8>) -> Reply {
        let items = decode_all(payload).map_err(|why| Failure::Argument { why }.to_bytes())?;
        let results = items.into_iter().map(function).collect();
        encode_all::<R>(results, 0).map_err(|why| Failure::Result { why }.to_bytes())
    }
}

/// What has `function` called with `argument`.
pub(crate) fn call<F, A, R>(function: F, argument: A) -> Result<Task>
where
    F: Fn(A) -> R + Copy + 'static,
    A: Value,
    R: Value,
{
    let place = Place::of::<F, One<A, R>>(function);
    finish(|| encode(argument, Place::LEN), place, type_name::<F>())
}

/// What has `function` called with each of `items`.
pub(crate) fn call_each<F, A, R>(function: F, items: Vec<A>) -> Result<Task>
where
    F: Fn(A) -> R + Copy + 'static,
    A: Value,
    R: Value,
{
    let place = Place::of::<F, Each<A, R>>(function);
    finish(|| encode_all(items, Place::LEN), place, type_name::<F>())
}

/// The place goes last, so that bytes in front of it need not be moved when they are taken over.
fn finish(
    write: impl FnOnce() -> std::result::Result<Vec<u8>, Reason>,
    place: Option<Place>,
    task: &str,
) -> Result<Task> {
    let place = place.ok_or_else(|| {
        Error::invalid(format!("`{task}` is in a library: a task must be in the program itself"))
    })?;
    let (payload, tickets) = Scope::Held(Vec::new()).run(write);
    let mut payload =
        payload.map_err(|why| Error::codec("write an argument", format!("for `{task}`: {why}")))?;
    payload.extend_from_slice(&place.to_bytes());
    Ok(Task { tickets, ..Task::new(None, 0, payload) })
}

/// Runs what [`call`] or [`call_each`] wrote.
pub(crate) fn run(mut bytes: Vec<u8>) -> Reply {
    let entry = bytes.split_last_chunk().and_then(|(_, place)| Place::from_bytes(*place).entry());
    let entry = entry.ok_or_else(|| Failure::Place.to_bytes())?;
    bytes.truncate(bytes.len() - Place::LEN);
    entry(bytes)
}

/// The bytes of a result, or what the caller of `task` is told.
pub(crate) fn opened(outcome: Outcome, task: &'static str) -> Result<Vec<u8>> {
    match outcome {
        Outcome::Returned(result) => result.into_stream(),
        Outcome::Failed(how) => Err(Failure::from_bytes(&how.into_stream()?).of_task(task)),
        Outcome::Lost(died) => Err(died.at(task).into()),
        Outcome::Broken(error) => Err(error),
        Outcome::Ended(ended) => Err(ended.into()),
    }
}

/// The result of one call.
pub(crate) fn result<R: Value>(outcome: Outcome, task: &'static str) -> Result<R> {
    decode(opened(outcome, task)?).map_err(|why| unreadable(task, why))
}

/// The results of a chunk.
pub(crate) fn results<R: Value>(outcome: Outcome, task: &'static str) -> Result<Vec<R>> {
    decode_all(opened(outcome, task)?).map_err(|why| unreadable(task, why))
}

fn unreadable(task: &str, why: String) -> Error {
    Error::codec("read a result", format!("of `{task}`: {why}"))
}

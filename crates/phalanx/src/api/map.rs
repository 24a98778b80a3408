//! `map` and `try_map`: the calling thread cuts the input, submits, and reads the results.

use std::any::type_name;
use std::sync::Arc;

use super::task;
use super::value::Value;
use crate::error::Result;
use crate::pool::{Chunks, Core, Group, Next, Until};

/// Results in the order of the items, or the first failure.
pub(super) fn map<F, A, R>(core: &Arc<Core>, function: F, items: Vec<A>) -> Result<Vec<R>>
where
    F: Fn(A) -> R + Copy + 'static,
    A: Value,
    R: Value,
{
    // Closed or broken is told even if there is nothing to submit.
    let hold = core.hold()?;
    let group = Arc::new(Group::as_completed());
    let total = items.len();
    let mut chunks = Chunks::new(total, core.seats()?);
    let mut items = items.into_iter();
    // Where each chunk that was sent ends, and the results of those that came back.
    let (mut ends, mut parts): (Vec<usize>, Vec<Vec<R>>) = Default::default();
    let mut done = 0;
    loop {
        let (arrived, spent) = group.arrived();
        if chunks.left() > 0 && ends.len() - (arrived as usize) < chunks.ahead() {
            // About as many items are done: chunks come back nearly in the order of their start.
            let measured = (arrived as usize).checked_sub(1).map_or(0, |last| ends[last]);
            let item = (measured > 0).then(|| spent / u32::try_from(measured).unwrap_or(u32::MAX));
            let size = chunks.next(item);
            let task = task::call_each(function, items.by_ref().take(size).collect())?;
            hold.submit(&group, ends.len() as u64, task)?;
            ends.push(total - chunks.left());
            parts.push(Vec::new());
        } else if done < ends.len() {
            match group.next() {
                Next::Outcome(index, outcome) => {
                    parts[index as usize] = task::results(outcome, type_name::<F>())?;
                    done += 1;
                }
                Next::Pending | Next::End => {
                    core.wait(&group, Until::Next, None)?;
                }
            }
        } else {
            let mut results = Vec::with_capacity(total);
            parts.into_iter().for_each(|part| results.extend(part));
            return Ok(results);
        }
    }
}

/// What became of each item, in their order.
pub(super) fn try_map<F, A, R>(
    core: &Arc<Core>,
    function: F,
    items: impl IntoIterator<Item = A>,
) -> Result<Vec<Result<R>>>
where
    F: Fn(A) -> R + Copy + 'static,
    A: Value,
    R: Value,
{
    let hold = core.hold()?;
    let group = Arc::new(Group::in_order());
    let mut results = Vec::new();
    let mut refused = Vec::new();
    let mut sent = 0;
    for (index, item) in items.into_iter().enumerate() {
        match task::call(function, item) {
            Ok(task) => {
                hold.submit(&group, sent, task)?;
                sent += 1;
            }
            Err(error) => refused.push((index, error)),
        }
    }
    group.expect(sent);
    loop {
        match group.next() {
            Next::Outcome(_, outcome) => results.push(task::result(outcome, type_name::<F>())),
            Next::Pending => drop(core.wait(&group, Until::Next, None)?),
            Next::End => break,
        }
    }
    refused.into_iter().for_each(|(index, error)| results.insert(index, Err(error)));
    Ok(results)
}

//! Which child is to run, to stop, to start again: the rules of a supervisor, as a pure state machine.
//!
//! Events come in as calls, [`Command`]s go out through [`next`](Supervision::next), and the clock
//! is an argument. The rules are those of Erlang/OTP's `supervisor`:
//!
//! - A child that has ended is started again if its [`Restart`] says so; with it, by the
//!   [`Strategy`], all its siblings or those that were added after it.
//! - Siblings are stopped one after the other, the last one first, each with SIGTERM and, when its
//!   time is over, SIGKILL. When all are down they are started in order, the first one first.
//! - After more than `intensity` restarts within `period` all children are stopped in this way, and
//!   the supervisor has failed.
//!
//! What is written down is not what is under way but what is to be: a child is `wanted`, or, if it
//! is up and has to go, `doomed`. Each event changes these marks, and [`settle`](Supervision::settle)
//! takes the next step towards them. So an event in the middle of a restart is no special case.
//!
//! | state | what is known | what comes next |
//! | --- | --- | --- |
//! | `Down` | there is no process | `Start`, if it is wanted and nobody is doomed |
//! | `Starting` | a process has been asked for | `started`, or `refused` |
//! | `Up` | it runs | its end, or `Terminate` when it is its turn |
//! | `Stopping` | it has got SIGTERM | its end, or `Kill` when its time is over |
//! | `Killed` | it has got SIGKILL | its end |

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Names a child; later ones have larger numbers.
pub(crate) type Id = u64;

/// Who is restarted when a child has to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strategy {
    /// That child alone.
    #[default]
    OneForOne,
    /// All children: the others are stopped first.
    OneForAll,
    /// That child and those that were added after it, which are stopped first.
    RestForOne,
}

/// When a child is restarted that has ended unasked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Restart {
    /// Always.
    #[default]
    Permanent,
    /// Unless it has ended well, with exit code 0.
    Transient,
    /// Never, not with its siblings either: it is forgotten when it has ended.
    Temporary,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Start a process, and say [`started`](Supervision::started) or
    /// [`refused`](Supervision::refused).
    Start(Id),
    /// Send SIGTERM.
    Terminate(Id),
    /// Send SIGKILL.
    Kill(Id),
    /// The child is none of this supervisor's any more.
    Forget(Id),
}

/// Where a child is; see the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Down,
    Starting,
    Up,
    Stopping { kill_at: Option<Instant> },
    Killed,
}

/// Why a request makes no sense now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// There is no such child.
    Unknown,
    /// The child runs, or is about to.
    Running,
    /// The supervisor has ended, or is about to.
    Over,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    Stopping,
    Failed,
}

#[derive(Debug)]
struct Member {
    id: Id,
    restart: Restart,
    /// From SIGTERM to SIGKILL: `None` is for ever, and zero is no SIGTERM at all.
    shutdown: Option<Duration>,
    state: State,
    /// It is to run.
    wanted: bool,
    /// It is up and has to go, whether it is wanted afterwards or not.
    doomed: bool,
    /// Somebody has asked for this start, and is told if it fails: it is not tried again.
    asked: bool,
    /// It has been up.
    proven: bool,
}

impl Member {
    fn doom(&mut self) {
        self.doomed = self.state != State::Down;
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Supervision {
    strategy: Strategy,
    intensity: usize,
    period: Duration,
    /// In the order in which they were added.
    members: Vec<Member>,
    phase: Phase,
    /// When there were restarts, within `period`.
    restarts: VecDeque<Instant>,
    commands: VecDeque<Command>,
    serial: Id,
}

impl Supervision {
    pub(crate) fn new(strategy: Strategy, intensity: usize, period: Duration) -> Self {
        let (members, restarts, commands) = Default::default();
        let (phase, serial) = (Phase::Open, 0);
        Self { strategy, intensity, period, members, phase, restarts, commands, serial }
    }

    /// The next thing to do; `None` when all is done until the next event.
    pub(crate) fn next(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// When [`wake`](Self::wake) wants to be called, if at all.
    pub(crate) fn alarm(&self) -> Option<Instant> {
        let alarm = |member: &Member| match member.state {
            State::Stopping { kill_at } => kill_at,
            _ => None,
        };
        self.members.iter().filter_map(alarm).min()
    }

    pub(crate) fn state(&self, id: Id) -> Option<State> {
        self.place(id).map(|at| self.members[at].state)
    }

    /// Is the child down, and to stay so?
    pub(crate) fn is_at_rest(&self, id: Id) -> bool {
        self.place(id).is_none_or(|at| self.rests(at))
    }

    /// Does nothing run, and is nothing going to?
    pub(crate) fn is_idle(&self) -> bool {
        (0..self.members.len()).all(|at| self.rests(at))
    }

    /// Has it ended, as it was told or because it failed?
    pub(crate) fn is_over(&self) -> bool {
        self.phase != Phase::Open && self.is_idle()
    }

    /// Were there too many restarts?
    pub(crate) fn has_failed(&self) -> bool {
        self.phase == Phase::Failed
    }

    /// A child that is to run from now on, after all that are there.
    pub(crate) fn add(
        &mut self,
        restart: Restart,
        shutdown: Option<Duration>,
        now: Instant,
    ) -> Result<Id, Refusal> {
        self.check_open()?;
        self.serial += 1;
        let (id, state) = (self.serial, State::Down);
        let (wanted, asked, doomed, proven) = (true, true, false, false);
        let member = Member { id, restart, shutdown, state, wanted, doomed, asked, proven };
        self.members.push(member);
        self.settle(now);
        Ok(id)
    }

    /// The process that was asked for runs.
    pub(crate) fn started(&mut self, id: Id, now: Instant) {
        if let Some(at) = self.place(id) {
            let member = &mut self.members[at];
            (member.state, member.asked, member.proven) = (State::Up, false, true);
            self.settle(now);
        }
    }

    /// There is no process, though one was asked for. True: this counts as a restart.
    pub(crate) fn refused(&mut self, id: Id, now: Instant) -> bool {
        let Some(at) = self.place(id) else { return false };
        let member = &mut self.members[at];
        member.state = State::Down;
        let doomed = std::mem::take(&mut member.doomed);
        if std::mem::take(&mut member.asked) {
            member.wanted = false;
        }
        let again = member.wanted && !doomed;
        if again {
            self.again(at, now);
        }
        self.settle(now);
        again
    }

    /// A process has ended; `well`: with exit code 0. True: this counts as a restart.
    pub(crate) fn ended(&mut self, id: Id, well: bool, now: Instant) -> bool {
        let Some(at) = self.place(id) else { return false };
        let member = &mut self.members[at];
        member.state = State::Down;
        let unasked = !std::mem::take(&mut member.doomed);
        let again = unasked
            && match member.restart {
                Restart::Permanent => true,
                Restart::Transient => !well,
                Restart::Temporary => false,
            };
        if again {
            self.again(at, now);
        } else if unasked {
            member.wanted = false;
        }
        self.settle(now);
        again
    }

    /// The alarm has rung.
    pub(crate) fn wake(&mut self, now: Instant) {
        for member in &mut self.members {
            if let State::Stopping { kill_at: Some(at) } = member.state
                && at <= now
            {
                member.state = State::Killed;
                self.commands.push_back(Command::Kill(member.id));
            }
        }
    }

    /// Stops a child, which stays known.
    pub(crate) fn terminate(&mut self, id: Id, now: Instant) -> Result<(), Refusal> {
        let at = self.place(id).ok_or(Refusal::Unknown)?;
        self.members[at].wanted = false;
        self.members[at].doom();
        self.settle(now);
        Ok(())
    }

    /// Starts a child that is down.
    pub(crate) fn restart(&mut self, id: Id, now: Instant) -> Result<(), Refusal> {
        self.check_open()?;
        let at = self.check_at_rest(id)?;
        let member = &mut self.members[at];
        (member.wanted, member.asked) = (true, true);
        self.settle(now);
        Ok(())
    }

    /// Forgets a child that is down.
    pub(crate) fn delete(&mut self, id: Id) -> Result<(), Refusal> {
        let at = self.check_at_rest(id)?;
        self.members.remove(at);
        self.commands.push_back(Command::Forget(id));
        Ok(())
    }

    /// Stops all children, the last one first, and itself.
    pub(crate) fn stop(&mut self, now: Instant) {
        if self.phase == Phase::Open {
            self.end(Phase::Stopping);
            self.settle(now);
        }
    }

    fn place(&self, id: Id) -> Option<usize> {
        self.members.binary_search_by_key(&id, |member| member.id).ok()
    }

    fn rests(&self, at: usize) -> bool {
        let member = &self.members[at];
        member.state == State::Down && !member.wanted
    }

    fn check_open(&self) -> Result<(), Refusal> {
        if self.phase == Phase::Open { Ok(()) } else { Err(Refusal::Over) }
    }

    fn check_at_rest(&self, id: Id) -> Result<usize, Refusal> {
        let at = self.place(id).ok_or(Refusal::Unknown)?;
        if self.rests(at) { Ok(at) } else { Err(Refusal::Running) }
    }

    /// A child has to be restarted, and others with it; or it is one time too many.
    fn again(&mut self, at: usize, now: Instant) {
        self.restarts.push_back(now);
        let period = self.period;
        let is_old = |at: &Instant| now.saturating_duration_since(*at) > period;
        while self.restarts.front().is_some_and(is_old) {
            self.restarts.pop_front();
        }
        if self.restarts.len() > self.intensity {
            return self.end(Phase::Failed);
        }
        let others = match self.strategy {
            Strategy::OneForOne => at..at + 1,
            Strategy::OneForAll => 0..self.members.len(),
            Strategy::RestForOne => at..self.members.len(),
        };
        for member in &mut self.members[others] {
            member.doom();
            member.wanted = member.restart != Restart::Temporary;
        }
    }

    fn end(&mut self, phase: Phase) {
        self.phase = phase;
        for member in &mut self.members {
            member.doom();
            member.wanted = false;
        }
    }

    /// The next step towards what is to be.
    fn settle(&mut self, now: Instant) {
        let Self { members, commands, .. } = self;
        members.retain(|member| {
            let kept = member.restart != Restart::Temporary && member.proven;
            let gone = member.state == State::Down && !member.wanted && !kept;
            if gone {
                commands.push_back(Command::Forget(member.id));
            }
            !gone
        });
        if let Some(last) = members.iter_mut().rev().find(|member| member.doomed) {
            if last.state == State::Up && last.shutdown == Some(Duration::ZERO) {
                last.state = State::Killed;
                commands.push_back(Command::Kill(last.id));
            } else if last.state == State::Up {
                let kill_at = last.shutdown.and_then(|time| now.checked_add(time));
                last.state = State::Stopping { kill_at };
                commands.push_back(Command::Terminate(last.id));
            }
        } else if !members.iter().any(|member| member.state == State::Starting)
            && let Some(first) =
                members.iter_mut().find(|member| member.wanted && member.state == State::Down)
        {
            first.state = State::Starting;
            commands.push_back(Command::Start(first.id));
        }
    }
}

#[cfg(test)]
mod tests;

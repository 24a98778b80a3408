//! Of unit tests: what the death of one process costs the others, in time and in what is not given back.
//!
//! A test of deaths runs [`alone`]: in a process of its own, where all that is held can be counted. There
//! [`toll`] has a process killed at one point, which writes its [`last_words`], the time, just before. The
//! others have to know within [`PROMPT`], and what they hold afterwards is what they held before.
//!
//! A machine that is busy may let none of them run for longer than that. Such a delay is one run's and
//! not the next one's, whereas what a mechanism costs, such as an interval at which somebody looks, comes
//! again each time. So the best of [`RUNS`] has to be prompt, and each has to end by the test's deadline.
//! Where all code is slow, as under a sanitizer, `PHALANX_PROMPT` says how many milliseconds that are.

use std::collections::BTreeMap;
use std::fs;
use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::process::{WaitId, WaitIdOptions, waitid};

use crate::sys::socket::wait_readable;
use crate::sys::{Memory, monotonic};

/// Milliseconds within which the others are to know, and where others are said.
const PROMPT: u64 = 100;
const OTHERS: &str = "PHALANX_PROMPT";
const RUNS: u32 = 3;
/// What ends by itself, as a thread that was joined, may take so long to be gone.
const SETTLE: Duration = Duration::from_secs(5);

/// After which, if nothing has ended, nothing will.
const QUIET: Duration = Duration::from_millis(100);

/// Says to a test that it has its process for itself.
const ALONE: &str = "PHALANX_ALONE";
/// The file that last words go to.
pub(super) const WORDS: &str = "PHALANX_LAST_WORDS";

/// Runs the whole of a test, in a process where nothing else happens.
pub(crate) fn alone<T: FnOnce()>(test: T) {
    if std::env::var_os(ALONE).is_some() {
        return test();
    }
    // The test is a closure in the test's function.
    let name = std::any::type_name::<T>().trim_end_matches("::{{closure}}");
    let name = name.split_once("::").expect("a path in this crate").1;
    let mut command = Command::new(std::env::current_exe().unwrap());
    let command = command.args(["--exact", name, "--nocapture", "--test-threads=1"]);
    let output = command.env(ALONE, "1").output().unwrap();
    let [said, complaints] =
        [output.stdout, output.stderr].map(|it| String::from_utf8(it).unwrap());
    let passed = output.status.success() && said.contains("1 passed");
    assert!(passed, "{name}: {:?}\n{said}\n{complaints}", output.status);
}

/// Where last words arrive.
fn words() -> &'static (PipeReader, PipeWriter) {
    static PIPE: OnceLock<(PipeReader, PipeWriter)> = OnceLock::new();
    PIPE.get_or_init(|| pipe().unwrap())
}

/// For the environment of a process that is to be killed, or that starts one.
pub(crate) fn words_path() -> String {
    // One that was started passes on what it was told.
    std::env::var(WORDS).unwrap_or_else(|_| super::faults::path_of(&words().1))
}

/// Of a process that is killed now.
pub(super) fn last_words() {
    if let Ok(mut file) = fs::File::options().write(true).open(words_path()) {
        let _ = file.write_all(&monotonic().as_nanos().to_ne_bytes());
    }
}

/// When the first was killed since this was asked last.
fn killed_at() -> Option<Duration> {
    let (mut reader, mut first) = (&words().0, None);
    while wait_readable(reader, Some(Instant::now())).unwrap() {
        let mut bytes = [0; 16];
        reader.read_exact(&mut bytes).unwrap();
        let nanos = u128::from_ne_bytes(bytes) as u64;
        first.get_or_insert(Duration::from_nanos(nanos));
    }
    first
}

/// Has `run` make a process die at a point, and return the moment, as [`monotonic`] has it, at which those
/// that it concerns knew.
///
/// # Panics
///
/// If that was not prompt in any run, or one of them leaves something.
pub(crate) fn toll(point: impl std::fmt::Display, mut run: impl FnMut() -> Duration) {
    static BEFORE: OnceLock<Holdings> = OnceLock::new();
    assert!(std::env::var_os(ALONE).is_some(), "{point}: others would be counted");
    words();
    let before = BEFORE.get_or_init(|| {
        run(); // the first arena and the like of a process stay
        Holdings::settled()
    });
    let others = std::env::var(OTHERS).ok().and_then(|millis| millis.parse().ok());
    let prompt = Duration::from_millis(others.unwrap_or(PROMPT));
    let mut best = Duration::MAX;
    for _ in 0..RUNS {
        killed_at();
        let known = run();
        let killed = killed_at().unwrap_or_else(|| panic!("{point}: nobody was killed"));
        best = best.min(known.saturating_sub(killed));
        before.assert_kept(&point);
        if best < prompt {
            return;
        }
    }
    panic!("{point}: it took {best:?} at best until that was known");
}

/// What this process holds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Holdings {
    /// How many of each kind.
    descriptors: BTreeMap<String, usize>,
    /// Bytes of memory files that are mapped, by name.
    mapped: BTreeMap<String, usize>,
    /// Blocks of memory files that have pages, by name.
    backed: BTreeMap<String, u64>,
    threads: usize,
    /// Is there a child, be it one that has ended and that nobody has waited for?
    children: bool,
}

impl Holdings {
    pub(crate) fn now() -> Self {
        let (mut descriptors, mut backed) = (BTreeMap::new(), BTreeMap::new());
        let listing = fs::read_dir("/proc/self/fd").unwrap();
        let own = listing.map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
        for path in own {
            // The descriptor of the listing is gone.
            let Ok(target) = fs::read_link(&path) else { continue };
            let target = target.to_string_lossy().into_owned();
            let kind = target.split(":[").next().unwrap_or_default().to_string();
            if kind.starts_with("/memfd:") {
                // An arena's pieces that others know are not cut again while it lives: `shm/arena.rs`.
                let blocks = if kind.contains("arena") { 0 } else { path_blocks(&path) };
                *backed.entry(kind.clone()).or_default() += blocks;
            }
            *descriptors.entry(kind).or_default() += 1;
        }
        let mut mapped = BTreeMap::new();
        for line in fs::read_to_string("/proc/self/maps").unwrap().lines() {
            let Some((range, name)) = line.split_once(' ') else { continue };
            if let Some(at) = name.find("/memfd:") {
                let bounds = range.split('-').map(|end| usize::from_str_radix(end, 16).unwrap());
                let len = bounds.reduce(|start, end| end - start).unwrap_or_default();
                *mapped.entry(name[at..].to_string()).or_default() += len;
            }
        }
        let flags = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let children = waitid(WaitId::All, flags).is_ok();
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let threads = status.lines().find_map(|line| line.strip_prefix("Threads:"));
        let threads = threads.and_then(|number| number.trim().parse().ok()).unwrap_or_default();
        Self { descriptors, mapped, backed, threads, children }
    }

    /// When what ends by itself has done so.
    fn settled() -> Self {
        let (mut last, mut since) = (Self::now(), Instant::now());
        while since.elapsed() < QUIET {
            std::thread::sleep(Duration::from_millis(1));
            let now = Self::now();
            if now != last {
                (last, since) = (now, Instant::now());
            }
        }
        last
    }

    /// Nothing has come to it, and nothing has gone.
    pub(crate) fn assert_kept(&self, case: &impl std::fmt::Display) {
        let deadline = Instant::now() + SETTLE;
        loop {
            let now = Self::now();
            if now == *self {
                return;
            }
            assert!(Instant::now() < deadline, "{case}: held before {self:?}, now {now:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn path_blocks(path: &std::path::Path) -> u64 {
    fs::metadata(path).map_or(0, |status| status.blocks())
}

#[test]
fn what_is_left_behind_is_seen() {
    alone(|| {
        let before = Holdings::now();
        before.assert_kept(&"nothing");
        let memory = Memory::new("phalanx-test", 1 << 20).unwrap();
        let view = memory.map_inherited(0, 1 << 20).unwrap();
        memory.back(0, 4096).unwrap();
        let now = Holdings::now();
        assert!(now.descriptors != before.descriptors && now.mapped != before.mapped);
        assert!(now.backed != before.backed);
        drop((memory, view));
        before.assert_kept(&"memory that is gone");
        let mut child = Command::new("true").spawn().unwrap();
        assert!(Holdings::now().children);
        child.wait().unwrap();
        before.assert_kept(&"a child that is gone");
    });
}

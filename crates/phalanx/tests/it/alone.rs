//! A test in a process of its own, which shows that the test leaves nothing behind.
//!
//! Tests share their process with others that run at the same time; only in a process of its own
//! can one count descriptors, threads and children.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use phalanx::Process;
use rustix::process::{WaitId, WaitIdOptions, waitid};

/// Nothing that is waited for here takes longer, unless it hangs.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a test in its own process, and fails if it fails, hangs, or leaves something behind.
#[track_caller]
pub fn alone(test: impl Fn() + Copy + Send + Sync + 'static) {
    let body = move |()| {
        // The arena that small shared objects are cut from stays.
        drop(phalanx::shared::Value::new(0_u8).expect("shared memory"));
        let before = Belongings::now();
        test();
        eventually(
            || Belongings::now() == before,
            || format!("only {before:?} to be left; there are {:?}", Belongings::now()),
        );
    };
    let process = Process::spawn(body, ()).expect("a process for the test");
    if let Err(error) = process.wait_timeout(PATIENCE) {
        let _ = process.kill();
        panic!("{error}\n{}", error.trace());
    }
}

/// Waits until something is so; `what` says what it waited for.
#[track_caller]
pub fn eventually(is_so: impl Fn() -> bool, what: impl Fn() -> String) {
    let deadline = Instant::now() + PATIENCE / 4;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited for {}", what());
        thread::sleep(Duration::from_millis(1));
    }
}

/// What a process has that it might forget to give back.
#[derive(Debug, PartialEq)]
struct Belongings {
    descriptors: Vec<String>,
    threads: usize,
    children: bool,
}

impl Belongings {
    fn now() -> Self {
        let mut descriptors: Vec<_> = fs::read_dir("/proc/self/fd")
            .expect("a list of descriptors")
            .filter_map(|entry| {
                // The one that lists them is closed by then.
                let path = entry.ok()?.path();
                let target = fs::read_link(&path).ok()?;
                (!target.starts_with("/proc")).then(|| format!("{path:?} -> {target:?}"))
            })
            .collect();
        descriptors.sort();
        let threads = fs::read_dir("/proc/self/task").expect("a list of threads").count();
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let children = waitid(WaitId::All, options).is_ok();
        Self { descriptors, threads, children }
    }
}

/// The number of open descriptors.
pub fn descriptors() -> usize {
    Belongings::now().descriptors.len()
}

/// A place where tasks tell that they have begun. It has no name in the file system.
pub struct Beginnings {
    listener: UnixListener,
    pub name: String,
}

impl Beginnings {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("phalanx-test-{}-{number}", std::process::id());
        let listener = UnixListener::bind_addr(&address(&name)).expect("a place to tell");
        Self { listener, name }
    }

    /// Waits for a task to begin, and returns the process that it is in.
    pub fn wait(&self) -> u32 {
        let (mut stream, _) = self.listener.accept().expect("a beginning");
        let mut pid = [0; 4];
        stream.read_exact(&mut pid).expect("a process id");
        u32::from_ne_bytes(pid)
    }
}

fn address(name: &str) -> SocketAddr {
    SocketAddr::from_abstract_name(name).expect("a short name")
}

/// In a task: tells that it has begun.
pub fn begin(name: &str) {
    let mut stream = UnixStream::connect_addr(&address(name)).expect("a place to tell");
    stream.write_all(&std::process::id().to_ne_bytes()).expect("to tell");
}

/// A task that tells that it has begun, and never ends.
pub fn hang(name: String) {
    begin(&name);
    loop {
        thread::sleep(Duration::from_secs(600));
    }
}

//! Count the words of every source file below a folder, on all cores.
//!
//! ```text
//! count_words FOLDER            serially and with a pool, and compare
//! count_words FOLDER --kill     with a pool, one worker being killed half-way
//! ```
//!
//! The twin of `examples/python/count_tokens.py`.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fs;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use phalanx::Pool;
use rustix::process::{Pid, Signal, kill_process};

/// A file, its words, and the process that counted them.
type Counted = (PathBuf, usize, u32);

/// The task: the words of one file.
fn count_words(path: PathBuf) -> Counted {
    let text = fs::read(&path).unwrap_or_default();
    let words = text.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).count();
    (path, words, std::process::id())
}

/// The Python files below `folder`, in order.
fn sources(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default();
            if path.is_dir() && name != "site-packages" && name != "__pycache__" {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "py") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// A line on the terminal that tells how far it is; silent where there is no terminal.
struct Progress {
    total: usize,
    done: usize,
    shown: Option<Instant>,
}

impl Progress {
    fn new(total: usize) -> Self {
        Self { total, done: 0, shown: io::stderr().is_terminal().then(Instant::now) }
    }

    fn step(&mut self) {
        self.done += 1;
        let due = |shown: Instant| shown.elapsed() > Duration::from_millis(100);
        if self.shown.is_some_and(due) {
            self.shown = Some(Instant::now());
            eprint!("\r{} of {} files\x1b[K", self.done, self.total);
            _ = io::stderr().flush();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown.is_some() {
            eprint!("\r\x1b[K");
        }
    }
}

/// Count serially and with a pool; print seconds and speed-up, and say if the totals agree.
fn compare(paths: &[PathBuf], processes: usize) -> phalanx::Result<bool> {
    let started = Instant::now();
    let serial: usize = paths.iter().map(|path| count_words(path.clone()).1).sum();
    let serially = started.elapsed().as_secs_f64();

    let started = Instant::now();
    let mut progress = Progress::new(paths.len());
    let pool = Pool::new(processes)?;
    let mut pooled = 0;
    for counted in pool.imap_unordered(count_words, paths.to_vec()) {
        pooled += counted?.1;
        progress.step();
    }
    drop((progress, pool));
    let together = started.elapsed().as_secs_f64();

    println!("{serial} words in {} files; {processes} processes", paths.len());
    println!("  {:<16} {serially:6.3} s   1.00x", "serial");
    println!("  {:<16} {together:6.3} s   {:.2}x", "phalanx", serially / together);
    Ok(serial == pooled)
}

/// Kill a worker half-way; say if exactly the file that it was at is missing.
///
/// A file takes so little that a worker may be between two of them; then another is killed.
fn survive(paths: &[PathBuf], processes: usize) -> phalanx::Result<bool> {
    let pool = Pool::new(processes)?;
    let mut got = BTreeMap::new();
    let mut deaths = 0;
    let mut latest = 0;
    for counted in pool.imap_unordered(count_words, paths.to_vec()) {
        match counted {
            Ok((path, words, pid)) => {
                got.insert(path, words);
                // The worker whose result this is has just ended a file; another is amid one.
                let victim = if pid == latest { None } else { Some(latest) };
                latest = pid;
                if deaths == 0 && got.len() >= paths.len() / 2 && got.len().is_multiple_of(64) {
                    kill(victim.unwrap_or(pid), got.len());
                }
            }
            Err(error) if error.worker_died().is_some() => {
                deaths += 1;
                println!("because {error}");
            }
            Err(error) => return Err(error),
        }
    }
    let missing: BTreeSet<_> = paths.iter().filter(|path| !got.contains_key(*path)).collect();
    for path in &missing {
        println!("lost: {}", path.display());
    }
    println!("the rest: {} words in {} files", got.values().sum::<usize>(), got.len());
    let right = |(path, words): (&PathBuf, &usize)| count_words(path.clone()).1 == *words;
    Ok(missing.len() == deaths && got.iter().all(right))
}

fn kill(worker: u32, after: usize) {
    let pid = i32::try_from(worker).ok().and_then(Pid::from_raw);
    if pid.is_some_and(|pid| kill_process(pid, Signal::KILL).is_ok()) {
        println!("killed worker {worker} after {after} files");
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    phalanx::init(); // a worker is this program again, and stays in here
    let arguments: Vec<String> = std::env::args().collect();
    let folder = arguments.get(1).ok_or("which folder?")?;
    let paths = sources(Path::new(folder))?;
    let processes = thread::available_parallelism()?.get();
    let run = if arguments.iter().any(|each| each == "--kill") { survive } else { compare };
    if run(&paths, processes)? { Ok(()) } else { Err("the totals are wrong".into()) }
}

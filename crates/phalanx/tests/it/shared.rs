//! Shared values reach other processes, Python's too, and survive their deaths.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use phalanx::shared::{Array, Memory, Value};
use phalanx::{Pool, Process};
use rustix::process::{Pid, Signal, getpid, kill_process};

use crate::alone::{Beginnings, alone, begin, descriptors, eventually};

fn add((total, numbers): (Value<u64>, Vec<u64>)) {
    for number in numbers {
        total.with(|total| *total += number);
    }
}

#[test]
fn processes_and_tasks_change_one_value_and_lose_no_change() {
    alone(|| {
        let total = Value::new(0_u64).unwrap();
        let task = || (total.try_clone().unwrap(), (1..=100).collect());
        let process = Process::spawn(add, task()).unwrap();
        let pool = Pool::new(2).unwrap();
        let tasks: Vec<_> = (0..20).map(|_| pool.submit(add, task())).collect();
        add(task());
        tasks.into_iter().for_each(|task| task.wait().unwrap());
        process.join().unwrap();
        assert_eq!(total.get(), 22 * 5050);
    });
}

#[test]
fn arrays_and_bytes_of_any_size_are_shared() {
    alone(|| {
        for len in [0, 1, 1000, 3_000_000] {
            let array = Array::from_slice(&vec![1.5_f64; len]).unwrap();
            let double = |array: Array<f64>| {
                let doubled: Vec<f64> = array.to_vec().iter().map(|x| x * 2.0).collect();
                array.lock().write(0, &doubled);
                array.len()
            };
            let process = Process::spawn(double, array.try_clone().unwrap()).unwrap();
            assert_eq!(process.join().unwrap(), len);
            assert_eq!(array.to_vec(), vec![3.0; len]);
        }
        let memory = Memory::new(70_000).unwrap();
        let write = |memory: Memory| memory.write(69_997, b"end").unwrap();
        Process::spawn(write, memory.try_clone().unwrap()).unwrap().join().unwrap();
        let mut end = [0; 3];
        memory.read(69_997, &mut end).unwrap();
        assert_eq!(&end, b"end");
    });
}

#[test]
fn what_a_task_made_outlives_it() {
    alone(|| {
        let make = |()| (Value::new(7_u32).unwrap(), Array::from_slice(&[1_u8, 2]).unwrap());
        let pool = Pool::new(1).unwrap();
        let (value, array) = pool.submit(make, ()).wait().unwrap();
        drop(pool);
        assert_eq!((value.get(), array.to_vec()), (7, vec![1, 2]));
        value.set(8);
        assert_eq!(value.get(), 8);
    });
}

#[test]
fn many_values_take_no_descriptor_each() {
    let make = |()| {
        let before = descriptors();
        let values: Vec<_> = (0..5000).map(|n| Value::new(n).unwrap()).collect();
        assert!(descriptors() < before + 10);
        assert!(values.iter().zip(0..).all(|(value, n)| value.get() == n));
    };
    Process::spawn(make, ()).unwrap().join().unwrap(); // where nobody else opens any
}

/// Tells that it is inside of the lock, and is killed there.
fn die_inside(name: &str) {
    begin(name);
    kill_process(getpid(), Signal::KILL).expect("a signal");
    std::thread::sleep(Duration::from_secs(60));
}

#[test]
fn a_process_that_is_killed_in_a_change_leaves_the_value_and_the_next_goes_on_soon() {
    alone(|| {
        let value = Value::new([5_u64; 100]).unwrap();
        let beginnings = Beginnings::new();
        let change = |(value, name): (Value<[u64; 100]>, String)| {
            value.with(|all| {
                all[..50].fill(6);
                die_inside(&name);
            });
        };
        let argument = (value.try_clone().unwrap(), beginnings.name.clone());
        let process = Process::spawn(change, argument).unwrap();
        beginnings.wait();
        assert!(process.join().unwrap_err().worker_died().is_some());
        assert_eq!(value.get(), [5; 100]);
        let start = Instant::now();
        value.with(|all| all[0] = 7);
        assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
        assert_eq!((value.get()[0], value.get()[1]), (7, 5));
    });
}

#[test]
fn values_that_are_set_by_processes_that_are_killed_are_whole() {
    alone(|| {
        let value = Value::new([0_u64; 64]).unwrap();
        let beginnings = Beginnings::new();
        let set_for_ever = |(value, name): (Value<[u64; 64]>, String)| {
            begin(&name);
            (1..u64::MAX).for_each(|n| value.set([n; 64]));
        };
        for _ in 0..10 {
            let argument = (value.try_clone().unwrap(), beginnings.name.clone());
            let process = Process::spawn(set_for_ever, argument).unwrap();
            let pid = Pid::from_raw(beginnings.wait().cast_signed()).unwrap();
            eventually(|| value.get()[0] > 100, || "values".into());
            kill_process(pid, Signal::KILL).unwrap();
            let _ = process.join();
            let left = value.get();
            assert!(left.iter().all(|n| *n == left[0]), "{left:?}");
            value.set([0; 64]);
        }
    });
}

#[test]
fn the_next_who_locks_an_array_is_told_of_a_holder_that_was_killed() {
    alone(|| {
        let array = Array::from_slice(&[1_u64; 10]).unwrap();
        let beginnings = Beginnings::new();
        let change = |(array, name): (Array<u64>, String)| {
            let locked = array.lock();
            locked.set(0, 2);
            die_inside(&name);
        };
        let argument = (array.try_clone().unwrap(), beginnings.name.clone());
        let process = Process::spawn(change, argument).unwrap();
        let pid = beginnings.wait();
        let locked = array.lock();
        assert_eq!(locked.abandoned().map(|died| died.pid), Some(pid));
        assert_eq!((locked.get(0), locked.get(1)), (2, 1));
        drop(locked);
        assert!(array.lock().abandoned().is_none());
        assert!(process.join().is_err());
    });
}

/// A name that is this test's own, removed in the end.
struct Name(String);

impl Name {
    fn new(what: &str) -> Self {
        Self(format!("phalanx-test-{what}-{}", std::process::id()))
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        let _ = Memory::remove(&self.0);
    }
}

#[test]
fn memory_with_a_name_is_found_by_it_and_travels() {
    alone(|| {
        let name = Name::new("named");
        let memory = Memory::create(&name.0, 5000).unwrap();
        assert_eq!((memory.name(), memory.len()), (Some(&*name.0), 5000));
        assert!(memory.place().is_none());
        memory.store(8, 77_u32).unwrap();
        let read = |(memory, name): (Memory, String)| {
            (memory.load::<u32>(8).unwrap(), Memory::open(&name).unwrap().load::<u8>(8).unwrap())
        };
        let argument = (memory.try_clone().unwrap(), name.0.clone());
        assert_eq!(Process::spawn(read, argument).unwrap().join().unwrap(), (77, 77));

        let taken = Memory::create(&name.0, 1).unwrap_err();
        assert_eq!(taken.os_error().unwrap().kind(), std::io::ErrorKind::AlreadyExists);
        assert!(Memory::create("phalanx-test-empty", 0).is_err());
        assert!(Memory::create("a/b", 8).is_err());
        assert!(Memory::create("a\0b", 8).is_err());
        assert!(memory.load::<u64>(4993).unwrap_err().is_invalid());
        assert!(memory.store(5000, 1_u8).unwrap_err().is_invalid());
        assert!(memory.write(usize::MAX, b"a").unwrap_err().is_invalid());

        Memory::remove(&name.0).unwrap();
        assert!(Memory::open(&name.0).is_err());
        assert!(Memory::remove(&name.0).is_err());
        assert_eq!(memory.load::<u32>(8).unwrap(), 77);
        assert!(memory.try_clone().is_err(), "its name is gone");
    });
}

/// Creates a block, tells its name, waits for a line, and says what it finds then.
const PYTHON: &str = r#"
import struct, sys
from multiprocessing.shared_memory import SharedMemory
block = SharedMemory(create=True, size=100)
struct.pack_into("3d", block.buf, 8, 1.5, 2.5, 3.5)
print(block.name, flush=True)
sys.stdin.readline()
print(*struct.unpack_from("3d", block.buf, 8))
block.close()
block.unlink()
"#;

#[test]
fn a_python_process_and_this_one_share_memory() {
    let python = Command::new("python3")
        .args(["-c", PYTHON])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let Ok(mut python) = python else {
        eprintln!("there is no python3 here");
        return;
    };
    let mut lines = BufReader::new(python.stdout.take().unwrap());
    let mut name = String::new();
    lines.read_line(&mut name).unwrap();
    let memory = Memory::open(name.trim()).unwrap();
    let numbers: [f64; 3] = memory.load(8).unwrap();
    assert_eq!(numbers, [1.5, 2.5, 3.5]);
    memory.store(8, numbers.map(|number| number * 2.0)).unwrap();
    python.stdin.take().unwrap().write_all(b"\n").unwrap();
    let mut found = String::new();
    lines.read_to_string(&mut found).unwrap();
    assert_eq!(found, "3.0 5.0 7.0\n");
    assert!(python.wait().unwrap().success());
}

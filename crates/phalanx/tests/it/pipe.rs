//! Pipes: what arrives, what a death is, and that a Python program may have the other end.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use phalanx::pipe::{End, pipe};
use phalanx::{Error, Pool, Process};
use rustix::process::{Signal, getpid, kill_process};

use crate::alone::{PATIENCE, alone, eventually};

fn echo(mut end: End<Vec<u8>>) {
    while let Ok(bytes) = end.recv() {
        end.send(bytes).unwrap();
    }
}

fn die() {
    kill_process(getpid(), Signal::KILL).unwrap();
}

/// Writes bytes behind an end's back.
fn write_raw<S, R>(end: &End<S, R>, bytes: &[u8]) {
    File::from(end.as_fd().try_clone_to_owned().unwrap()).write_all(bytes).unwrap();
}

fn is_broken_pipe(error: &Error) -> bool {
    error.os_error().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

#[test]
fn messages_of_every_size_go_to_a_process_and_back() {
    alone(|| {
        let (mut here, there) = pipe().unwrap();
        let process = Process::spawn(echo, there).unwrap();
        for len in [0, 1, 4095, 65_536, 5 << 20, (9 << 20) + 1] {
            let message: Vec<u8> = (0..len).map(|at| at as u8).collect();
            let mut sending = here.try_clone().unwrap();
            let copy = message.clone();
            let sender = std::thread::spawn(move || sending.send(copy));
            assert!(here.recv().unwrap() == message, "{len} bytes came back as others");
            sender.join().unwrap().unwrap();
        }
        drop(here);
        process.join().unwrap();
    });
}

#[test]
fn both_directions_have_their_own_type() {
    let (mut one, mut other) = pipe::<(u8, String), Option<f64>>().unwrap();
    one.send((3, "three".into())).unwrap();
    one.send((4, "four".into())).unwrap();
    other.send(Some(0.5)).unwrap();
    assert_eq!(other.recv().unwrap(), (3, "three".into()));
    assert_eq!(other.recv().unwrap(), (4, "four".into()));
    assert_eq!(one.recv().unwrap(), Some(0.5));
}

#[test]
fn an_end_travels_through_pipes_tasks_and_results() {
    alone(|| {
        let (mut outer, mut far) = pipe::<End<String>, End<String>>().unwrap();
        let (mut here, there) = pipe().unwrap();
        outer.send(there).unwrap();
        far.recv().unwrap().send("through a pipe".into()).unwrap();
        assert_eq!(here.recv().unwrap(), "through a pipe");
        assert!(here.recv().unwrap_err().is_end());

        let pool = Pool::new(2).unwrap();
        let (mut here, there) = pipe().unwrap();
        let there: End<String> = pool
            .submit(
                |mut end: End<String>| {
                    end.send("through a pool".into()).unwrap();
                    end
                },
                there,
            )
            .wait()
            .unwrap();
        assert_eq!(here.recv().unwrap(), "through a pool");
        drop(there);
        assert!(here.recv().unwrap_err().is_end());
        pool.join().unwrap();
    });
}

#[test]
fn waiting_has_an_end() {
    let (mut one, mut other) = pipe::<u32, u32>().unwrap();
    assert_eq!(one.try_recv().unwrap(), None);
    let begin = Instant::now();
    assert_eq!(one.recv_timeout(Duration::from_millis(30)).unwrap(), None);
    assert!(begin.elapsed() >= Duration::from_millis(30));
    other.send(7).unwrap();
    assert_eq!(one.recv_timeout(PATIENCE).unwrap(), Some(7));
    drop(other);
    assert!(one.poll(PATIENCE).unwrap());
    assert!(one.try_recv().unwrap_err().is_end());
}

#[test]
fn a_death_is_the_end_after_what_was_sent() {
    alone(|| {
        let (mut here, there) = pipe::<u32, u32>().unwrap();
        let process = Process::spawn(
            |mut end: End<u32>| {
                end.send(1).unwrap();
                end.send(2).unwrap();
                die();
            },
            there,
        )
        .unwrap();
        assert_eq!([here.recv().unwrap(), here.recv().unwrap()], [1, 2]);
        let error = here.recv().unwrap_err();
        assert!(error.is_end() && !error.is_end_inside(), "{error}");
        let error = here.send(3).unwrap_err();
        assert!(is_broken_pipe(&error), "{error}");
        assert!(process.join().is_err());
    });
}

#[test]
fn a_death_in_the_middle_of_a_message_is_the_end_at_once() {
    alone(|| {
        let (mut here, there) = pipe::<Vec<u8>, Vec<u8>>().unwrap();
        let process = Process::spawn(
            |end: End<Vec<u8>>| {
                write_raw(&end, &[0, 0, 4, 0, 1, 2, 3]);
                die();
            },
            there,
        )
        .unwrap();
        let error = here.recv().unwrap_err();
        assert!(error.is_end() && error.is_end_inside(), "{error}");
        assert!(process.join().is_err());
    });
}

#[test]
fn a_reader_that_dies_while_we_send_is_a_broken_pipe() {
    alone(|| {
        let (mut here, there) = pipe::<Vec<u8>, Vec<u8>>().unwrap();
        let process = Process::spawn(
            |end: End<Vec<u8>>| {
                // Something has come, and all of it cannot before somebody reads.
                while !end.poll(PATIENCE).unwrap() {}
                die();
            },
            there,
        )
        .unwrap();
        let error = here.send(vec![0; 64 << 20]).unwrap_err();
        assert!(is_broken_pipe(&error), "{error}");
        assert!(process.join().is_err());
    });
}

#[test]
fn an_end_that_nobody_took_ends_with_the_process_it_was_for() {
    alone(|| {
        let (mut here, there) = pipe::<u32, u32>().unwrap();
        let process = Process::spawn(|_: (Fatal, End<u32>)| (), (Fatal, there)).unwrap();
        assert!(process.join().is_err());
        assert!(here.recv().unwrap_err().is_end());
    });
}

/// Kills whoever reads it.
struct Fatal;

impl serde::Serialize for Fatal {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_unit()
    }
}

impl<'de> serde::Deserialize<'de> for Fatal {
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        die();
        Ok(Self)
    }
}

#[test]
fn what_is_no_value_costs_its_own_message_only() {
    let (mut one, there) = pipe::<Vec<u8>, String>().unwrap();
    let mut other = End::<String, String>::from(OwnedFd::from(there));
    one.send(vec![0xff]).unwrap();
    one.send(b"text".to_vec()).unwrap();
    assert!(other.recv().unwrap_err().is_codec());
    assert_eq!(other.recv().unwrap(), "text");
}

#[test]
fn what_is_no_message_is_told() {
    let (mut one, other) = pipe::<String, String>().unwrap();
    write_raw(&other, &[0x80, 0, 0, 0]);
    assert!(one.recv().unwrap_err().to_string().contains("bad message length"));
    let (mut one, other) = pipe::<String, String>().unwrap();
    // A length that is a lie takes no memory: it would be far more than there is.
    write_raw(&other, &[0xff, 0xff, 0xff, 0xff, 0, 0, 0xff, 0, 0, 0, 0, 0, 1]);
    drop(other);
    assert!(one.recv().unwrap_err().is_end_inside());
}

#[test]
fn a_descriptor_is_closed_with_its_end() {
    alone(|| {
        let (mut one, other) = pipe::<u8, u8>().unwrap();
        let copy = other.try_clone().unwrap();
        drop(other);
        assert!(!one.poll(Duration::ZERO).unwrap());
        drop(copy);
        eventually(|| one.poll(Duration::ZERO).unwrap(), || "the end".into());
        assert!(one.recv().unwrap_err().is_end());
    });
}

#[test]
fn a_python_program_has_the_other_end() {
    const PROGRAM: &str = "
from multiprocessing.connection import Connection
end = Connection(0)
while (message := end.recv_bytes()) != b'end':
    end.send_bytes(message[::-1])
";
    let python = std::env::var_os("PYO3_PYTHON").unwrap_or_else(|| "python3".into());
    let (mut here, there) = pipe::<Vec<u8>, Vec<u8>>().unwrap();
    let started =
        Command::new(python).args(["-c", PROGRAM]).stdin(Stdio::from(OwnedFd::from(there))).spawn();
    let Ok(mut child) = started else {
        eprintln!("there is no Python here");
        return;
    };
    for len in [0, 10, 100_000, 3 << 20] {
        let message: Vec<u8> = (0..len).map(|at| at as u8).collect();
        here.send(message.clone()).unwrap();
        let back = here.recv().unwrap();
        assert!(back.iter().eq(message.iter().rev()), "{len} bytes came back as others");
    }
    here.send(b"end".to_vec()).unwrap();
    assert!(here.recv().unwrap_err().is_end());
    assert!(child.wait().unwrap().success());
}

//! A process gets the surroundings that its builder names, or none is started.

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File};
use std::io::{Read as _, Write as _, stderr, stdin, stdout};
use std::os::fd::AsFd as _;

use phalanx::{Process, Resource, Stdio};
use rustix::process::{getpriority_process, getrlimit};
use rustix::thread::sched_getaffinity;

use crate::alone::alone;

fn environment(_: ()) -> BTreeMap<String, String> {
    env::vars().collect()
}

#[test]
fn variables_are_set_removed_and_cleared_for_the_process_alone() {
    alone(|| {
        let ours = environment(());
        let process = Process::builder().env("BUILT", "a=b").env_remove("PATH");
        let theirs = process.spawn(environment, ()).unwrap().join().unwrap();
        assert_eq!(theirs["BUILT"], "a=b");
        assert!(ours.contains_key("PATH") && !theirs.contains_key("PATH"));
        let process =
            Process::builder().env("GONE", "1").env_clear().env("ONLY", "2").env("ONLY", "3");
        let theirs = process.spawn(environment, ()).unwrap().join().unwrap();
        assert_eq!(theirs, [("ONLY".into(), "3".into())].into());
        assert_eq!(environment(()), ours);
    });
}

#[test]
fn a_process_starts_in_its_directory() {
    alone(|| {
        let here = |()| env::current_dir().unwrap();
        let there = Process::builder().current_dir("/proc").spawn(here, ()).unwrap();
        assert_eq!(there.join().unwrap(), std::path::Path::new("/proc"));
        assert_eq!(Process::spawn(here, ()).unwrap().join().unwrap(), here(()));
    });
}

#[test]
fn standard_streams_are_pipes_files_and_nothing() {
    alone(|| {
        let shout = |()| {
            let mut text = String::new();
            stdin().read_to_string(&mut text).unwrap();
            println!("{}", text.to_uppercase());
            eprintln!("{} bytes", text.len());
        };
        let piped = Process::builder().stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = piped.stderr(Stdio::piped()).spawn(shout, ()).unwrap();
        process.take_stdin().unwrap().write_all(b"loud").unwrap();
        assert!(process.take_stdin().is_none());
        let (mut out, mut err) = (String::new(), String::new());
        process.take_stdout().unwrap().read_to_string(&mut out).unwrap();
        process.take_stderr().unwrap().read_to_string(&mut err).unwrap();
        assert_eq!((&out[..], &err[..]), ("LOUD\n", "4 bytes\n"));
        process.join().unwrap();

        let (mut reader, writer) = std::io::pipe().unwrap();
        let quiet = Process::builder().stdin(Stdio::null()).stdout(Stdio::null()).stderr(writer);
        quiet.spawn(shout, ()).unwrap().join().unwrap();
        err.clear();
        reader.read_to_string(&mut err).unwrap();
        assert_eq!(err, "0 bytes\n");
    });
}

#[test]
fn standard_output_and_error_change_places() {
    alone(|| {
        let (mut first, one) = std::io::pipe().unwrap();
        let (mut second, two) = std::io::pipe().unwrap();
        // In a process whose 1 and 2 they are, so that they are each other's targets.
        let swap = |()| {
            let copy = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned().unwrap();
            let (out, err) = (copy(stdout().as_fd()), copy(stderr().as_fd()));
            let print = |()| {
                print!("out");
                eprint!("err");
            };
            Process::builder().stdout(err).stderr(out).spawn(print, ()).unwrap().join().unwrap();
        };
        let outer = Process::builder().stdout(one).stderr(two).spawn(swap, ()).unwrap();
        let (mut out, mut err) = (String::new(), String::new());
        first.read_to_string(&mut out).unwrap();
        second.read_to_string(&mut err).unwrap();
        assert_eq!((&out[..], &err[..]), ("err", "out"));
        outer.join().unwrap();
    });
}

#[test]
fn niceness_cpus_and_limits_hold_from_the_tasks_first_line_on() {
    alone(|| {
        let look = |()| {
            let files = getrlimit(rustix::process::Resource::Nofile);
            let cpus = sched_getaffinity(None).unwrap();
            let cpus: Vec<usize> = (0..1024).filter(|cpu| cpus.is_set(*cpu)).collect();
            (getpriority_process(None).unwrap(), cpus, files.current, files.maximum)
        };
        let cpus = look(()).1;
        let last = *cpus.last().unwrap();
        let process = Process::builder().nice(7).cpus([last]).limit(Resource::OpenFiles, 77);
        let seen = process.spawn(look, ()).unwrap().join().unwrap();
        assert_eq!(seen, (7, vec![last], Some(77), Some(77)));
        assert_eq!(look(()).1, cpus);
    });
}

#[test]
fn a_limit_ends_the_process_that_exceeds_it() {
    alone(|| {
        let path = env::temp_dir().join(format!("phalanx-limit-{}", std::process::id()));
        let file = File::create(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let process = Process::builder().stdout(file).limit(Resource::FileSize, 1 << 10);
        let write = |()| stdout().write_all(&[b'x'; 1 << 20]).unwrap();
        let error = process.spawn(write, ()).unwrap().join().unwrap_err();
        assert!(error.to_string().contains("SIGXFSZ"), "{error}");
    });
}

#[test]
fn what_cannot_be_is_an_error_at_once_and_leaves_no_process() {
    alone(|| {
        let spawn = |builder: phalanx::ProcessBuilder| builder.spawn(|()| (), ()).unwrap_err();
        let said = |builder, what: &str| {
            let error = spawn(builder).to_string();
            assert!(error.contains(what), "{error}");
        };
        let new = Process::builder;
        said(new().env("", "x"), "no name of a variable");
        said(new().env("A=B", "x"), "\"A=B\" is no name");
        said(new().env("A", "x\0y"), "NUL");
        said(new().current_dir("/nowhere/at/all"), "No such file");
        said(new().current_dir("/dev/null"), "no directory");
        said(new().nice(20), "-20 to 19, not 20");
        said(new().cpus([]), "needs a CPU");
        said(new().cpus([1023]), "bind a process to CPUs");
        said(new().cpus([usize::MAX]), "bind a process to CPUs");
        said(new().limit(Resource::OpenFiles, u64::MAX - 1), "limit what a process may use");
    });
}

//! What the machine can do: nothing that is built on it can be faster.

use std::ffi::c_long;
use std::hint::black_box;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

use criterion::{Criterion, Throughput};
use phalanx_benches::{criterion, group, percentile};

const END: u32 = u32::MAX;
const MIB: usize = 1 << 20;

/// Zeroed memory that children share, for as long as the program runs.
fn shared(len: usize) -> &'static mut [u8] {
    let (access, kind) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
    // SAFETY: new memory, which nobody else knows.
    unsafe {
        let memory = libc::mmap(ptr::null_mut(), len, access, kind, -1, 0);
        assert_ne!(memory, libc::MAP_FAILED);
        std::slice::from_raw_parts_mut(memory.cast(), len)
    }
}

fn unmap(memory: &'static mut [u8]) {
    // SAFETY: it came from `shared`, and who calls has no other reference to it.
    unsafe { libc::munmap(memory.as_mut_ptr().cast(), memory.len()) };
}

/// Runs on one core, or anywhere.
fn pin(core: Option<usize>) {
    // SAFETY: a set is plain bits, and a process may move itself.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        (0..cores.max(2))
            .filter(|n| core.is_none_or(|core| core == *n))
            .for_each(|n| libc::CPU_SET(n, &mut set));
        libc::sched_setaffinity(0, size_of_val(&set), &raw const set);
    }
}

/// Runs `work` in a child, while `meanwhile` runs here.
fn with_child(work: impl FnOnce(), meanwhile: impl FnOnce()) {
    // SAFETY: benches have one thread, and the child ends without returning.
    let child = unsafe { libc::fork() };
    if child == 0 {
        work();
        // SAFETY: nothing is to be cleaned up.
        unsafe { libc::_exit(0) };
    }
    meanwhile();
    // SAFETY: it is our child, and nobody else waits for it.
    unsafe { libc::waitpid(child, ptr::null_mut(), 0) };
}

fn futex(word: &AtomicU32, operation: i32, value: u32) {
    let timeout = ptr::null::<libc::timespec>();
    // SAFETY: the word outlives the call.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, value, timeout) };
}

fn sleep_while(word: &AtomicU32, value: u32) {
    while word.load(Ordering::Acquire) == value {
        futex(word, libc::FUTEX_WAIT, value);
    }
}

fn spin_while(word: &AtomicU32, value: u32) {
    while word.load(Ordering::Acquire) == value {
        std::hint::spin_loop();
    }
}

fn wake(word: &AtomicU32) {
    futex(word, libc::FUTEX_WAKE, 1);
}

/// One word each way, on cache lines of their own.
fn words(
    criterion: &mut Criterion,
    name: &str,
    cores: [Option<usize>; 2],
    wait: fn(&AtomicU32, u32),
    wake: fn(&AtomicU32),
) {
    let memory = shared(4096);
    let word = |at: usize| {
        // SAFETY: inside of the memory, aligned, and only used as an atomic.
        unsafe { AtomicU32::from_ptr(memory.as_ptr().cast_mut().add(at).cast()) }
    };
    let (there, back) = (word(0), word(256));
    let answer = || {
        pin(cores[1]);
        let mut last = 0;
        while last != END {
            wait(there, last);
            last = there.load(Ordering::Acquire);
            back.store(last, Ordering::Release);
            wake(back);
        }
    };
    let ask = || {
        pin(cores[0]);
        let mut last = 0;
        let mut trip = |next: u32| {
            there.store(next, Ordering::Release);
            wake(there);
            wait(back, last);
            last = next;
        };
        let mut count = 0;
        group(criterion, "floor, round trip p50").bench_function(name, |bencher| {
            bencher.iter_custom(|iters| {
                percentile(50, iters, |_| {
                    count += 1;
                    trip(count);
                })
            });
        });
        trip(END);
        pin(None);
    };
    with_child(answer, ask);
}

fn sockets(criterion: &mut Criterion) {
    let (mut here, mut there) = UnixStream::pair().expect("a pair");
    let answer = || {
        let mut message = [0; 8];
        while there.read_exact(&mut message).is_ok() && message != [1; 8] {
            there.write_all(&message).expect("to write");
        }
    };
    let ask = || {
        let mut message = [0; 8];
        group(criterion, "floor, round trip p50").bench_function("socket pair", |bencher| {
            bencher.iter_custom(|iters| {
                percentile(50, iters, |_| {
                    here.write_all(&[0; 8]).expect("to write");
                    here.read_exact(&mut message).expect("to read");
                })
            });
        });
        here.write_all(&[1; 8]).expect("to write");
    };
    with_child(answer, ask);
}

/// Bytes that a child reads.
fn stream(criterion: &mut Criterion) {
    let (mut here, mut there) = UnixStream::pair().expect("a pair");
    let mut buffer = vec![0; MIB];
    let mut sink = buffer.clone();
    let read = || {
        while there.read_exact(&mut sink).is_ok() && sink[0] == 0 {}
    };
    let write = || {
        let mut group = group(criterion, "floor, stream of 1 MiB messages");
        group.throughput(Throughput::Bytes(MIB as u64));
        group.bench_function("socket pair", |bencher| {
            bencher.iter(|| here.write_all(&buffer).expect("to write"));
        });
        buffer[0] = 1;
        here.write_all(&buffer).expect("to write");
    };
    with_child(read, write);
}

fn memory(criterion: &mut Criterion) {
    for mib in [1, 8, 64] {
        let from = vec![1_u8; mib * MIB];
        let mut group = group(criterion, &format!("floor, copy of {mib} MiB"));
        group.throughput(Throughput::Bytes(from.len() as u64));
        let to = shared(from.len());
        group.bench_function("into mapped shared memory", |bencher| {
            bencher.iter(|| black_box(&mut *to).copy_from_slice(black_box(&from)));
        });
        unmap(to);
        group.bench_function("into new shared memory", |bencher| {
            bencher.iter(|| {
                let to = shared(from.len());
                to.copy_from_slice(&from);
                unmap(to);
            });
        });
    }
}

fn processes(criterion: &mut Criterion) {
    let mut group = group(criterion, "floor, a process to its end, p50");
    group.bench_function("fork", |bencher| {
        bencher.iter_custom(|iters| percentile(50, iters, |_| with_child(|| (), || ())));
    });
    group.bench_function("exec of true", |bencher| {
        bencher.iter_custom(|iters| {
            percentile(50, iters, |_| assert!(Command::new("true").status().is_ok()))
        });
    });
}

fn steps(criterion: &mut Criterion) {
    let mut group = group(criterion, "floor, a step");
    let word = AtomicU32::new(0);
    group.bench_function("lock and unlock a word", |bencher| {
        bencher.iter(|| {
            let _ = word.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed);
            word.store(0, Ordering::Release);
        });
    });
    group.bench_function("system call", |bencher| {
        // SAFETY: it takes nothing.
        bencher.iter(|| unsafe { libc::syscall(libc::SYS_getppid) } as c_long);
    });
}

fn main() {
    let mut criterion = criterion();
    memory(&mut criterion);
    words(&mut criterion, "spinning, two cores", [Some(0), Some(1)], spin_while, |_| ());
    words(&mut criterion, "futex, two cores", [Some(0), Some(1)], sleep_while, wake);
    words(&mut criterion, "futex, one core", [Some(0), Some(0)], sleep_while, wake);
    words(&mut criterion, "futex, anywhere", [None, None], sleep_while, wake);
    sockets(&mut criterion);
    stream(&mut criterion);
    processes(&mut criterion);
    steps(&mut criterion);
    criterion.final_summary();
}

//! Channels between two processes: phalanx's, and ipc-channel's. And the ring under ours, alone.

use std::env;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use ipc_channel::ipc::{self, IpcBytesReceiver, IpcOneShotServer, IpcReceiver, IpcSender};
use phalanx::Process;
use phalanx::channel::{Queue, Receiver, Sender, unbounded};
use phalanx_benches::{criterion, group, percentile, time, touch};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

const MEETING: &str = "PHALANX_BENCH_MEETING";
const MIB: usize = 1 << 20;
/// Ends a count.
const END: u64 = u64::MAX;

// What our child does.

fn echo((receiver, sender): (Receiver<u64>, Sender<u64>)) {
    while let Ok(value) = receiver.recv() {
        if sender.send(&value).is_err() {
            break;
        }
    }
}

/// Counts what comes until the end does, and says how many there were; again and again.
fn count((receiver, sender): (Receiver<u64>, Sender<u64>)) {
    let mut counted = 0;
    while let Ok(value) = receiver.recv() {
        counted += 1;
        if value == END {
            drop(sender.send(&std::mem::take(&mut counted)));
        }
    }
}

fn look((receiver, sender): (Receiver<ByteBuf>, Sender<u64>)) {
    while let Ok(bytes) = receiver.recv() {
        drop(sender.send(&touch(&bytes)));
    }
}

/// What theirs does.
#[derive(Serialize, Deserialize)]
enum Theirs {
    Echo(IpcReceiver<u64>, IpcSender<u64>),
    Count(IpcReceiver<u64>, IpcSender<u64>),
    Look(IpcBytesReceiver, IpcSender<u64>),
}

fn be_theirs(meeting: String) {
    let (sender, receiver) = ipc::channel::<Theirs>().expect("a channel");
    IpcSender::connect(meeting).expect("a parent").send(sender).expect("to send");
    match receiver.recv().expect("orders") {
        Theirs::Echo(receiver, sender) => {
            while let Ok(value) = receiver.recv() {
                drop(sender.send(value));
            }
        }
        Theirs::Count(receiver, sender) => {
            let mut counted = 0;
            while let Ok(value) = receiver.recv() {
                counted += 1;
                if value == END {
                    drop(sender.send(std::mem::take(&mut counted)));
                }
            }
        }
        Theirs::Look(receiver, sender) => {
            while let Ok(bytes) = receiver.recv() {
                drop(sender.send(touch(&bytes)));
            }
        }
    }
}

fn start_theirs(orders: Theirs) -> Child {
    let (server, meeting) = IpcOneShotServer::<IpcSender<Theirs>>::new().expect("a server");
    let own = env::current_exe().expect("a path");
    let child = Command::new(own).env(MEETING, meeting).spawn().expect("a child");
    let (_, sender) = server.accept().expect("a child that calls");
    sender.send(orders).expect("to send");
    child
}

fn ping_pong(criterion: &mut Criterion) {
    let mut group = group(criterion, "channel, there and back p50");
    let ((ask, asked), (answer, answered)) = (unbounded().unwrap(), unbounded().unwrap());
    let child = Process::spawn(echo, (asked, answer)).expect("a child");
    group.bench_function("phalanx", |bencher| {
        let trip = |n| _ = ask.send(&n).and_then(|()| answered.recv()).expect("an answer");
        bencher.iter_custom(|iters| percentile(50, iters, trip));
    });
    drop(ask);
    child.join().expect("its end");
    let ((ask, asked), (answer, answered)) = (ipc::channel().unwrap(), ipc::channel().unwrap());
    let mut child = start_theirs(Theirs::Echo(asked, answer));
    group.bench_function("ipc-channel", |bencher| {
        let trip = |n| {
            ask.send(n).expect("to send");
            answered.recv().expect("an answer");
        };
        bencher.iter_custom(|iters| percentile(50, iters, trip));
    });
    drop(ask);
    child.wait().expect("its end");
}

fn one_way(criterion: &mut Criterion) {
    let mut group = group(criterion, "channel, one way");
    group.throughput(Throughput::Elements(1));
    let ((send, receive), (tell, told)) = (unbounded().unwrap(), unbounded().unwrap());
    let child = Process::spawn(count, (receive, tell)).expect("a child");
    group.bench_function("phalanx", |bencher| {
        bencher.iter_custom(|iters| {
            time(|| {
                (0..iters).for_each(|n| send.send(&n).expect("to send"));
                send.send(&END).expect("to send");
                assert_eq!(told.recv().expect("a count"), iters + 1);
            })
        });
    });
    drop(send);
    child.join().expect("its end");
    let ((send, receive), (tell, told)) = (ipc::channel().unwrap(), ipc::channel().unwrap());
    let mut child = start_theirs(Theirs::Count(receive, tell));
    group.bench_function("ipc-channel", |bencher| {
        bencher.iter_custom(|iters| {
            time(|| {
                (0..iters).for_each(|n| send.send(n).expect("to send"));
                send.send(END).expect("to send");
                assert_eq!(told.recv().expect("a count"), iters + 1);
            })
        });
    });
    drop(send);
    child.wait().expect("its end");
}

/// A megabyte, looked at on the other side, and a small answer; one after the other.
fn megabytes(criterion: &mut Criterion) {
    let mut group = group(criterion, "channel, 1 MiB");
    group.throughput(Throughput::Bytes(MIB as u64));
    let bytes = ByteBuf::from(vec![1; MIB]);
    let ((send, receive), (answer, answered)) = (unbounded().unwrap(), unbounded().unwrap());
    let child = Process::spawn(look, (receive, answer)).expect("a child");
    group.bench_function("phalanx", |bencher| {
        bencher.iter(|| send.send(&bytes).and_then(|()| answered.recv()).expect("an answer"));
    });
    drop(send);
    child.join().expect("its end");
    let ((send, receive), (answer, answered)) =
        (ipc::bytes_channel().unwrap(), ipc::channel().unwrap());
    let mut child = start_theirs(Theirs::Look(receive, answer));
    group.bench_function("ipc-channel, bytes", |bencher| {
        bencher.iter(|| {
            send.send(&bytes).expect("to send");
            answered.recv().expect("an answer")
        });
    });
    drop(send);
    child.wait().expect("its end");
}

/// Put and taken by one thread, so without any wait: what the queue itself costs.
fn ring(criterion: &mut Criterion) {
    let queue = Queue::new(None).expect("a queue");
    let deadline = Instant::now() + Duration::from_secs(3600);
    let mut group = group(criterion, "ring, put and take");
    for (name, len) in [("8 bytes", 8), ("1 KiB", 1 << 10)] {
        let (from, mut to) = (vec![1_u8; len], vec![0_u8; len]);
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                queue.put(&[(0, &from)], deadline).expect("room");
                let front = queue.try_front().expect("a frame");
                front.take::<phalanx::Error>(1, |_, body| body(&mut to)).expect("a frame")
            });
        });
    }
}

fn main() {
    phalanx::init();
    if let Ok(meeting) = env::var(MEETING) {
        return be_theirs(meeting);
    }
    let mut criterion = criterion();
    ring(&mut criterion);
    ping_pong(&mut criterion);
    one_way(&mut criterion);
    megabytes(&mut criterion);
    criterion.final_summary();
}

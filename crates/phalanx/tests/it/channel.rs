//! Channels between processes: order, bounds, ends, and what a death leaves.

use std::time::{Duration, Instant};

use phalanx::Process;
use phalanx::channel::{Receiver, Select, Sender, bounded, unbounded};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

use crate::alone::alone;

const LONG: Duration = Duration::from_secs(30);

#[test]
fn values_of_several_processes_arrive_once_and_in_order() {
    alone(|| {
        let (sender, receiver) = bounded::<(u32, u32)>(7).unwrap();
        let count = |(name, sender): (u32, Sender<(u32, u32)>)| {
            (0..500).for_each(|n| sender.send(&(name, n)).unwrap());
        };
        let spawn = |name| Process::spawn(count, (name, sender.clone())).unwrap();
        let children: Vec<_> = (0..3).map(spawn).collect();
        drop(sender);
        let all: Vec<_> = receiver.iter().map(Result::unwrap).collect();
        assert_eq!(all.len(), 1500);
        for name in 0..3 {
            let own = all.iter().filter(|(n, _)| *n == name).map(|(_, n)| *n);
            assert!(own.eq(0..500));
        }
        children.into_iter().for_each(|child| child.join().unwrap());
    });
}

#[test]
fn an_end_goes_through_a_channel() {
    alone(|| {
        let (outer, inbox) = unbounded::<Sender<String>>().unwrap();
        let answer = |inbox: Receiver<Sender<String>>| {
            inbox.recv().unwrap().send(&"hello".into()).unwrap();
        };
        let child = Process::spawn(answer, inbox).unwrap();
        let (reply, answers) = unbounded().unwrap();
        outer.send(&reply).unwrap();
        drop(reply);
        assert_eq!(answers.recv_timeout(LONG).unwrap(), "hello");
        child.join().unwrap();
        assert!(answers.recv().unwrap_err().is_closed());
    });
}

/// Sends what it has by a channel of its own while it is written, and receives it while it is read.
struct Detour(Vec<u8>, Sender<Vec<u8>>, Receiver<Vec<u8>>);

impl Serialize for Detour {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.1.send(&self.0).map_err(ser::Error::custom)?;
        (&self.1, &self.2).serialize(to)
    }
}

impl<'de> Deserialize<'de> for Detour {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let (sender, receiver) = <(Sender<Vec<u8>>, Receiver<Vec<u8>>)>::deserialize(from)?;
        Ok(Self(receiver.recv().map_err(de::Error::custom)?, sender, receiver))
    }
}

#[test]
fn a_value_may_send_and_receive_others_on_its_way() {
    let ((sender, receiver), (inner, end)) = (unbounded().unwrap(), unbounded().unwrap());
    for len in [10, 1 << 20, 3] {
        sender.send(&Detour(vec![7; len], inner.clone(), end.clone())).unwrap();
        assert_eq!(receiver.recv().unwrap().0, vec![7; len]);
    }
}

#[test]
fn what_is_wrong_is_told() {
    assert!(bounded::<u8>(0).unwrap_err().is_invalid());
    let (sender, receiver) = bounded(1).unwrap();
    assert!(receiver.try_recv().unwrap_err().is_timeout());
    sender.send(&1u8).unwrap();
    let late = sender.send_timeout(&2, Duration::from_millis(5));
    assert!(late.unwrap_err().is_timeout());
    drop(sender);
    assert_eq!(receiver.recv().unwrap(), 1, "what was sent is there after the sender");
    assert!(receiver.recv().unwrap_err().is_closed());
    let (sender, receiver) = unbounded::<u8>().unwrap();
    drop(receiver);
    assert!(sender.send(&1).unwrap_err().is_closed());
}

#[test]
fn a_killed_sender_is_no_sender_any_more() {
    alone(|| {
        let (sender, receiver) = unbounded::<u32>().unwrap();
        let flood = |sender: Sender<u32>| (0..u32::MAX).for_each(|n| sender.send(&n).unwrap());
        let child = Process::spawn(flood, sender).unwrap();
        assert_eq!(receiver.recv().unwrap(), 0);
        child.kill().unwrap();
        let start = Instant::now();
        let rest: Vec<_> = receiver.iter().map(Result::unwrap).collect();
        assert!((1..).zip(&rest).all(|(expected, n)| expected == *n));
        assert!(start.elapsed() < LONG);
        drop(child);
    });
}

#[test]
fn a_select_tells_what_came_first() {
    alone(|| {
        let (sender, receiver) = unbounded::<u32>().unwrap();
        let (_open, silent) = unbounded::<u32>().unwrap();
        let child = Process::spawn(|sender: Sender<u32>| sender.send(&7).unwrap(), sender).unwrap();
        let mut select = Select::new();
        let (quiet, value) = (select.recv(&silent), select.recv(&receiver));
        assert_ne!(quiet, value);
        assert_eq!(select.wait().unwrap(), value);
        assert_eq!(receiver.recv().unwrap(), 7);
        let mut select = Select::new();
        let (_, end) = (select.recv(&silent), select.readable(&child));
        assert_eq!(select.wait().unwrap(), end);
        let mut select = Select::new();
        let (_, late) = (select.recv(&silent), select.after(Duration::from_millis(5)));
        assert_eq!(select.wait().unwrap(), late);
        assert!(Select::new().wait().unwrap_err().is_invalid());
    });
}

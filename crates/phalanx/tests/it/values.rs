//! Values arrive as they were sent, or the error says what could not be.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::fd::AsFd;

use phalanx::{Descriptor, Pool, Process};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

use crate::alone::{alone, eventually};

const BIG: usize = 100 << 20;

#[test]
fn big_vectors_travel_both_ways() {
    alone(|| {
        let pool = Pool::new(2).unwrap();
        let turn = |mut bytes: Vec<u8>| {
            bytes.reverse();
            bytes
        };
        let mut bytes = vec![0; BIG];
        bytes[0] = 1;
        let turned = pool.submit(turn, bytes).wait().unwrap();
        assert_eq!((turned.len(), turned[0], turned[BIG - 1]), (BIG, 0, 1));
        let numbers = Process::spawn(|len| vec![0.5_f64; len], BIG / 8).unwrap().join().unwrap();
        assert_eq!((numbers.len(), numbers[BIG / 8 - 1]), (BIG / 8, 0.5));
    });
}

#[test]
fn big_items_do_not_mix_with_others() {
    alone(|| {
        let pool = Pool::new(2).unwrap();
        let items = (0..60).map(|n: usize| vec![n as u8; [10, 700_000, 3_000_000][n % 3]]);
        let sums = pool.map(
            |bytes: Vec<u8>| (bytes[0], bytes.iter().map(|b| u64::from(*b)).sum()),
            items.clone(),
        );
        let expected: Vec<(u8, u64)> =
            items.map(|bytes| (bytes[0], u64::from(bytes[0]) * bytes.len() as u64)).collect();
        assert_eq!(sums.unwrap(), expected);
    });
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
enum Shape {
    Dot,
    Line { from: (f64, f64), to: (f64, f64) },
    Named(HashMap<String, Vec<Shape>>),
}

#[test]
fn any_serde_type_travels() {
    alone(|| {
        let pool = Pool::new(2).unwrap();
        let line = Shape::Line { from: (0.0, 1.0), to: (f64::MAX, -1.0) };
        let named = Shape::Named([("a".to_string(), vec![Shape::Dot, line.clone()])].into());
        let shapes = vec![Shape::Dot, line, named];
        assert_eq!(pool.map(|shape: Shape| shape, shapes.clone()).unwrap(), shapes);
        let texts = ["", "a", "längere Texte auch"].map(String::from);
        assert_eq!(pool.map(|text: String| text, texts.clone()).unwrap(), texts);
    });
}

/// Says no when it is written (0) or read (1).
#[derive(Debug)]
struct Difficult(u8);

impl Serialize for Difficult {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if self.0 == 0 {
            Err(ser::Error::custom("will not be written"))
        } else {
            self.0.serialize(to)
        }
    }
}

impl<'de> Deserialize<'de> for Difficult {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match u8::deserialize(from)? {
            1 => Err(de::Error::custom("will not be read")),
            n => Ok(Self(n)),
        }
    }
}

#[test]
fn a_value_that_cannot_travel_is_an_error_that_names_it() {
    fn take(_: Difficult) {}
    alone(|| {
        let pool = Pool::new(1).unwrap();
        let told = [
            (
                pool.submit(take, Difficult(0)).wait(),
                "failed to write an argument: for `it::values",
            ),
            (pool.submit(take, Difficult(1)).wait(), "failed to read an argument: of `it::values"),
            (
                pool.submit(Difficult, 0).wait().map(drop),
                "failed to write a result: of `it::values",
            ),
            (pool.submit(Difficult, 1).wait().map(drop), "failed to read a result: of `it::values"),
        ];
        for (result, text) in told {
            let error = result.unwrap_err();
            assert!(error.is_codec() && error.to_string().starts_with(text), "{error}");
        }
        assert_eq!(pool.submit(Difficult, 2).wait().unwrap().0, 2);
        let results = pool.try_map(take, [2, 0, 1, 2].map(Difficult)).unwrap();
        assert_eq!(
            results.iter().map(Result::is_ok).collect::<Vec<_>>(),
            [true, false, false, true]
        );
    });
}

/// A pipe's two ends.
fn pipe() -> (std::io::PipeReader, std::io::PipeWriter) {
    std::io::pipe().unwrap()
}

#[test]
fn a_descriptor_travels_to_a_task_and_back() {
    alone(|| {
        let write = |(descriptor, text): (Descriptor, String)| {
            let mut file = descriptor.into::<std::fs::File>();
            file.write_all(text.as_bytes()).unwrap();
            Descriptor::from(file)
        };
        let pool = Pool::new(2).unwrap();
        let (mut reader, writer) = pipe();
        let writer = Descriptor::from(writer);
        let copies = (0..3).map(|_| writer.as_fd().try_clone_to_owned().unwrap().into());
        let items: Vec<(Descriptor, String)> = copies.map(|copy| (copy, "one ".into())).collect();
        let back = pool.map(write, items).unwrap();
        drop(writer);
        for descriptor in back {
            descriptor.into::<std::fs::File>().write_all(b"two ").unwrap();
        }
        pool.join().unwrap();
        let mut text = String::new();
        // It ends: nobody has kept a copy.
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "one one one two two two ");
    });
}

#[test]
fn a_descriptor_sent_to_a_process_is_kept_for_it_and_no_longer() {
    alone(|| {
        let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let before = descriptors();
        let (mut reader, writer) = pipe();
        let (begun, mut beginning) = pipe();
        let wait = |(begin, writer): (Descriptor, Descriptor)| {
            begin.into::<std::fs::File>().read_to_end(&mut Vec::new()).unwrap();
            writer.into::<std::fs::File>().write_all(b"late").unwrap();
        };
        // Dropped before it can have read its argument.
        drop(Process::spawn(wait, (begun.into(), writer.into())).unwrap());
        beginning.write_all(b"now").unwrap();
        drop(beginning);
        let mut text = [0; 4];
        reader.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"late");
        eventually(
            || {
                // Whoever spawns next sees to those that have ended.
                Process::spawn(|()| (), ()).unwrap().join().unwrap();
                descriptors() == before + 1
            },
            || "a copy that nobody closes".into(),
        );
    });
}

#[test]
fn a_descriptor_cannot_be_the_result_of_a_process_that_ends() {
    alone(|| {
        let open = |()| Descriptor::from(std::fs::File::open("/dev/null").unwrap());
        let error = Process::spawn(open, ()).unwrap().join().unwrap_err();
        assert!(error.to_string().contains("descriptor"), "{error}");
    });
}

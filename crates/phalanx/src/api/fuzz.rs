//! Arguments, results and orders as another process wrote them, spoilt; see `crate::fuzz`.

use std::collections::BTreeMap;

use super::failure::Failure;
use super::start::{Role, Tie, orders, told};
use super::value::{Value, decode, decode_all, encode, encode_all};
use crate::fuzz::Fuzz;
use crate::sys::code::Place;

/// serde takes memory for so much in advance, however many items it is told of.
const CAUTIOUS: usize = 2 << 20;

fn read<T: Value + Clone>(name: &'static str, values: Vec<T>) {
    let mut valid: Vec<_> = values.iter().map(|it| encode(it.clone(), 0).unwrap()).collect();
    valid.push(encode_all(values, 0).unwrap());
    Fuzz::new(name).allowance(CAUTIOUS).run(&valid, |bytes| {
        if let Ok(value) = decode::<T>(bytes.to_vec()) {
            encode(value, 0).unwrap();
        }
        if let Ok(values) = decode_all::<T>(bytes.to_vec()) {
            encode_all(values, 0).unwrap();
        }
    });
}

#[test]
fn bytes_are_numbers_or_an_error() {
    read("wire: u64", vec![0, 300, u64::MAX]);
    read("wire: Vec<u32>", vec![vec![1_u32, 2], vec![], vec![u32::MAX; 9]]);
}

#[test]
fn bytes_are_text_or_an_error() {
    read("wire: String", vec!["a text".to_string(), String::new(), "\u{1f980}".repeat(9)]);
    read("wire: char", vec!['a', '\u{1f980}']);
}

#[test]
fn bytes_are_a_structure_or_an_error() {
    let map: BTreeMap<u16, Vec<Option<String>>> =
        [(1, vec![Some("a".into()), None]), (900, vec![None; 5])].into();
    read("wire: structure", vec![(true, map.clone(), -1_i64), (false, map, 1 << 40)]);
}

#[test]
fn bytes_are_things_without_bytes_or_an_error() {
    read("wire: Vec<()>", vec![vec![()], vec![], vec![(); 300]]);
    read("wire: Vec<Vec<[u8; 0]>>", vec![vec![vec![[0; 0]; 9]; 3]]);
    read("wire: BTreeMap<(), Vec<()>>", vec![BTreeMap::from([((), vec![(); 70])])]);
}

#[test]
fn bytes_are_a_failure_that_can_be_told() {
    let text = |text: &str| text.to_string();
    let (message, place, trace) = (text("it broke"), text("src/a.rs:1"), text("0: main\n"));
    let valid = [
        Failure::Panic { message, place, trace }.to_bytes(),
        Failure::Argument { why: text("too short") }.to_bytes(),
        Failure::Result { why: text("too long") }.to_bytes(),
        Failure::Place.to_bytes(),
    ];
    Fuzz::new("failure").run(&valid, |bytes| {
        assert!(!Failure::from_bytes(bytes).of_task("f").to_string().is_empty());
        assert!(!Failure::from_bytes(bytes).into_text().0.is_empty());
    });
}

#[test]
fn text_is_a_childs_orders_or_an_error() {
    let roles = [
        Role::Worker { seat: 3, life: Some(9), tree: true },
        Role::Process { tie: Some(Tie { tree: false }) },
        Role::Process { tie: None },
    ];
    let valid = roles.map(|role| orders(&role, &[3, 4, 5]).unwrap().into_bytes());
    Fuzz::new("orders").cost(2).run(&valid, |bytes| {
        let text = String::from_utf8_lossy(bytes);
        if let Ok((_, fds, _)) = told(&text) {
            assert!(fds.len() <= bytes.len());
        }
    });
}

#[test]
fn a_place_is_in_the_executable_or_refused() {
    // What is there is not called: that it is a task is known by comparing builds only.
    let near = |distance: u64| distance.to_ne_bytes().to_vec();
    Fuzz::new("place").run(&[near(0), near(4096), near(u64::MAX - 4095)], |bytes| {
        let mut place = [0; Place::LEN];
        let len = bytes.len().min(Place::LEN);
        place[..len].copy_from_slice(&bytes[..len]);
        let _ = Place::from_bytes(place).entry();
    });
}

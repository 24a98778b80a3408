//! Of unit tests: what another process wrote is input, so decoders are given millions of inputs that
//! nobody would have written.
//!
//! A decoder is tested by a function that is given bytes, in a module `fuzz` near the decoder. The
//! bytes are valid messages that were spoilt, in some cases beside ones that were not, or noise. It
//! must neither panic nor allocate out of proportion to its input; what it makes of the bytes is its
//! affair. What shared memory holds is input, too: there the bytes say what is written where, and
//! [`Script`] reads them.
//!
//! | variable | what it says |
//! | --- | --- |
//! | `PHALANX_FUZZ_CASES` | how many cases a decoder gets that takes no time; others get fewer |
//! | `PHALANX_FUZZ_SEED` | the number that all cases follow from |
//! | `PHALANX_FUZZ_BYTES` | one case, in hexadecimal digits, instead of all |
//! | `PHALANX_FUZZ_NOTES` | a folder where each decoder notes the case before it: for one that kills |
//!
//! `tools/fuzz.py` (`make fuzz`) runs many, `cargo test` some.

use std::env;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::time::Instant;

use crate::sys::counting::peak;

const CASES: u64 = 3000;
const SEED: u64 = 0x5eed;
/// The most bytes of a case.
const LONGEST: usize = 4096;

/// What a decoder may allocate.
const ALLOWANCE: usize = 64 << 10;
const ALLOWED_A_BYTE: usize = 64;

/// A test of one decoder.
pub(crate) struct Fuzz {
    decoder: &'static str,
    cost: u64,
    allowance: usize,
}

impl Fuzz {
    pub(crate) fn new(decoder: &'static str) -> Self {
        Self { decoder, cost: 1, allowance: ALLOWANCE }
    }

    /// A case takes so many times as long as that of a decoder which makes no system call.
    pub(crate) fn cost(self, cost: u64) -> Self {
        Self { cost, ..self }
    }

    /// So many bytes may be allocated in addition to what is in proportion.
    pub(crate) fn allowance(self, allowance: usize) -> Self {
        Self { allowance, ..self }
    }

    /// Calls `decode` with many variations of the `valid` messages.
    pub(crate) fn run(&self, valid: &[Vec<u8>], mut decode: impl FnMut(&[u8])) {
        if let Ok(digits) = env::var("PHALANX_FUZZ_BYTES") {
            return self.case(&from_hex(&digits), &mut decode);
        }
        let seed = number("PHALANX_FUZZ_SEED", SEED);
        let cases = (number("PHALANX_FUZZ_CASES", CASES) / self.cost).max(1);
        let notes = env::var("PHALANX_FUZZ_NOTES").ok();
        let notes = notes.map(|folder| File::create(Path::new(&folder).join(self.decoder)));
        let notes = notes.map(|file| file.expect("the notes' folder is there"));
        let mut random = Random::new(
            self.decoder
                .bytes()
                .fold(seed, |seed, byte| seed.wrapping_mul(0x100_0000_01b3) ^ u64::from(byte)),
        );
        let began = Instant::now();
        let unspoilt = valid.iter().cloned();
        let spoilt = (0..cases).map(|_| random.variation(valid));
        for bytes in unspoilt.chain(spoilt) {
            if let Some(notes) = &notes {
                let len = bytes.len() as u64;
                notes.write_all_at(&[&len.to_le_bytes()[..], &bytes].concat(), 0).unwrap();
            }
            self.case(&bytes, &mut decode);
        }
        let (cases, took) = (cases + valid.len() as u64, began.elapsed().as_secs_f64());
        println!("fuzz: {}: {cases} cases, seed {seed}, {took:.1} s", self.decoder);
    }

    fn case(&self, bytes: &[u8], decode: &mut impl FnMut(&[u8])) {
        let (decoded, peak) = peak(|| catch_unwind(AssertUnwindSafe(|| decode(bytes))));
        let digits = || bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        if let Err(panic) = decoded {
            println!("fuzz: {}: a panic, PHALANX_FUZZ_BYTES={}", self.decoder, digits());
            resume_unwind(panic);
        }
        let allowed = self.allowance + ALLOWED_A_BYTE * bytes.len();
        assert!(
            peak <= allowed,
            "fuzz: {}: {peak} bytes allocated for {}, PHALANX_FUZZ_BYTES={}",
            self.decoder,
            bytes.len(),
            digits()
        );
    }
}

fn number(variable: &str, default: u64) -> u64 {
    env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

fn from_hex(digits: &str) -> Vec<u8> {
    let pairs = digits.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
    pairs.map(|pair| u8::from_str_radix(pair, 16).expect("hexadecimal digits")).collect()
}

/// SplitMix64 (Steele, Lea, Flood, 2014).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, or 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }

    /// A number that is at some border, or near one.
    fn extreme(&mut self) -> u64 {
        let power = 1_u64 << self.below(64);
        match self.below(6) {
            0 => 0,
            1 => u64::MAX.wrapping_sub(self.below(64) as u64),
            2 => power,
            3 => power.wrapping_sub(1 + self.below(32) as u64),
            4 => power.wrapping_add(1 + self.below(32) as u64),
            _ => self.below(300) as u64,
        }
    }

    fn variation(&mut self, valid: &[Vec<u8>]) -> Vec<u8> {
        if valid.is_empty() || self.below(8) == 0 {
            let len = self.below(64) * if self.below(8) == 0 { 16 } else { 1 };
            return self.bytes(len);
        }
        let mut bytes = valid[self.below(valid.len())].clone();
        let spoils = self.below(5); // with 0 it stays as it was
        for _ in 0..spoils {
            let other = self.below(valid.len());
            self.spoil(&mut bytes, &valid[other]);
        }
        bytes.truncate(LONGEST);
        bytes
    }

    /// Changes one thing.
    fn spoil(&mut self, bytes: &mut Vec<u8>, other: &[u8]) {
        let at = self.below(bytes.len());
        match self.below(9) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << self.below(8),
            1 if !bytes.is_empty() => bytes[at] = self.next() as u8,
            2 => bytes.truncate(at),
            3 => {
                let len = self.below(40);
                bytes.extend(self.bytes(len));
            }
            // A number in place of another, at a word's border as a rule.
            4..=6 if !bytes.is_empty() => {
                let word = self.extreme();
                let word = if self.below(4) == 0 { word.to_be_bytes() } else { word.to_le_bytes() };
                let (width, at) =
                    (1 << self.below(4), if self.below(4) == 0 { at } else { at & !7 });
                let end = bytes.len().min(at + width);
                bytes[at..end].copy_from_slice(&word[..end - at]);
            }
            7 => {
                let from = self.below(other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
            _ => {
                let end = at + self.below(bytes.len() - at + 1);
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
        }
    }
}

/// A case, read as what is to be done one after the other.
pub(crate) struct Script<'a>(pub(crate) &'a [u8]);

impl<'a> Script<'a> {
    pub(crate) fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    /// The next bytes, fewer at the end.
    pub(crate) fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or(0)
    }

    pub(crate) fn word(&mut self) -> u64 {
        let mut word = [0; 8];
        let bytes = self.bytes(8);
        word[..bytes.len()].copy_from_slice(bytes);
        u64::from_le_bytes(word)
    }
}

/// Shared memory, to be spoilt as another process would.
pub(crate) struct Foreign(File);

impl Foreign {
    pub(crate) fn new(memory: impl std::os::fd::AsFd) -> Self {
        Self(memory.as_fd().try_clone_to_owned().unwrap().into())
    }

    /// Writes where there is room.
    pub(crate) fn write(&self, at: u64, bytes: &[u8]) {
        let _ = self.0.write_all_at(bytes, at);
    }

    pub(crate) fn len(&self) -> u64 {
        self.0.metadata().unwrap().len()
    }

    /// How many bytes of it have pages.
    pub(crate) fn resident(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        self.0.metadata().unwrap().blocks() * 512
    }
}

#[test]
fn the_same_seed_gives_the_same_cases() {
    let cases = |seed| {
        let mut random = Random::new(seed);
        let valid = [vec![1, 2, 3], vec![4; 20]];
        (0..100).map(|_| random.variation(&valid)).collect::<Vec<_>>()
    };
    assert_eq!(cases(7), cases(7));
    assert_ne!(cases(7), cases(8));
}

#[test]
fn a_decoder_that_trusts_its_input_is_found() {
    let fails = |decode: fn(&[u8])| {
        catch_unwind(|| Fuzz::new("one that trusts").run(&[vec![3, 0, 1, 2]], decode)).is_err()
    };
    assert!(fails(|bytes| assert!(bytes.first().is_none_or(|first| *first < 200))));
    assert!(fails(|bytes| {
        let len = bytes.get(..2).map_or(0, |len| u16::from_le_bytes([len[0], len[1]]));
        std::hint::black_box(vec![0_u8; 50 * usize::from(len)]);
    }));
}

//! One end of a pipe to a Python program, which starts this one: `examples/python/word_lengths.py`.
//!
//! It has the end as its standard input. Bytes come as `send_bytes` sends them there, and go as
//! `recv_bytes` receives them.

use std::io::stdin;
use std::os::fd::AsFd as _;

use phalanx::pipe::End;

fn main() -> phalanx::Result<()> {
    let end = stdin().as_fd().try_clone_to_owned().expect("a standard input");
    let mut end = End::<Vec<u64>, String>::from(end);
    loop {
        match end.recv() {
            Ok(text) => end.send(text.split(' ').map(|word| word.len() as u64).collect())?,
            Err(error) if error.is_end() => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

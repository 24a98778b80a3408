//! Doubles numbers that a Python program has put into shared memory: the other half of
//! `examples/python/double_in_rust.py`.
//!
//!     double NAME COUNT

use phalanx::shared::Memory;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(name), Some(count)) = (arguments.next(), arguments.next()) else {
        return Err("say the name of the memory, and how many numbers are there".into());
    };
    let (memory, count) = (Memory::open(&name)?, count.parse::<usize>()?);
    for at in (0..count).map(|i| i * size_of::<f64>()) {
        memory.store(at, memory.load::<f64>(at)? * 2.0)?;
    }
    Ok(())
}

//! A pool of processes, in Rust: the twin of `examples/python/squares.py`.

fn square(number: u64) -> u64 {
    number * number
}

fn main() -> phalanx::Result<()> {
    phalanx::init(); // a worker is this program again, and stays in here
    let pool = phalanx::Pool::new(3)?;
    let results = pool.map(square, [1, 2, 3, 4, 5])?;
    println!("Results: {results:?}");
    Ok(())
}

//! A child process, in Rust: the twin of `examples/python/hello.py`.

fn worker_function(_: ()) {
    println!("Worker process started");
    println!("Hello from the worker process!");
}

fn main() -> phalanx::Result<()> {
    phalanx::init(); // a child is this program again, and stays in here
    let process = phalanx::Process::spawn(worker_function, ())?;
    process.join()?;
    println!("Main process finished");
    Ok(())
}

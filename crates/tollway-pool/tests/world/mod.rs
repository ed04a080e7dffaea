//! A network and peers that do as they please.
#![allow(unreachable_pub, reason = "a test")]

mod network;
mod peer;
pub mod script;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::io::duplex;
use tokio::time::{Instant, sleep};
use tollway_pool::Protocol;

pub use network::Socket;

pub fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

pub fn one_of<T: Clone>(rng: &mut StdRng, these: &[T]) -> T {
    these[rng.random_range(0..these.len())].clone()
}

/// What the peers have done for a call.
#[derive(Clone, Debug, Default)]
pub struct Entry {
    pub processed: usize,
    /// The request's body came to its end, but wasn't what its caller had said.
    pub muddled: bool,
}

pub struct World {
    pub protocol: Protocol,
    pub cap: usize,
    /// How likely whatever can go wrong is to do so: up to one.
    wild: f64,
    rng: Mutex<StdRng>,
    calm: AtomicBool,
    sockets: AtomicUsize,
    most: AtomicUsize,
    ledger: Mutex<HashMap<usize, Entry>>,
    began: Instant,
    /// For whoever reads the failed test.
    log: Mutex<Vec<String>>,
}

impl World {
    pub fn new(seed: u64, protocol: Protocol, cap: usize) -> Self {
        let mut rng = StdRng::seed_from_u64(!seed);
        Self {
            protocol,
            cap,
            wild: one_of(&mut rng, &[0.03, 0.2, 1.0]),
            rng: Mutex::new(rng),
            calm: AtomicBool::new(false),
            sockets: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            ledger: Mutex::default(),
            began: Instant::now(),
            log: Mutex::new(vec![format!("seed {seed}, {protocol:?}")]),
        }
    }

    /// From now on, everything goes well.
    pub fn calm(&self) {
        self.calm.store(true, Ordering::Relaxed);
        self.log(format_args!("calm"));
    }

    pub fn is_calm(&self) -> bool {
        self.calm.load(Ordering::Relaxed)
    }

    pub fn sockets(&self) -> usize {
        self.sockets.load(Ordering::Relaxed)
    }

    /// The most that there were at once.
    pub fn most_sockets(&self) -> usize {
        self.most.load(Ordering::Relaxed)
    }

    pub fn draw<T>(&self, draw: impl FnOnce(&mut StdRng) -> T) -> T {
        draw(&mut self.rng.lock().unwrap())
    }

    /// Whether something goes wrong that does so this often where the world is at
    /// its wildest.
    pub fn fails(&self, often: f64) -> bool {
        !self.is_calm() && self.draw(|rng| rng.random_bool(often * self.wild))
    }

    pub fn entry(&self, call: usize) -> Entry {
        let ledger = self.ledger.lock().unwrap();
        ledger.get(&call).cloned().unwrap_or_default()
    }

    pub fn enter(&self, call: usize, enter: impl FnOnce(&mut Entry)) {
        enter(self.ledger.lock().unwrap().entry(call).or_default());
    }

    pub fn log(&self, line: fmt::Arguments<'_>) {
        let line = format!("{:?} {line}", self.began.elapsed());
        self.log.lock().unwrap().push(line);
    }

    pub fn told(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("World")
    }
}

/// A socket of the pool's, from the moment at which it begins to open.
#[derive(Debug)]
pub struct Open(Arc<World>);

impl Open {
    fn new(world: &Arc<World>) -> Self {
        let before = world.sockets.fetch_add(1, Ordering::Relaxed);
        world.most.fetch_max(before + 1, Ordering::Relaxed);
        Self(Arc::clone(world))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.sockets.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Opens a connection to a peer, or doesn't.
pub async fn connect(world: Arc<World>) -> io::Result<TokioIo<Socket>> {
    let open = Open::new(&world);
    if world.fails(0.5) {
        sleep(world.draw(|rng| ms(one_of(rng, &[20, 500, 12_000])))).await;
    }
    if world.fails(0.1) {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    let sizes = [100, 5000, 1 << 16];
    let (near, far) = duplex(world.draw(|rng| one_of(rng, &sizes)));
    let (end, peer) = duplex(world.draw(|rng| one_of(rng, &sizes)));
    tokio::spawn(network::carry(Arc::clone(&world), far, end));
    tokio::spawn(peer::serve(world, peer));
    Ok(TokioIo::new(Socket::new(near, open)))
}

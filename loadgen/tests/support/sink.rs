//! The load generator's own sink in a process of its own: what is counted of a test is the generator alone.

use smtp_loadgen::wire::{Address, Target};
use smtp_loadgen::worker::Tuning;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

/// The process and where it listens; it ends with this value.
pub struct Sink {
    child: Child,
    /// Where it listens, on loopback.
    pub address: SocketAddr,
}

impl Sink {
    /// Starts one and waits until it listens.
    pub fn start() -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_smtp-loadgen"))
            .args(["sink", "--duration", "10m"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let address = line.trim().rsplit(' ').next().unwrap().parse().unwrap();
        Self { child, address }
    }

    /// Returns it as a target: in the clear, from this machine's own address.
    pub fn target(&self) -> Arc<Target> {
        Arc::new(Target {
            address: Address::Tcp(self.address),
            sources: None,
            congestion: None,
            security: None,
            proxy: None,
        })
    }
}

/// Returns how the counted runs connect: without busy-waiting, on any CPU.
pub fn tuning() -> Tuning {
    Tuning {
        spin: false,
        cpus: Vec::new(),
        connecting_max: 64,
        attempts_max: 3,
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

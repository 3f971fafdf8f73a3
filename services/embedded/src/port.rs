//! Ports of this machine: whether one can be listened on, and which are free.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// How long a port may stay taken by a process that was just killed.
const PATIENCE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(50);
const ANSWER: Duration = Duration::from_millis(200);

/// Waits until `address` can be listened on: a server that was just killed gives its port back a moment later. Blocks.
///
/// # Errors
/// [`ErrorKind::AddrInUse`] at once if something answers there, or after 5 s; else what the system says.
pub(crate) fn until_free(address: SocketAddr) -> std::io::Result<()> {
    let began = Instant::now();
    loop {
        match TcpListener::bind(address) {
            Ok(_) => return Ok(()),
            // Whatever accepts connections there is alive and will not go away by itself.
            Err(error)
                if error.kind() == ErrorKind::AddrInUse
                    && began.elapsed() < PATIENCE
                    && TcpStream::connect_timeout(&address, ANSWER).is_err() =>
            {
                std::thread::park_timeout(POLL);
            }
            Err(error) => return Err(error),
        }
    }
}

/// A port of the loopback address that was free a moment ago, other than `taken`, which nobody may listen on yet.
///
/// # Errors
/// What the system says.
pub(crate) fn any_free(taken: SocketAddr) -> std::io::Result<SocketAddr> {
    let _held = TcpListener::bind(taken);
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_free_once_its_holder_lets_go() {
        let holder = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = holder.local_addr().unwrap();
        assert_eq!(until_free(address).unwrap_err().kind(), ErrorKind::AddrInUse);
        drop(holder);
        until_free(address).unwrap();
    }
}

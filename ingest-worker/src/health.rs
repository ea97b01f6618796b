//! `ingest-worker health`: asks the worker on this machine whether its process runs. For the health check of a container
//! whose image has no other program.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Well below what a container's health check waits for: 5 s, where nobody has set anything.
const TIMEOUT: Duration = Duration::from_secs(2);
const STATUS_LINE: &str = "HTTP/1.1 200 ";

/// Asks `/health` of a worker whose admin endpoint listens at `admin`.
///
/// # Errors
/// One line that says why the worker does not count as healthy.
pub async fn check(admin: SocketAddr) -> anyhow::Result<()> {
    let peer = reachable(admin);
    let asked = || format!("http://{peer}/health");
    match timeout(TIMEOUT, status_line(peer)).await {
        Err(_) => anyhow::bail!("{}: no answer within {TIMEOUT:?}", asked()),
        Ok(answer) => {
            let line = answer.with_context(asked)?;
            anyhow::ensure!(line == STATUS_LINE.as_bytes(), "{}: the answer is not {STATUS_LINE:?}", asked());
        }
    }
    Ok(())
}

/// The first bytes of the answer: one that is shorter is not a healthy one.
async fn status_line(peer: SocketAddr) -> std::io::Result<[u8; STATUS_LINE.len()]> {
    let mut connection = TcpStream::connect(peer).await?;
    let request = format!("GET /health HTTP/1.1\r\nhost: {peer}\r\nconnection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).await?;
    let mut line = [0; STATUS_LINE.len()];
    connection.read_exact(&mut line).await?;
    Ok(line)
}

/// Who listens on all addresses is asked on loopback.
fn reachable(admin: SocketAddr) -> SocketAddr {
    let ip = match admin.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, admin.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_addresses_are_asked_on_loopback() {
        for (admin, peer) in [
            ("0.0.0.0:9464", "127.0.0.1:9464"),
            ("[::]:9464", "[::1]:9464"),
            ("127.0.0.1:80", "127.0.0.1:80"),
            ("10.1.2.3:80", "10.1.2.3:80"),
        ] {
            assert_eq!(reachable(admin.parse().unwrap()), peer.parse().unwrap());
        }
    }
}

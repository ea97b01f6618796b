//! The emulators start, answer the SDKs, and end with what started them; so do the proxy and the canned stream.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod canned;
mod emulated;
mod throttle;

use std::net::TcpStream;
use std::time::Duration;

/// A start, some calls and an end; the machine may be busy with the other tests.
const TIME_LIMIT: Duration = Duration::from_secs(120);

async fn in_time<F: Future>(test: F) -> F::Output {
    tokio::time::timeout(TIME_LIMIT, test).await.unwrap()
}

fn listens(url: &str) -> bool {
    TcpStream::connect(url.strip_prefix("http://").unwrap()).is_ok()
}

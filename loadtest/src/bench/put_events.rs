//! How many events a second the local bus makes durable.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};
use ingest_worker::bus;
use serde_json::json;
use shared::amberflo::{HttpTransport, Transport as _};
use shared::backend::local::{LocalOptions, LocalStore};
use shared::clock::Clock;
use shared::service;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::measure::{cpu_time, grouped, heading, median, percentile, row};
use super::payload::Generator;

const ENTRIES: usize = 10;
const CONNECTIONS: [usize; 3] = [1, 8, 32];
/// Bodies are used in turn: the bus does not look whether it has seen an event before.
const BODIES: usize = 64;

/// Prints a row for each number of connections.
pub async fn run(seconds: u64) -> anyhow::Result<()> {
    let bodies = bodies();
    let directory = tempfile::tempdir()?;
    heading(
        "Durable PutEvents on the local bus",
        &[
            &format!("{ENTRIES} entries a call, {} bytes a body, {seconds} s each", bodies[0].len()),
            &format!("SQLite file in {}, synced before every answer (synchronous=FULL)", directory.path().display()),
            "HTTP over loopback, connections kept open, each waits for its answer; client and server in this process",
        ],
    );
    let columns = ["entries/s", "per CPU second", "median of a call", "99 % of calls"];
    row("connections", columns.map(str::to_owned));
    for connections in CONNECTIONS {
        let store = LocalStore::open(&directory.path().join(connections.to_string()), LocalOptions::default())?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let url = format!("http://{}/", listener.local_addr()?);
        let stop = CancellationToken::new();
        let router = bus::router(Arc::new(store), Clock::system());
        let server = tokio::spawn(service::serve(listener, router, stop.clone().cancelled_owned()));

        let (started, cpu_started) = (Instant::now(), cpu_time());
        let end = started + Duration::from_secs(seconds);
        let mut clients = JoinSet::new();
        for number in 0..connections {
            clients.spawn(put_until(end, url.clone(), bodies.clone(), number));
        }
        let calls: Vec<f64> = clients.join_all().await.into_iter().collect::<anyhow::Result<Vec<_>>>()?.concat();
        let (elapsed, cpu) = (started.elapsed(), cpu_time() - cpu_started);
        stop.cancel();
        server.await??;

        let entries = (calls.len() * ENTRIES) as f64;
        row(
            &connections.to_string(),
            [
                grouped(entries / elapsed.as_secs_f64()),
                grouped(entries / cpu.as_secs_f64()),
                format!("{:.2} ms", median(calls.clone())),
                format!("{:.2} ms", percentile(calls, 0.99)),
            ],
        );
    }
    Ok(())
}

/// Calls PutEvents on one connection until `end`; answers how long each call took, in milliseconds.
async fn put_until(end: Instant, url: String, bodies: Arc<[Bytes]>, first: usize) -> anyhow::Result<Vec<f64>> {
    // A pool of its own is a connection of its own.
    let transport = HttpTransport::new(Duration::from_secs(30))?;
    let mut calls = Vec::new();
    for body in bodies.iter().cycle().skip(first) {
        let started = Instant::now();
        if started >= end {
            break;
        }
        let request = Request::builder()
            .method(Method::POST)
            .uri(&url)
            .header("content-type", "application/x-amz-json-1.1")
            .header("x-amz-target", "AWSEvents.PutEvents")
            .body(body.clone())?;
        let answer = transport.exchange(request).await?;
        let text = std::str::from_utf8(answer.body())?;
        anyhow::ensure!(text.contains(r#""FailedEntryCount":0"#), "PutEvents answered {}: {text}", answer.status());
        calls.push(started.elapsed().as_secs_f64() * 1000.0);
    }
    Ok(calls)
}

fn bodies() -> Arc<[Bytes]> {
    let mut generator = Generator::new();
    let mut entry = || {
        let detail = generator.event().detail;
        json!({ "Source": "saas.application.plane", "DetailType": "ingestUsage", "Detail": detail })
    };
    (0..BODIES)
        .map(|_| json!({ "Entries": (0..ENTRIES).map(|_| entry()).collect::<Vec<_>>() }).to_string().into())
        .collect()
}

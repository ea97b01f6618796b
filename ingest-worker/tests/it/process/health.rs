//! `ingest-worker health`: what a container's health check runs.

use std::net::SocketAddr;
use std::time::Duration;

use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::time::Instant;

use super::{Amberflo, Site, command, free_address, run, text};

/// Asks the worker at this address; answers the exit code and all that was written.
async fn health(admin: SocketAddr, arguments: &[&str]) -> (Option<i32>, String) {
    let dir = TempDir::new().unwrap();
    let output = run(command(dir.path()).env("ADMIN_LISTEN", admin.to_string()).arg("health").args(arguments)).await;
    (output.status.code(), text(&output.stdout) + &text(&output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_runs_is_healthy() {
    let amberflo = Amberflo::start().await;
    let site = Site::new(&amberflo);
    let worker = site.start().await;
    let (port, healthy) = (worker.admin.port(), (Some(0), "healthy\n".to_owned()));
    assert_eq!(health(worker.admin, &[]).await, healthy);
    // The worker's setting, where it listens on all addresses.
    assert_eq!(health(([0, 0, 0, 0], port).into(), &[]).await, healthy);
    let other = free_address().await;
    assert_eq!(health(other, &["--admin-listen", &worker.admin.to_string()]).await, healthy);
    worker.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_there_is_unhealthy() {
    let (code, line) = health(free_address().await, &[]).await;
    assert!(code == Some(1) && line.contains("/health: ") && line.lines().count() == 1, "{code:?} {line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_hangs_is_unhealthy_within_seconds() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let started = Instant::now();
    let (code, line) = health(silent.local_addr().unwrap(), &[]).await;
    assert!(started.elapsed() >= Duration::from_secs(2), "{:?}", started.elapsed());
    assert!(code == Some(1) && line.contains("no answer within 2s") && line.lines().count() == 1, "{code:?} {line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_not_ok_is_unhealthy() {
    let router = axum::Router::new().fallback(|| async { axum::http::StatusCode::SERVICE_UNAVAILABLE });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async { axum::serve(listener, router).await.unwrap() });
    let (code, line) = health(address, &[]).await;
    assert!(code == Some(1) && line.contains("HTTP/1.1 200") && line.lines().count() == 1, "{code:?} {line}");
}

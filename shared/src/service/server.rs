//! An HTTP/1.1 server whose clients can only hold a bounded part of the process, whatever they send or leave out.

mod activity;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustix::process::{Resource, getrlimit};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use activity::{Activity, Answer, Upload, Watched};

use super::Trouble;

/// Bytes of a request's line and headers; bodies are read through a buffer of this size.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// Lets a process that has run out of file descriptors find some.
const AFTER_ACCEPT_ERROR: Duration = Duration::from_secs(1);
const WARN_INTERVAL: Duration = Duration::from_secs(60);

static UNACCEPTED: Trouble = Trouble::new();

/// What clients may take.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Open connections; more wait in the kernel's queue.
    connections: usize,
    /// From the connection, or the first byte of a later request, to the end of its headers.
    head: Duration,
    /// Without a request.
    idle: Duration,
    /// Without a byte of a body that is waited for, and without a byte of an answer being taken.
    stall: Duration,
}

impl Limits {
    fn of_this_process() -> Self {
        // A process has two servers at most: half of the files stay for its own work.
        let files = getrlimit(Resource::Nofile).current.map_or(usize::MAX, |files| files as usize);
        Self {
            connections: (files / 4).clamp(16, 1024),
            head: Duration::from_secs(10),
            // Longer than load balancers keep theirs (60 s): the side that sends must be the one that closes.
            idle: Duration::from_secs(75),
            stall: Duration::from_secs(30),
        }
    }
}

/// Serves `router` over HTTP/1.1 until `shutdown` resolves, then finishes the requests that are open; connections
/// without one are closed at once.
///
/// A client has 10 s to send a request's headers (64 KiB at most), 75 s between requests, and 30 s in which it sends or
/// takes nothing. 1,024 connections are open at a time, or a quarter of the files that the process may open; more
/// wait until one is closed.
///
/// # Errors
/// None at present: a connection that cannot be accepted is logged, and the next one is waited for.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    serve_within(Limits::of_this_process(), listener, router, shutdown).await;
    Ok(())
}

async fn serve_within(limits: Limits, listener: TcpListener, router: Router, shutdown: impl Future<Output = ()>) {
    // Turns the handlers into routes once, not for every request.
    let router = router.with_state(());
    let mut slots = Slots { free: Arc::new(Semaphore::new(limits.connections)), warned: None };
    let draining = CancellationToken::new();
    let connections = TaskTracker::new();
    let mut shutdown = pin!(shutdown);
    loop {
        let next = async {
            let slot = slots.take().await;
            (accepted(|| listener.accept()).await.0, slot)
        };
        let (stream, slot) = tokio::select! {
            biased;
            () = &mut shutdown => break,
            next = next => next,
        };
        let (router, draining) = (router.clone(), draining.child_token());
        connections.spawn(async move {
            connection(stream, router, limits, draining).await;
            drop(slot);
        });
    }
    drop(listener);
    draining.cancel();
    connections.close();
    connections.wait().await;
}

struct Slots {
    free: Arc<Semaphore>,
    warned: Option<Instant>,
}

impl Slots {
    async fn take(&mut self) -> Option<OwnedSemaphorePermit> {
        if self.free.available_permits() == 0 && self.warned.is_none_or(|last| last.elapsed() >= WARN_INTERVAL) {
            self.warned = Some(Instant::now());
            tracing::warn!("as many connections are open as are allowed: others wait");
        }
        // It is never closed.
        Arc::clone(&self.free).acquire_owned().await.ok()
    }
}

/// Goes on after errors: none of them says that a later connection fails too.
async fn accepted<T, F: Future<Output = io::Result<T>>>(mut accept: impl FnMut() -> F) -> T {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    loop {
        match accept().await {
            Ok(accepted) => return accepted,
            // The client has gone already.
            Err(error) if matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset) => {}
            Err(error) => {
                if let Some(omitted) = UNACCEPTED.again() {
                    tracing::error!(%error, omitted, "cannot accept a connection");
                }
                sleep(AFTER_ACCEPT_ERROR).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, router: Router, limits: Limits, draining: CancellationToken) {
    // Only costs time where it fails.
    let _ = stream.set_nodelay(true);
    let activity = Arc::new(Activity::new());
    let service = service_fn(|request: Request<Incoming>| {
        let open = activity.request();
        let request = request.map(|body| Body::new(Upload::new(body, Arc::clone(&activity))));
        let answer = router.clone().oneshot(request);
        async move { Ok::<_, Infallible>(Answer::of(answer.await?, open)) }
    });
    let stream = TokioIo::new(Watched::new(stream, Arc::clone(&activity)));
    let mut connection = pin!(http1::Builder::new().max_buf_size(MAX_HEAD_BYTES).serve_connection(stream, service));

    let mut deadline = pin!(sleep_until(Instant::now() + limits.head));
    // The token has a lock; this is looked at whenever anything happens.
    let drains = AtomicBool::new(false);
    let mut watched = pin!(poll_fn(|cx| {
        // An error is the client's, or it has gone: nobody is left to be told.
        let polled = connection.as_mut().poll(cx).map(drop);
        if polled.is_ready() {
            return polled;
        }
        if drains.load(Ordering::Relaxed) {
            connection.as_mut().graceful_shutdown();
            let polled = connection.as_mut().poll(cx).map(drop);
            // hyper would wait for the rest of headers that have begun.
            if polled.is_ready() || activity.is_between_requests() {
                return Poll::Ready(());
            }
        }
        // A later deadline is looked at when the one that is set has passed: a request sets no timer.
        loop {
            match activity.deadline(&limits) {
                Some(end) if end < deadline.deadline() => deadline.as_mut().reset(end),
                _ => {}
            }
            ready!(deadline.as_mut().poll(cx));
            let now = Instant::now();
            match activity.deadline(&limits) {
                Some(end) if end <= now => return Poll::Ready(()),
                Some(end) => deadline.as_mut().reset(end),
                None => deadline.as_mut().reset(now + limits.idle),
            }
        }
    }));
    tokio::select! {
        biased;
        () = &mut watched => return,
        () = draining.cancelled() => {}
    }
    drains.store(true, Ordering::Relaxed);
    watched.await;
}

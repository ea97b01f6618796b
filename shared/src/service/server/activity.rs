//! What a connection is doing and since when; hyper does not tell.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::http::Response;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::Limits;

#[derive(Debug)]
enum Phase {
    /// The client sends a request's line and headers.
    Head(Instant),
    /// A request is with the router, or its answer is not complete.
    Open,
    /// Nothing has come since the last answer.
    Idle(Instant),
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// The router waits for more of the request's body.
    starved: Option<Instant>,
    /// The client takes no more of what was answered.
    blocked: Option<Instant>,
}

/// One connection's state, which its socket and its bodies keep up to date.
#[derive(Debug)]
pub(super) struct Activity(Mutex<State>);

impl Activity {
    /// Of a connection that was accepted now.
    pub(super) fn new() -> Self {
        Self(Mutex::new(State { phase: Phase::Head(Instant::now()), starved: None, blocked: None }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request has come and is open until this is dropped.
    pub(super) fn request(self: &Arc<Self>) -> OpenRequest {
        self.state().phase = Phase::Open;
        OpenRequest(Arc::clone(self))
    }

    /// No request is lost where the connection is closed now.
    pub(super) fn is_between_requests(&self) -> bool {
        let state = self.state();
        !matches!(state.phase, Phase::Open) && state.blocked.is_none()
    }

    /// When the connection is to be closed if nothing happens on it; `None` while it waits for the router.
    pub(super) fn deadline(&self, limits: &Limits) -> Option<Instant> {
        let state = self.state();
        let phase = match state.phase {
            Phase::Head(since) => Some(since + limits.head),
            Phase::Open => None,
            Phase::Idle(since) => Some(since + limits.idle),
        };
        let stall = [state.starved, state.blocked].into_iter().flatten().map(|since| since + limits.stall);
        stall.chain(phase).min()
    }
}

/// Sets `since` where that has just begun, and unsets it where it is over.
fn note(since: &mut Option<Instant>, waits: bool) {
    match waits {
        true => _ = since.get_or_insert_with(Instant::now),
        false => *since = None,
    }
}

/// A request that is not answered completely.
pub(super) struct OpenRequest(Arc<Activity>);

impl Drop for OpenRequest {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.phase = Phase::Idle(Instant::now());
        state.starved = None;
    }
}

/// A connection's socket.
pub(super) struct Watched {
    stream: TcpStream,
    activity: Arc<Activity>,
}

impl Watched {
    pub(super) fn new(stream: TcpStream, activity: Arc<Activity>) -> Self {
        Self { stream, activity }
    }

    fn written(&self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        note(&mut self.activity.state().blocked, result.is_pending());
        result
    }
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            let mut state = self.activity.state();
            if let Phase::Idle(_) = state.phase {
                state.phase = Phase::Head(Instant::now());
            }
        }
        result
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.written(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.written(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A request's body.
pub(super) struct Upload {
    body: Incoming,
    activity: Arc<Activity>,
}

impl Upload {
    pub(super) fn new(body: Incoming, activity: Arc<Activity>) -> Self {
        Self { body, activity }
    }
}

impl HttpBody for Upload {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        note(&mut self.activity.state().starved, frame.is_pending());
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.activity.state().starved = None;
    }
}

/// An answer's body: the request is open until it has been taken.
pub(super) struct Answer {
    body: Body,
    _open: OpenRequest,
}

impl Answer {
    pub(super) fn of(response: Response<Body>, open: OpenRequest) -> Response<Self> {
        response.map(|body| Self { body, _open: open })
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

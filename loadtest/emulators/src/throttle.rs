//! A proxy in front of an emulator that makes the faults which the emulator does not know.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::{Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::fault::{Answer, Fault, status};
use crate::server;

const BACKLOG: u32 = 1024;
const BIND_LIMIT: Duration = Duration::from_secs(5);
const BIND_POLL: Duration = Duration::from_millis(10);

/// A proxy on loopback. It passes everything on until it is told otherwise.
///
/// Operations are told apart by the name in `X-Amz-Target`, such as `UpdateItem`; the service's part is left out.
#[derive(Debug)]
pub struct Throttle {
    /// `http://127.0.0.1:PORT`
    pub url: String,
    address: SocketAddr,
    proxy: Arc<Proxy>,
    port: tokio::sync::Mutex<Port>,
}

/// How many calls of an operation came.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Calls {
    /// All of them.
    pub arrived: u64,
    /// Those that met a fault.
    pub faulted: u64,
}

impl Throttle {
    /// Starts a proxy in front of `upstream`, such as `http://127.0.0.1:4567`.
    ///
    /// # Panics
    /// Without a free port.
    pub async fn start(upstream: &str) -> Self {
        Self::start_with_seed(upstream, 1).await
    }

    /// The same; the shares of faults are drawn from a sequence that starts with `seed`.
    ///
    /// # Panics
    /// Without a free port.
    pub async fn start_with_seed(upstream: &str, seed: u64) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        // A kept connection may be closed by the emulator just when the next call is under way: a fault of our own.
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build_http();
        let random = fastrand::Rng::with_seed(seed);
        let state = Mutex::new(State { faults: Vec::new(), calls: BTreeMap::new(), befell: BTreeMap::new(), random });
        let proxy = Arc::new(Proxy { upstream: upstream.trim_end_matches('/').to_owned(), client, state });
        let port = tokio::sync::Mutex::new(Port::open(listener, &proxy));
        Self { url: format!("http://{address}"), address, proxy, port }
    }

    /// Replaces the faults. Of several that befall a call the first counts. Calls that hang already go on hanging.
    pub fn set(&self, faults: impl IntoIterator<Item = Fault>) {
        self.proxy.state().faults = faults.into_iter().collect();
    }

    /// Passes everything on again.
    pub fn clear(&self) {
        self.set([]);
    }

    /// Cuts all connections and refuses new ones. Calls that were passed on may still take effect.
    ///
    /// # Panics
    /// When somebody else takes the port in the moment in which it is free.
    pub async fn down(&self) {
        let mut port = self.port.lock().await;
        if let Port::Open(server) = &mut *port {
            server.abort();
            // It is over, one way or the other.
            let _ = server.await;
            // Bound, but not listening: connections are refused, and the port stays ours.
            *port = Port::Refusing(Some(bind_again(self.address).await));
        }
    }

    /// Listens again, at the same address.
    ///
    /// # Panics
    /// When the port cannot be listened on.
    pub async fn up(&self) {
        let mut port = self.port.lock().await;
        if let Port::Refusing(socket) = &mut *port
            && let Some(socket) = socket.take()
        {
            *port = Port::open(socket.listen(BACKLOG).expect("a listener"), &self.proxy);
        }
    }

    /// The calls of an operation so far, by its name alone.
    pub fn calls(&self, operation: &str) -> Calls {
        self.proxy.state().calls.get(operation).copied().unwrap_or_default()
    }

    /// How many calls met the faults of each name so far.
    pub fn befell(&self) -> BTreeMap<&'static str, u64> {
        self.proxy.state().befell.clone()
    }

    /// The calls of all operations so far.
    pub fn all_calls(&self) -> BTreeMap<String, Calls> {
        self.proxy.state().calls.clone()
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        if let Port::Open(server) = self.port.get_mut() {
            server.abort();
        }
    }
}

/// A child process of ours holds a copy of the old socket between its fork and its exec, so that the port may be free a
/// moment later only.
async fn bind_again(address: SocketAddr) -> TcpSocket {
    let deadline = Instant::now() + BIND_LIMIT;
    loop {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_reuseaddr(true).expect("an option");
        match socket.bind(address) {
            Ok(()) => return socket,
            Err(error) => assert!(Instant::now() < deadline, "the same port: {error}"),
        }
        sleep(BIND_POLL).await;
    }
}

#[derive(Debug)]
enum Port {
    Open(JoinHandle<()>),
    Refusing(Option<TcpSocket>),
}

impl Port {
    fn open(listener: TcpListener, proxy: &Arc<Proxy>) -> Self {
        let proxy = Arc::clone(proxy);
        Self::Open(tokio::spawn(server::serve(listener, move |request| answer(Arc::clone(&proxy), request))))
    }
}

#[derive(Debug)]
struct Proxy {
    upstream: String,
    client: Client<HttpConnector, Full<Bytes>>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    faults: Vec<Fault>,
    calls: BTreeMap<String, Calls>,
    befell: BTreeMap<&'static str, u64>,
    random: fastrand::Rng,
}

impl Proxy {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a call and finds its fault.
    fn arrived(&self, operation: &str) -> Option<Fault> {
        let State { faults, calls, befell, random } = &mut *self.state();
        let fault = faults.iter_mut().find_map(|fault| fault.befalls(operation, random).then(|| fault.clone()));
        let calls = calls.entry(operation.to_owned()).or_default();
        calls.arrived += 1;
        calls.faulted += u64::from(fault.is_some());
        if let Some(name) = fault.as_ref().and_then(|fault| fault.name) {
            *befell.entry(name).or_default() += 1;
        }
        fault
    }

    async fn pass_on(&self, request: Request<Incoming>) -> Option<Response<Full<Bytes>>> {
        let (mut parts, body) = request.into_parts();
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        parts.uri = Uri::try_from(format!("{}{path}", self.upstream)).ok()?;
        let body = Full::new(server::whole(body).await?);
        let (mut parts, body) = self.client.request(Request::from_parts(parts, body)).await.ok()?.into_parts();
        parts.version = http::Version::HTTP_11;
        for name in [header::CONNECTION, header::TRANSFER_ENCODING, header::HeaderName::from_static("keep-alive")] {
            parts.headers.remove(name);
        }
        Some(Response::from_parts(parts, Full::new(body.collect().await.ok()?.to_bytes())))
    }
}

async fn answer(proxy: Arc<Proxy>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let fault = proxy.arrived(server::operation(&request));
    let mut answer = None;
    if fault.as_ref().is_none_or(|fault| fault.takes_effect) {
        // A task of its own: what was begun takes effect also when the client has given up.
        answer = tokio::spawn(async move { proxy.pass_on(request).await }).await.ok().flatten();
    }
    let passed_on = || answer.unwrap_or_else(|| error(StatusCode::BAD_GATEWAY, "ServiceUnavailable"));
    match fault.map(|fault| fault.answer) {
        None => passed_on(),
        Some(Answer::Error(code)) => error(status(&code), &code),
        Some(Answer::None) => std::future::pending().await,
        Some(Answer::Late(by)) => {
            sleep(by).await;
            passed_on()
        }
    }
}

fn error(status: StatusCode, code: &str) -> Response<Full<Bytes>> {
    let body = serde_json::json!({ "__type": code, "message": "a fault of the test" }).to_string();
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/x-amz-json-1.1"));
    response
}

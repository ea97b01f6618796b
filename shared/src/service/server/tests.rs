use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::Bytes;
use axum::routing::{get, post};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;

/// Nothing here takes as long on any machine.
const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(500);
const PATIENT: Limits = Limits { connections: 16, head: LONG, idle: LONG, stall: LONG };

const HELLO: &str = "GET /hello HTTP/1.1\r\nhost: test\r\n\r\n";
const HALF: &str = "GET /hello HTTP/1.1\r\nhost: te";

struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    /// Lets requests to /held be answered.
    release: Arc<Semaphore>,
    held: Arc<AtomicUsize>,
    running: JoinHandle<()>,
}

impl Server {
    async fn start(limits: Limits) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let (release, held) = (Arc::new(Semaphore::new(0)), Arc::<AtomicUsize>::default());
        let wait = {
            let (release, held) = (Arc::clone(&release), Arc::clone(&held));
            move || async move {
                held.fetch_add(1, Ordering::Relaxed);
                release.acquire().await.unwrap().forget();
                "held"
            }
        };
        let router = Router::new()
            .route("/hello", get(|| async { "hello" }))
            .route("/length", post(|body: Bytes| async move { body.len().to_string() }))
            .route("/large", get(|| async { vec![b'x'; 64 << 20] }))
            .route("/held", get(wait));
        let running = tokio::spawn(serve_within(limits, listener, router, async {
            let _ = stopped.await;
        }));
        Self { address, stop: Some(stop), release, held, running }
    }

    /// A connection on which this was sent.
    async fn send(&self, text: &str) -> TcpStream {
        let mut client = TcpStream::connect(self.address).await.unwrap();
        client.write_all(text.as_bytes()).await.unwrap();
        client
    }

    async fn until_held(&self) {
        while self.held.load(Ordering::Relaxed) == 0 {
            sleep(Duration::from_millis(5)).await;
        }
    }

    fn drain(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }

    async fn drained(self) {
        timeout(LONG / 2, self.running).await.expect("the drain hangs").unwrap();
    }
}

/// What comes until `end` has come.
async fn read_to(client: &mut TcpStream, end: &str) -> String {
    let mut text = Vec::new();
    while !text.ends_with(end.as_bytes()) {
        let byte = timeout(LONG / 2, client.read_u8()).await.expect("no answer");
        text.push(byte.unwrap_or_else(|error| panic!("{error} after {:?}", String::from_utf8_lossy(&text))));
    }
    String::from_utf8(text).unwrap()
}

/// What comes until the server closes the connection, which it does before a patient limit.
async fn rest(mut client: TcpStream) -> String {
    let mut text = Vec::new();
    let read = timeout(LONG / 2, client.read_to_end(&mut text)).await.expect("the connection stays open");
    // A reset where the server had not read everything.
    assert!(read.is_ok() || read.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset));
    String::from_utf8(text).unwrap()
}

async fn hello(client: &mut TcpStream) {
    client.write_all(HELLO.as_bytes()).await.unwrap();
    let answer = read_to(client, "\r\n\r\nhello").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
}

#[tokio::test]
async fn headers_that_do_not_end_are_cut_off() {
    let server = Server::start(Limits { head: SHORT, ..PATIENT }).await;
    let silent = server.send("").await;
    let half = server.send(HALF).await;
    let mut second = server.send(HELLO).await;
    read_to(&mut second, "hello").await;
    second.write_all(HALF.as_bytes()).await.unwrap();
    let dripping = async {
        let mut client = server.send(HALF).await;
        let (mut reading, mut writing) = client.split();
        let drip = async {
            while writing.write_all(b"s").await.is_ok() {
                sleep(SHORT / 20).await;
            }
        };
        let end = async { timeout(LONG / 2, reading.read_u8()).await.expect("the connection stays open").unwrap_err() };
        tokio::select! {
            _ = end => {},
            () = drip => {}
        }
    };
    let ((), silent, half, second) = tokio::join!(dripping, rest(silent), rest(half), rest(second));
    assert_eq!([silent, half, second], ["", "", ""]);
}

#[tokio::test]
async fn an_idle_connection_lives_longer_than_headers_may_take() {
    let server = Server::start(Limits { head: SHORT, ..PATIENT }).await;
    let mut client = TcpStream::connect(server.address).await.unwrap();
    for _ in 0..3 {
        hello(&mut client).await;
        sleep(SHORT + SHORT / 5).await;
    }
}

#[tokio::test]
async fn an_idle_connection_is_closed_in_the_end() {
    let server = Server::start(Limits { idle: SHORT, ..PATIENT }).await;
    let mut client = TcpStream::connect(server.address).await.unwrap();
    hello(&mut client).await;
    assert_eq!(rest(client).await, "");
}

#[tokio::test]
async fn a_request_may_take_longer_than_every_limit() {
    let server = Server::start(Limits { head: SHORT, idle: SHORT, stall: SHORT, ..PATIENT }).await;
    let mut client = server.send("GET /held HTTP/1.1\r\nhost: test\r\n\r\n").await;
    sleep(SHORT * 3).await;
    server.release.add_permits(1);
    read_to(&mut client, "held").await;
}

#[tokio::test]
async fn a_slow_but_steady_body_is_read_to_its_end() {
    let server = Server::start(Limits { head: SHORT, idle: SHORT, ..PATIENT }).await;
    let mut client = server.send("POST /length HTTP/1.1\r\nhost: test\r\ncontent-length: 100\r\n\r\n").await;
    for _ in 0..20 {
        client.write_all(b"12345").await.unwrap();
        sleep(SHORT / 10).await;
    }
    read_to(&mut client, "\r\n\r\n100").await;
}

#[tokio::test]
async fn a_body_larger_than_the_buffer_is_read() {
    let server = Server::start(PATIENT).await;
    let length = MAX_HEAD_BYTES * 20;
    let head = format!("POST /length HTTP/1.1\r\nhost: test\r\ncontent-length: {length}\r\n\r\n");
    let mut client = server.send(&(head + &"x".repeat(length))).await;
    read_to(&mut client, &format!("\r\n\r\n{length}")).await;
}

#[tokio::test]
async fn a_body_that_stops_is_cut_off() {
    let server = Server::start(Limits { stall: SHORT, ..PATIENT }).await;
    let client = server.send("POST /length HTTP/1.1\r\nhost: test\r\ncontent-length: 100\r\n\r\n12345").await;
    assert_eq!(rest(client).await, "");
}

#[tokio::test]
async fn an_answer_that_is_not_taken_is_cut_off() {
    let server = Server::start(Limits { stall: SHORT, connections: 1, ..PATIENT }).await;
    let _unread = server.send("GET /large HTTP/1.1\r\nhost: test\r\n\r\n").await;
    // Its place is free again.
    hello(&mut TcpStream::connect(server.address).await.unwrap()).await;
}

#[tokio::test]
async fn headers_above_the_limit_are_refused() {
    let server = Server::start(PATIENT).await;
    let start = "GET /hello HTTP/1.1\r\nhost: test\r\nx: ";
    let fits = format!("{start}{}\r\n\r\n", "x".repeat(MAX_HEAD_BYTES * 9 / 10));
    read_to(&mut server.send(&fits).await, "hello").await;
    // All of it is read, so that no reset overtakes the answer.
    let above = format!("{start}{}", "x".repeat(MAX_HEAD_BYTES - start.len()));
    let answer = rest(server.send(&above).await).await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer:?}");
}

#[tokio::test]
async fn http_2_is_refused() {
    let server = Server::start(PATIENT).await;
    let settings = "\0\0\0\x04\0\0\0\0\0";
    let answer = rest(server.send(&format!("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{settings}")).await).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{answer:?}");
}

#[tokio::test]
async fn connections_above_the_cap_wait_for_a_place() {
    let server = Server::start(Limits { connections: 2, ..PATIENT }).await;
    let mut first = TcpStream::connect(server.address).await.unwrap();
    hello(&mut first).await;
    let mut second = TcpStream::connect(server.address).await.unwrap();
    hello(&mut second).await;
    let mut third = server.send(HELLO).await;
    assert!(timeout(SHORT, third.read_u8()).await.is_err(), "the third is served");
    hello(&mut first).await;
    hello(&mut second).await;
    drop(first);
    read_to(&mut third, "hello").await;
    hello(&mut second).await;
}

#[tokio::test]
async fn a_drain_waits_for_open_requests_only() {
    let mut server = Server::start(PATIENT).await;
    let mut idle = TcpStream::connect(server.address).await.unwrap();
    hello(&mut idle).await;
    let silent = server.send("").await;
    let half = server.send(HALF).await;
    let mut half_later = TcpStream::connect(server.address).await.unwrap();
    hello(&mut half_later).await;
    half_later.write_all(HALF.as_bytes()).await.unwrap();
    let open = server.send("GET /held HTTP/1.1\r\nhost: test\r\n\r\n").await;
    server.until_held().await;

    server.drain();
    for closed in [idle, silent, half, half_later] {
        assert_eq!(rest(closed).await, "");
    }
    assert!(TcpStream::connect(server.address).await.is_err());
    assert!(!server.running.is_finished());
    server.release.add_permits(1);
    let answer = rest(open).await;
    assert!(answer.ends_with("\r\n\r\nheld") && answer.contains("connection: close"), "{answer}");
    server.drained().await;
}

#[tokio::test]
async fn a_drain_completes_an_answer_that_is_being_taken() {
    let mut server = Server::start(PATIENT).await;
    let mut client = server.send("GET /large HTTP/1.1\r\nhost: test\r\n\r\n").await;
    let head = read_to(&mut client, "\r\n\r\n").await;
    server.drain();
    sleep(SHORT / 5).await;
    let mut length = 0;
    let mut chunk = vec![0; 1 << 20];
    while length < 64 << 20 {
        match timeout(LONG / 2, client.read(&mut chunk)).await.expect("no answer").unwrap() {
            0 => panic!("cut off after {length} bytes: {head}"),
            read => length += read,
        }
    }
    drop(client);
    server.drained().await;
}

#[tokio::test]
async fn a_drain_ends_where_no_place_is_free() {
    let mut server = Server::start(Limits { connections: 1, ..PATIENT }).await;
    let mut client = TcpStream::connect(server.address).await.unwrap();
    hello(&mut client).await;
    server.drain();
    assert_eq!(rest(client).await, "");
    server.drained().await;
}

#[tokio::test(start_paused = true)]
async fn errors_of_accept_do_not_end_it() {
    let too_many_files = || Err(io::Error::from_raw_os_error(24));
    let gone = || Err(io::ErrorKind::ConnectionAborted.into());
    let mut results = [gone(), too_many_files(), too_many_files(), gone(), Ok("connection")].into_iter();
    let started = Instant::now();
    assert_eq!(accepted(|| std::future::ready(results.next().unwrap())).await, "connection");
    assert_eq!(started.elapsed(), AFTER_ACCEPT_ERROR * 2);
}

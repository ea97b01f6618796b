use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use amberflo_sandbox::{Faults, Trigger};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::{batch, event, sandbox};

async fn exchange(address: SocketAddr, body: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let length = body.len();
    let request = format!(
        "POST /ingest HTTP/1.1\r\nhost: sandbox\r\nx-api-key: sandbox-key\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn serves_over_a_socket_until_told_to_stop_even_while_a_request_hangs() {
    let sandbox = sandbox(Faults::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(amberflo_sandbox::serve(listener, sandbox.clone(), async {
        let _ = stopped.await;
    }));
    let answer = exchange(address, &batch(&["1", "2"])).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("2 records were ingested"), "{answer}");

    sandbox.set_faults(Faults { hang_after: Trigger::next(2), ..Faults::default() }).unwrap();
    // A client that gives up is noticed; one that stays is cut off by the end of the grace.
    timeout(Duration::from_millis(200), exchange(address, &event("3"))).await.unwrap_err();
    while sandbox.stats().abandoned == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let hanging = tokio::spawn(async move { exchange(address, &event("4")).await });
    while sandbox.ledger().events < 4 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stop.send(()).unwrap();
    timeout(amberflo_sandbox::SHUTDOWN_GRACE * 3, server).await.unwrap().unwrap().unwrap();
    hanging.abort();
}

#[tokio::test]
async fn the_binary_serves_stops_on_a_signal_and_names_a_taken_port() {
    let start = |listen: String| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_amberflo-sandbox"));
        command
            .args(["--log", "info", "--listen", &listen])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    };
    let mut server = start("127.0.0.1:0".to_owned()).env("NO_COLOR", "1").spawn().unwrap();
    let mut log = BufReader::new(server.stderr.take().unwrap()).lines();
    let line = log.next_line().await.unwrap().unwrap();
    let address = line.split_once("address=").unwrap().1.split(' ').next().unwrap().to_owned();
    assert!(exchange(address.parse().unwrap(), &event("1")).await.starts_with("HTTP/1.1 200 OK"));

    let second = start(address.clone()).output().await.unwrap();
    assert_eq!(second.status.code(), Some(2));
    let message = String::from_utf8(second.stderr).unwrap();
    let port = address.rsplit(':').next().unwrap();
    assert!(message.contains(&format!("port {port} is taken")) && message.lines().count() == 1, "{message}");

    let pid = server.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());
    let status = timeout(Duration::from_secs(10), server.wait()).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(0));
}

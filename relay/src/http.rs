//! `/metrics`, `/healthz` and `/readyz`: three answers to GET, one request per connection. Not a
//! web server: it is meant for a port that only the operator reaches.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::{AsyncReadExt, AsyncWriteExt, FutureExt};
use smol::{Async, Timer};

use crate::{
    limits::{HTTP_HEAD_MAX_BYTES, HTTP_MAX_MILLISECONDS, HTTP_REQUESTS_MAX},
    metrics::{Metrics, of},
};

/// What the answers are made of.
#[derive(Clone)]
pub(crate) struct State {
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) ready: Arc<AtomicBool>,
}

/// Starts to answer; gives the address with its real port.
pub(crate) fn start(address: SocketAddr, state: State) -> io::Result<SocketAddr> {
    let listener = Async::<TcpListener>::bind(address)?;
    let address = listener.get_ref().local_addr()?;
    smol::spawn(accept(listener, state)).detach();
    Ok(address)
}

async fn accept(listener: Async<TcpListener>, state: State) {
    let running = Arc::new(AtomicUsize::new(0));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, say; others may end meanwhile.
            Timer::after(Duration::from_millis(100)).await;
            continue;
        };
        if running.fetch_add(1, Ordering::SeqCst) >= HTTP_REQUESTS_MAX {
            running.fetch_sub(1, Ordering::SeqCst);
            continue;
        }
        let (state, running) = (state.clone(), running.clone());
        smol::spawn(async move {
            let timer = Timer::after(Duration::from_millis(HTTP_MAX_MILLISECONDS));
            futures::select! {
                _answered = Box::pin(answer(stream, &state)).fuse() => {}
                _late = FutureExt::fuse(timer) => {}
            }
            running.fetch_sub(1, Ordering::SeqCst);
        })
        .detach();
    }
}

async fn answer(mut stream: Async<std::net::TcpStream>, state: &State) -> io::Result<()> {
    let mut head = Vec::new();
    let mut piece = [0; 1024];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let count = stream.read(&mut piece).await?;
        if count == 0 || head.len() + count > HTTP_HEAD_MAX_BYTES {
            return Ok(());
        }
        head.extend_from_slice(&piece[..count]);
    }
    let line = String::from_utf8_lossy(&head);
    let mut words = line.split_whitespace();
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = target.split('?').next().unwrap_or_default();
    let (label, status, kind, body) = match (method, path) {
        ("GET", "/metrics") => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ("metrics", "200 OK", kind, state.metrics.text())
        }
        ("GET", "/healthz") => ("healthz", "200 OK", TEXT, "alive\n".to_owned()),
        ("GET", "/readyz") if state.ready.load(Ordering::SeqCst) => {
            ("readyz", "200 OK", TEXT, "ready\n".to_owned())
        }
        ("GET", "/readyz") => ("readyz", "503 Service Unavailable", TEXT, "not ready\n".to_owned()),
        ("GET", _) => ("other", "404 Not Found", TEXT, "/metrics, /healthz, /readyz\n".to_owned()),
        _ => ("other", "405 Method Not Allowed", TEXT, "only GET\n".to_owned()),
    };
    state.metrics.http_requests_total.get_or_create(&of(label)).inc();
    let length = body.len();
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{body}"
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.close().await
}

const TEXT: &str = "text/plain; charset=utf-8";

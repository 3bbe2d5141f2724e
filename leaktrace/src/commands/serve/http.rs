//! HTTP, for clients that may be slow or mean harm: few at a time, each with little time and little memory.

use std::{
    convert::Infallible,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::Incoming,
    header::{self, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use super::{
    places::{Noted, Place},
    shown::{Shown, What},
    tls::Tls,
};

/// Connections at a time that are told that there is no place; more are closed at once.
const REFUSALS: usize = 16;
/// Seconds after which such a client may come again.
const AGAIN: HeaderValue = HeaderValue::from_static("1");
/// How long a client may take for the head of a request, and a connection may last.
const HEAD: Duration = Duration::from_secs(5);
const WHOLE: Duration = Duration::from_secs(30);
/// Bytes of a request's head.
const BUFFER: usize = 16 << 10;
/// After an error of accept, which is mostly that there are no descriptors.
const PAUSE: Duration = Duration::from_millis(100);

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const OLDER_METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Whom an answer is for.
#[derive(Clone, Debug)]
pub(super) enum Trust {
    /// Who asks by a name that only this machine has.
    Local,
    /// Who knows the token.
    Token(Arc<str>),
    /// Who came with a certificate.
    Certificate,
}

/// Answers until it is dropped.
pub(super) async fn serve(listener: TcpListener, shown: Arc<Shown>, trust: Trust, tls: Option<Arc<Tls>>) {
    let refusals = Arc::new(Semaphore::new(REFUSALS));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let (shown, trust) = (Arc::clone(&shown), trust.clone());
        let acceptor = tls.as_ref().map(|tls| tls.acceptor());
        if let Some(place) = shown.places.take(Instant::now()) {
            tokio::spawn(async move {
                let answer = |request: &Request<Incoming>| {
                    place.asked();
                    answer(request, &shown, &trust)
                };
                tokio::select! {
                    () = place.is_lost() => {}
                    () = shake_hands(stream, acceptor, Some(&place), &answer) => {}
                }
            });
        } else if let Ok(refusal) = Arc::clone(&refusals).try_acquire_owned() {
            tokio::spawn(async move {
                let refuse = |_: &Request<Incoming>| no_place();
                let _ = timeout(HEAD, shake_hands(stream, acceptor, None, &refuse)).await;
                drop(refusal);
            });
        }
    }
}

/// Answers on one connection, by TLS if there is an acceptor.
async fn shake_hands(
    stream: TcpStream,
    acceptor: Option<TlsAcceptor>,
    place: Option<&Place>,
    answer: &impl Fn(&Request<Incoming>) -> Response<Full<Bytes>>,
) {
    let Some(acceptor) = acceptor else { return converse(stream, place, answer).await };
    if let Ok(Ok(stream)) = timeout(HEAD, acceptor.accept(stream)).await {
        converse(stream, place, answer).await;
    }
}

/// Answers; what goes wrong there is the client's loss only.
async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    place: Option<&Place>,
    answer: &impl Fn(&Request<Incoming>) -> Response<Full<Bytes>>,
) {
    let answer = service_fn(|request: Request<Incoming>| {
        let response = answer(&request);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(BUFFER)
        .keep_alive(place.is_some())
        .serve_connection(TokioIo::new(Noted::new(stream, place)), answer);
    let _ = timeout(WHOLE, connection).await;
}

/// What a client is told for which there is no place.
fn no_place() -> Response<Full<Bytes>> {
    let text = "all places for connections are taken: come again in a second\n";
    let mut response = plain(StatusCode::SERVICE_UNAVAILABLE, text);
    response.headers_mut().insert(header::RETRY_AFTER, AGAIN);
    response
}

fn answer(request: &Request<Incoming>, shown: &Shown, trust: &Trust) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
    }
    match trust {
        // Who watches over services has no token, and learns only that this one works.
        Trust::Token(token) if request.uri().path() != "/healthz" && !knows(request.headers(), token) => {
            let mut response = plain(StatusCode::UNAUTHORIZED, "this takes the token\n");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            return response;
        }
        // A page of another site must not read this by a name of its own for this machine.
        Trust::Local if !is_local(request.headers()) => {
            return plain(StatusCode::FORBIDDEN, "this answers to localhost only\n");
        }
        _ => {}
    }
    let (what, kind) = match request.uri().path() {
        "/" => (What::Page, "text/html; charset=utf-8"),
        "/report.json" => (What::Report, "application/json"),
        "/flame.svg" => (What::Flame, "image/svg+xml"),
        "/debug/pprof/heap" => (What::Profile, "application/octet-stream"),
        "/metrics" if takes_open_metrics(request.headers()) => (What::Metrics, OPEN_METRICS),
        "/metrics" => (What::OlderMetrics, OLDER_METRICS),
        "/healthz" if shown.is_alive() => return plain(StatusCode::OK, "ok\n"),
        "/healthz" => return plain(StatusCode::SERVICE_UNAVAILABLE, "tracing is stuck\n"),
        _ => {
            return plain(
                StatusCode::NOT_FOUND,
                "there is /, /metrics, /report.json, /flame.svg, /debug/pprof/heap, /healthz\n",
            );
        }
    };
    match shown.get(what) {
        Ok(Some(body)) => respond(StatusCode::OK, kind, body),
        Ok(None) => plain(StatusCode::SERVICE_UNAVAILABLE, "there is no report yet\n"),
        Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error:#}\n")),
    }
}

/// Whether a request has the token, compared in a time that does not tell how much of it was right.
fn knows(headers: &HeaderMap, token: &str) -> bool {
    let given = headers.get(header::AUTHORIZATION).map_or(&b""[..], HeaderValue::as_bytes);
    let given = given.strip_prefix(b"Bearer ").unwrap_or_default();
    let differences = given.iter().zip(token.as_bytes()).fold(0, |all, (a, b)| all | (a ^ b));
    given.len() == token.len() && differences == 0
}

/// Whether a request is for this machine by a name that only it has.
fn is_local(headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    name.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

/// Whether a request says that its answer may be `OpenMetrics`.
fn takes_open_metrics(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.to_ascii_lowercase().contains("application/openmetrics-text"))
}

fn plain(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    respond(status, "text/plain; charset=utf-8", Bytes::from(text.to_owned()))
}

fn respond(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::{SocketAddr, TcpStream},
    };

    use super::{super::places::Places, *};
    use crate::report::metrics::TurnedAway;

    /// Asks for something, and returns the answer.
    async fn ask(address: SocketAddr) -> String {
        let ask = move || {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(b"GET /none HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        };
        tokio::task::spawn_blocking(ask).await.unwrap()
    }

    #[tokio::test]
    async fn who_comes_while_all_are_busy_is_told() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shown = Arc::new(Shown::new(Duration::from_secs(1), Places::new(1), false));
        let busy = shown.places.take(Instant::now()).unwrap();
        busy.asked();
        tokio::spawn(serve(listener, Arc::clone(&shown), Trust::Local, None));
        let refused = ask(address).await.to_lowercase();
        assert!(
            refused.starts_with("http/1.1 503 ") && refused.contains("\r\nretry-after: 1\r\n"),
            "{refused}"
        );
        assert!(
            refused.ends_with("all places for connections are taken: come again in a second\n"),
            "{refused}"
        );
        drop(busy);
        // Who holds a connection and says nothing makes room.
        let mut silent = TcpStream::connect(address).unwrap();
        assert!(ask(address).await.starts_with("HTTP/1.1 404 "));
        assert_eq!(silent.read(&mut [0]).unwrap(), 0);
        assert_eq!(shown.places.turned_away(), TurnedAway { dropped: 1, refused: 1 });
    }

    fn with(name: header::HeaderName, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_str(value).unwrap());
        headers
    }

    #[test]
    fn only_local_names_are_local() {
        for good in ["localhost", "LOCALHOST:9843", "127.0.0.1:9843", "127.3.2.1", "[::1]:9843", "[::1]"] {
            assert!(is_local(&with(header::HOST, good)), "{good}");
        }
        for bad in ["", "evil.example:9843", "localhost.evil.example", "10.0.0.1", "127.0.0.1.evil.example:1"]
        {
            assert!(!is_local(&with(header::HOST, bad)), "{bad}");
        }
        assert!(!is_local(&HeaderMap::new()));
    }

    #[test]
    fn who_asks_for_open_metrics_gets_them() {
        let prometheus =
            "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        assert!(takes_open_metrics(&with(header::ACCEPT, prometheus)));
        for other in ["*/*", "text/html,application/xhtml+xml,*/*;q=0.8", "text/plain;version=0.0.4"] {
            assert!(!takes_open_metrics(&with(header::ACCEPT, other)), "{other}");
        }
        assert!(!takes_open_metrics(&HeaderMap::new()));
    }

    #[test]
    fn only_the_token_is_the_token() {
        let token = "0123456789abcdef";
        assert!(knows(&with(header::AUTHORIZATION, "Bearer 0123456789abcdef"), token));
        for bad in ["", "Bearer ", "Bearer 0123456789abcde", "Bearer 0123456789abcdef0", "0123456789abcdef"] {
            assert!(!knows(&with(header::AUTHORIZATION, bad), token), "{bad}");
        }
    }
}

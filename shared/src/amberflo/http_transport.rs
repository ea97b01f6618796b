//! The transport of production.

use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use http::{Request, Response};

use super::{Transport, TransportError};

/// An answer to ingestion is a line; anything longer is cut, never buffered.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// The transport of production: reqwest on rustls.
pub struct HttpTransport {
    client: reqwest::Client,
    timeout: Duration,
    max_answer_bytes: usize,
    cuts: bool,
}

impl HttpTransport {
    /// A pool of kept-alive connections; every exchange takes at most `timeout`.
    ///
    /// # Errors
    /// When the system's TLS roots cannot be loaded.
    pub fn new(timeout: Duration) -> Result<Self, reqwest::Error> {
        let client = client_builder()
            .timeout(timeout)
            .connect_timeout(timeout.min(Duration::from_secs(10)))
            .tcp_nodelay(true)
            .build()?;
        Ok(Self { client, timeout, max_answer_bytes: MAX_ANSWER_BYTES, cuts: true })
    }

    /// Takes answers of up to this size whole, and none that are larger: for answers of which a part is of no use.
    #[must_use]
    pub fn with_whole_answers(mut self, max_answer_bytes: usize) -> Self {
        self.max_answer_bytes = max_answer_bytes;
        self.cuts = false;
        self
    }

    fn error(&self, error: reqwest::Error) -> TransportError {
        if error.is_timeout() {
            return TransportError::Timeout(self.timeout);
        }
        // reqwest's own text stops at the first cause; the reason stands in the last one.
        let error = error.without_url();
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(inner) = cause {
            text = format!("{text}: {inner}");
            cause = inner.source();
        }
        TransportError::Connect(text)
    }
}

/// What every HTTP client here has: our name, TLS by ring, and no redirects.
pub(crate) fn client_builder() -> reqwest::ClientBuilder {
    // Fails only where a provider is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .user_agent(concat!("sbt-amberflo-metering/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
}

#[async_trait]
impl Transport for HttpTransport {
    async fn exchange(&self, request: Request<Bytes>) -> Result<Response<Bytes>, TransportError> {
        let request = request.try_into().map_err(|error| self.error(error))?;
        let mut answer = self.client.execute(request).await.map_err(|error| self.error(error))?;
        let mut body = BytesMut::new();
        while let Some(chunk) = answer.chunk().await.map_err(|error| self.error(error))? {
            let room = self.max_answer_bytes - body.len();
            body.extend_from_slice(&chunk[..chunk.len().min(room)]);
            if chunk.len() > room {
                if self.cuts {
                    break;
                }
                return Err(TransportError::TooLong(self.max_answer_bytes));
            }
        }
        let mut response = Response::new(body.freeze());
        *response.status_mut() = answer.status();
        *response.headers_mut() = std::mem::take(answer.headers_mut());
        Ok(response)
    }
}

//! Calls of Amberflo's API other than ingestion.

use bytes::Bytes;
use form_urlencoded::Serializer;
use http::Method;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::{ApiError, Client};

/// All but the unreserved characters of RFC 3986.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const MAX_SEGMENT_BYTES: usize = 256;

/// One segment of a path, taken from somebody else: it cannot lead to another endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment(String);

/// Why a text is no [`Segment`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("allowed are 1 to {MAX_SEGMENT_BYTES} bytes without '/', '\\' and control characters, other than '.' and '..'")]
pub struct InvalidSegment;

impl Segment {
    /// Takes a decoded text.
    ///
    /// # Errors
    /// [`InvalidSegment`] for what a server might read as something other than one segment.
    pub fn new(text: impl Into<String>) -> Result<Self, InvalidSegment> {
        let text = text.into();
        let is_hostile = |c: char| c == '/' || c == '\\' || c.is_control();
        if text.is_empty() || text.len() > MAX_SEGMENT_BYTES || text == "." || text == ".." || text.contains(is_hostile)
        {
            return Err(InvalidSegment);
        }
        Ok(Self(text))
    }

    /// The text, decoded.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A call: what is asked of which endpoint.
#[derive(Debug)]
pub struct Call<'a> {
    /// Its name in metrics.
    pub operation: &'static str,
    /// The method.
    pub method: Method,
    /// The path of the endpoint, without an end that is somebody's text.
    pub path: &'static str,
    /// That end.
    pub id: Option<&'a Segment>,
    /// Names and values of the query.
    pub query: &'a [(&'a str, &'a str)],
    /// The body: JSON, or nothing.
    pub body: Bytes,
}

impl Client {
    /// Makes a call, once; answers the body of a 2xx.
    ///
    /// # Errors
    /// An [`ApiError`] for every answer but a 2xx that Amberflo can have sent.
    pub async fn call(&self, call: &Call<'_>) -> Result<Bytes, ApiError> {
        let request = self.request(call.method.clone(), &path_and_query(call), call.body.clone())?;
        Ok(self.exchange(call.operation, request).await?.into_body())
    }
}

fn path_and_query(call: &Call<'_>) -> String {
    let mut text = call.path.to_owned();
    if let Some(id) = call.id {
        text.push('/');
        text.extend(utf8_percent_encode(id.as_str(), RESERVED));
    }
    if !call.query.is_empty() {
        text.push('?');
        let start = text.len();
        text = Serializer::for_suffix(text, start).extend_pairs(call.query).finish();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_stays_one() {
        for bad in ["", ".", "..", "a/b", "/", "..\\x", "a\0", "a\nb", &"x".repeat(257)] {
            assert_eq!(Segment::new(bad), Err(InvalidSegment), "{bad:?}");
        }
        let path = |id: &str| {
            let id = Segment::new(id).unwrap();
            let (query, body) = (&[("a b", "c&d=e"), ("ä", "")][..], Bytes::new());
            let call = Call { operation: "", method: Method::GET, path: "/meters", id: Some(&id), query, body };
            path_and_query(&call)
        };
        let query = "?a+b=c%26d%3De&%C3%A4=";
        assert_eq!(path("3b9f-a_b.c~"), format!("/meters/3b9f-a_b.c~{query}"));
        assert_eq!(path("a?b#c%2f ä;:@"), format!("/meters/a%3Fb%23c%252f%20%C3%A4%3B%3A%40{query}"));
        assert_eq!(path("..."), format!("/meters/...{query}"));
    }
}

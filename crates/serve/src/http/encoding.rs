//! Content encodings of the REST gateway (RFC 9110, section 8.4): decodes request bodies and encodes responses with gzip and deflate.
//!
//! Invariant: a decoded body counts against the same limits as one that was sent without encoding, and decoding stops at the limit.

use std::io::{self, Read, Write};

use axum::http::{HeaderMap, header};
use bytes::Bytes;
use flate2::bufread::GzDecoder;
use flate2::write::{GzEncoder, ZlibEncoder};
use flate2::{Compression, Decompress, FlushDecompress, Status};

use crate::Error;
use crate::body::{Bodies, Reservation};

/// Bytes that are decoded or encoded before other requests get the thread: about half a millisecond of work.
const CHUNK_BYTES: usize = 64 << 10;
/// First allocation for a decoded body.
const MIN_DECODED_BYTES: usize = 4 << 10;
/// Minimum size of a response to encode it. Smaller ones fit into a few packets, and preparing the encoder would take longer than sending.
pub(super) const MIN_ENCODED_BYTES: usize = 4 << 10;

/// A supported content encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// RFC 1952.
    Gzip,
    /// Deflate in the zlib format (RFC 1950), as RFC 9110, section 8.4.1.2, defines it.
    Deflate,
}

impl Encoding {
    /// The encoding with this name, in the notation of HTTP and of gRPC.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        // RFC 9110, section 8.4.1.3: `x-gzip` is equivalent to `gzip`.
        if name.eq_ignore_ascii_case("gzip") || name.eq_ignore_ascii_case("x-gzip") {
            return Some(Self::Gzip);
        }
        name.eq_ignore_ascii_case("deflate").then_some(Self::Deflate)
    }

    /// The name in `Content-Encoding`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
        }
    }

    /// The encoding of a request body; `None` for a body without encoding.
    ///
    /// # Errors
    /// [`Error::ContentEncoding`] for other encodings, and for several at once.
    pub(super) fn of_request(headers: &HeaderMap) -> Result<Option<Self>, Error> {
        if !headers.contains_key(header::CONTENT_ENCODING) {
            return Ok(None);
        }
        let values = headers.get_all(header::CONTENT_ENCODING).iter().map(|v| String::from_utf8_lossy(v.as_bytes()));
        let text = values.collect::<Vec<_>>().join(", ");
        let mut names = text.split(',').map(str::trim).filter(|n| !n.is_empty() && !n.eq_ignore_ascii_case("identity"));
        match (names.next(), names.next()) {
            (None, _) => Ok(None),
            (Some(name), None) => Self::parse(name).map(Some).ok_or(Error::ContentEncoding(text)),
            (Some(_), Some(_)) => Err(Error::ContentEncoding(text)),
        }
    }

    /// The encoding that the client prefers for the response; `None` if it prefers none (RFC 9110, section 12.5.3).
    pub(super) fn accepted(headers: &HeaderMap) -> Option<Self> {
        let weight = |wanted: &dyn Fn(&str) -> bool| {
            let values = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|v| v.to_str().ok());
            values.flat_map(|v| v.split(',')).find_map(|element| {
                let (name, parameters) = element.split_once(';').unwrap_or((element, ""));
                let weight = parameters.trim().strip_prefix("q=").map_or(1.0, |q| q.trim().parse().unwrap_or(0.0f32));
                wanted(name.trim()).then_some(weight)
            })
        };
        let other = weight(&|name| name == "*").unwrap_or(0.0);
        let [gzip, deflate] =
            [Self::Gzip, Self::Deflate].map(|own| weight(&|name| Self::parse(name) == Some(own)).unwrap_or(other));
        let identity = weight(&|name| name.eq_ignore_ascii_case("identity")).unwrap_or(0.0);
        let (best, preferred) = if gzip >= deflate { (gzip, Self::Gzip) } else { (deflate, Self::Deflate) };
        (best > 0.0 && best >= identity).then_some(preferred)
    }
}

/// Decodes a body that is complete in memory.
enum Decoder<'a> {
    Gzip(GzDecoder<&'a [u8]>),
    /// flate2's own reader treats a truncated stream as a complete one.
    Deflate {
        state: Decompress,
        rest: &'a [u8],
        ended: bool,
    },
}

impl<'a> Decoder<'a> {
    fn new(encoding: Encoding, encoded: &'a [u8]) -> Self {
        match encoding {
            Encoding::Gzip => Self::Gzip(GzDecoder::new(encoded)),
            Encoding::Deflate => Self::Deflate { state: Decompress::new(true), rest: encoded, ended: false },
        }
    }

    /// Number of bytes after the end of the encoded data.
    fn excess(&self) -> usize {
        match self {
            Self::Gzip(decoder) => decoder.get_ref().len(),
            Self::Deflate { rest, .. } => rest.len(),
        }
    }
}

impl Read for Decoder<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Gzip(decoder) => decoder.read(out),
            Self::Deflate { ended: true, .. } => Ok(0),
            Self::Deflate { state, rest, ended } => {
                let before = (state.total_in(), state.total_out());
                let status = state.decompress(rest, out, FlushDecompress::None)?;
                // Both differences are bounded by the lengths of the slices.
                let consumed = usize::try_from(state.total_in() - before.0).unwrap_or(rest.len());
                let written = usize::try_from(state.total_out() - before.1).unwrap_or(out.len());
                *rest = rest.get(consumed..).unwrap_or_default();
                *ended = status == Status::StreamEnd;
                if written == 0 && !*ended && !out.is_empty() {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the data is truncated"));
                }
                Ok(written)
            }
        }
    }
}

/// Decodes a body to at most `limit` bytes. Memory is reserved before it is allocated.
///
/// # Errors
/// [`Error::Invalid`] for data that is not in this encoding, [`Error::TooLarge`] and [`Error::BodyMemory`].
pub(crate) async fn decode<'a>(
    bodies: &'a Bodies,
    encoding: Encoding,
    encoded: &[u8],
    limit: usize,
) -> Result<(Bytes, Reservation<'a>), Error> {
    let invalid =
        |why: &dyn std::fmt::Display| Error::Invalid(format!("the body is not {} data: {why}", encoding.name()));
    let mut decoder = Decoder::new(encoding, encoded);
    let mut reservation = bodies.reservation();
    let mut body = Vec::new();
    while body.len() <= limit {
        if body.len() == body.capacity() {
            // One byte more than the limit is enough to see that the body exceeds it.
            let more = body.len().max(MIN_DECODED_BYTES).min(limit.saturating_add(1) - body.len());
            bodies.reserve(&mut reservation, more)?;
            body.reserve_exact(more);
        }
        let step = CHUNK_BYTES.min(body.capacity() - body.len());
        let read = (&mut decoder).take(step as u64).read_to_end(&mut body).map_err(|e| invalid(&e))?;
        if body.len() <= limit && read < step {
            return match decoder.excess() {
                0 => Ok((body.into(), reservation)),
                excess => Err(invalid(&format_args!("{excess} bytes follow its end"))),
            };
        }
        tokio::task::yield_now().await;
    }
    Err(Error::TooLarge(limit))
}

/// Encodes a response body. `None` if that does not make it smaller.
pub(super) async fn encode(encoding: Encoding, body: &[u8]) -> Option<Vec<u8>> {
    let out = Vec::with_capacity(body.len() / 2);
    // The fastest level: it computes several times faster than the default one and saves nearly as much of JSON.
    let encoded = match encoding {
        Encoding::Gzip => {
            let mut encoder = GzEncoder::new(out, Compression::fast());
            write_chunks(&mut encoder, body).await.and_then(|()| encoder.finish())
        }
        Encoding::Deflate => {
            let mut encoder = ZlibEncoder::new(out, Compression::fast());
            write_chunks(&mut encoder, body).await.and_then(|()| encoder.finish())
        }
    };
    encoded.ok().filter(|encoded| encoded.len() < body.len()) // writing into memory cannot fail
}

async fn write_chunks(encoder: &mut (impl Write + Send), body: &[u8]) -> io::Result<()> {
    for chunk in body.chunks(CHUNK_BYTES) {
        encoder.write_all(chunk)?;
        tokio::task::yield_now().await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::BodyLimits;

    fn headers(name: header::HeaderName, values: &[&str]) -> HeaderMap {
        values.iter().map(|value| (name.clone(), value.parse().unwrap())).collect()
    }

    #[test]
    fn preferred_response_encoding_follows_the_weights() {
        for (values, expected) in [
            (&[][..], None),
            (&["gzip"][..], Some(Encoding::Gzip)),
            (&["deflate"], Some(Encoding::Deflate)),
            (&["gzip, deflate, br"], Some(Encoding::Gzip)),
            (&["br", "deflate"], Some(Encoding::Deflate)),
            (&["gzip;q=0.5, deflate;q=0.8"], Some(Encoding::Deflate)),
            (&["GZIP; q=0.001"], Some(Encoding::Gzip)),
            (&["gzip;q=0"], None),
            (&["gzip;q=0, *"], Some(Encoding::Deflate)),
            (&["*;q=0.1"], Some(Encoding::Gzip)),
            (&["identity, gzip;q=0.5"], None),
            (&["br, zstd"], None),
        ] {
            assert_eq!(Encoding::accepted(&headers(header::ACCEPT_ENCODING, values)), expected, "{values:?}");
        }
    }

    #[test]
    fn one_supported_request_encoding_is_accepted() {
        let of = |values: &[&str]| Encoding::of_request(&headers(header::CONTENT_ENCODING, values));
        assert_eq!(of(&[]).unwrap(), None);
        assert_eq!(of(&["identity"]).unwrap(), None);
        assert_eq!(of(&["X-GZIP"]).unwrap(), Some(Encoding::Gzip));
        assert_eq!(of(&["identity, deflate"]).unwrap(), Some(Encoding::Deflate));
        for unsupported in [&["br"][..], &["gzip, gzip"], &["gzip", "deflate"], &["gzipx"]] {
            assert!(matches!(of(unsupported), Err(Error::ContentEncoding(_))), "{unsupported:?}");
        }
    }

    #[tokio::test]
    async fn decoding_restores_the_body_up_to_the_limit() {
        let bodies = Bodies::new(BodyLimits { memory: 1 << 20, ..BodyLimits::default() });
        for encoding in [Encoding::Gzip, Encoding::Deflate] {
            for length in [0, 1, 100, MIN_DECODED_BYTES, CHUNK_BYTES, 300_001] {
                let body: Vec<u8> = (0..length).map(|i| (i / 7) as u8).collect();
                let encoded = match encoding {
                    Encoding::Gzip => {
                        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
                        write_chunks(&mut encoder, &body).await.and_then(|()| encoder.finish()).unwrap()
                    }
                    Encoding::Deflate => {
                        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
                        write_chunks(&mut encoder, &body).await.and_then(|()| encoder.finish()).unwrap()
                    }
                };
                let (decoded, reservation) = decode(&bodies, encoding, &encoded, length).await.unwrap();
                assert_eq!(decoded, body);
                assert!(bodies.used() >= length);
                drop(reservation);
                if length > 0 {
                    let larger = decode(&bodies, encoding, &encoded, length - 1).await;
                    assert!(matches!(larger, Err(Error::TooLarge(limit)) if limit == length - 1));
                }
                for cut in 1..encoded.len().min(20) {
                    let truncated = decode(&bodies, encoding, &encoded[..encoded.len() - cut], length).await;
                    assert!(matches!(truncated, Err(Error::Invalid(_))), "{encoding:?} {length} {cut}");
                }
                let excess = decode(&bodies, encoding, &[&encoded[..], b"x"].concat(), length).await;
                assert!(matches!(excess, Err(Error::Invalid(_))), "{encoding:?} {length}");
            }
            assert!(matches!(decode(&bodies, encoding, b"{\"inputs\":[]}", 100).await, Err(Error::Invalid(_))));
        }
        assert_eq!(bodies.used(), 0);
    }
}

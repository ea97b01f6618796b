//! Bearer tokens: JWTs that the issuer signed.

use std::sync::Arc;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use jsonwebtoken::Algorithm;
use shared::clock::Clock;

use super::args::AuthArgs;
use super::claims::{Expected, token_caller};
use super::issuer::Issuer;
use super::jwks::{Jwks, NoKey};
use super::{Caller, Refusal, key};

/// Most bytes of a token: twice what API Gateway lets through in all headers together.
const MAX_TOKEN_BYTES: usize = 20 * 1024;

pub(super) struct Tokens {
    expected: Expected,
    keys: Arc<Jwks>,
    clock: Clock,
}

impl Tokens {
    /// For settings that [`AuthArgs::check`] found good.
    pub(super) fn new(args: &AuthArgs, clock: Clock) -> anyhow::Result<Self> {
        key::install();
        let issuer = args.issuer().unwrap_or_default().to_owned();
        let keys = Jwks::new(Issuer::new(&issuer, args.jwks_url())?, clock);
        let audiences = args.audiences().map(str::to_owned).collect();
        Ok(Self { expected: Expected { issuer, audiences }, keys, clock })
    }

    pub(super) async fn warm(&self) {
        self.keys.warm().await;
    }

    pub(super) async fn caller(&self, headers: &HeaderMap) -> Result<Caller, Refusal> {
        let token = bearer(headers)?;
        if token.len() > MAX_TOKEN_BYTES {
            return Err(Refusal::token(format!("the token is longer than {MAX_TOKEN_BYTES} bytes")));
        }
        // What the header says of keys (jwk, jku, x5c, x5u) is the sender's word and is not looked at.
        let header = jsonwebtoken::decode_header(token)
            .map_err(|_| Refusal::token("not a JWT, or alg is not RS256 or ES256"))?;
        if !matches!(header.alg, Algorithm::RS256 | Algorithm::ES256) {
            return Err(Refusal::token("alg: allowed is RS256 or ES256"));
        }
        if header.crit.is_some() {
            return Err(Refusal::token("crit: no extension is understood"));
        }
        let kid = header.kid.ok_or_else(|| Refusal::token("kid: missing"))?;
        let key = self.keys.find(&kid, header.alg).await.map_err(|error| match error {
            NoKey::Unknown => Refusal::token("kid: not a key of the issuer"),
            NoKey::OtherAlgorithm => Refusal::token("alg: not the algorithm of this key"),
            NoKey::NoKeys(wait) => Refusal::NoKeys(wait),
        })?;
        let claims = key.verify(token).ok_or_else(|| Refusal::token("the signature is not the issuer's"))?;
        #[expect(clippy::cast_precision_loss, reason = "exact for another 285,000 years")]
        let now = self.clock.now() as f64 / 1000.0;
        token_caller(&claims, &self.expected, now)
    }
}

fn bearer(headers: &HeaderMap) -> Result<&str, Refusal> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = values.next().ok_or(Refusal::NoToken)?;
    if values.next().is_some() {
        return Err(Refusal::Request("Authorization: more than one"));
    }
    let value = value.to_str().map_err(|_| Refusal::Request("Authorization: not visible ASCII"))?;
    match value.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(token.trim_matches(' ')),
        _ => Err(Refusal::NoToken),
    }
}

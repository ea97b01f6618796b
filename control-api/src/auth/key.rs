//! The issuer's public keys, and signatures checked with ring, which TLS has brought anyway.

use jsonwebtoken::crypto::{CryptoProvider, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{ErrorKind, Result};
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse};
use jsonwebtoken::signature::{Error as SignatureError, Verifier};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind, EncodingKey, Validation};
use ring::signature::{ECDSA_P256_SHA256_FIXED, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey};
use serde_json::{Map, Value};

/// RFC 7518, section 3.3, asks for at least 2048; above 8192 a check costs too much.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;
const P256_COORDINATE_BYTES: usize = 32;

static RING: CryptoProvider = CryptoProvider {
    signer_factory: |_, _: &EncodingKey| Err(ErrorKind::UnsupportedAlgorithm.into()),
    verifier_factory: |algorithm, key| verifier(*algorithm, key),
    key_utils: KeyUtils::new_unimplemented(),
};

/// Makes jsonwebtoken use ring.
pub(super) fn install() {
    // Fails only where it is installed already.
    let _ = RING.install_default();
}

/// A key that signs tokens.
#[derive(Clone)]
pub(super) struct Key {
    pub(super) id: String,
    pub(super) algorithm: Algorithm,
    key: DecodingKey,
}

impl Key {
    /// The keys of a set (RFC 7517) that sign with RS256 or ES256 and have an id; the others are passed over.
    pub(super) fn usable(set: &[u8]) -> serde_json::Result<Vec<Self>> {
        #[derive(serde::Deserialize)]
        struct Set {
            keys: Vec<Value>,
        }
        let Set { keys } = serde_json::from_slice(set)?;
        Ok(keys.into_iter().filter_map(|jwk| Self::from_jwk(serde_json::from_value(jwk).ok()?)).collect())
    }

    fn from_jwk(jwk: Jwk) -> Option<Self> {
        let Jwk { common, algorithm: parameters } = jwk;
        if !matches!(common.public_key_use, None | Some(PublicKeyUse::Signature))
            || common.key_operations.is_some_and(|operations| !operations.contains(&KeyOperations::Verify))
        {
            return None;
        }
        let (algorithm, key) = match parameters {
            AlgorithmParameters::RSA(rsa) => (Algorithm::RS256, rsa_key(&rsa.n, &rsa.e)?),
            AlgorithmParameters::EllipticCurve(ec) if ec.curve == EllipticCurve::P256 => {
                let sizes = [&ec.x, &ec.y].map(|coordinate| decode(coordinate).map(|bytes| bytes.len()));
                if sizes != [Some(P256_COORDINATE_BYTES); 2] {
                    return None;
                }
                (Algorithm::ES256, DecodingKey::from_ec_components(&ec.x, &ec.y).ok()?)
            }
            _ => return None,
        };
        if common.key_algorithm.is_some_and(|named| named != KeyAlgorithm::from(algorithm)) {
            return None;
        }
        Some(Self { id: common.key_id?, algorithm, key })
    }

    /// The token's claims, where this key's owner signed them with this key's algorithm.
    pub(super) fn verify(&self, token: &str) -> Option<Map<String, Value>> {
        let mut validation = Validation::new(self.algorithm);
        // The claims are ours to check: the library reads the time from the system, and names no claim in its errors.
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = false;
        Some(jsonwebtoken::decode(token, &self.key, &validation).ok()?.claims)
    }
}

fn rsa_key(modulus: &str, exponent: &str) -> Option<DecodingKey> {
    // Some issuers pad with a zero byte, which ring does not take.
    let [n, e] = [modulus, exponent].map(|text| {
        let bytes = decode(text)?;
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        Some(bytes[zeros..].to_vec())
    });
    let (n, e) = (n?, e?);
    let bits = n.len() * 8 - n.first()?.leading_zeros() as usize;
    RSA_BITS.contains(&bits).then(|| DecodingKey::from_rsa_raw_components(&n, &e))
}

fn decode(base64url: &str) -> Option<Vec<u8>> {
    use base64::Engine;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(base64url).ok()
}

fn verifier(algorithm: Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>> {
    match (algorithm, key.kind()) {
        (Algorithm::RS256, DecodingKeyKind::RsaModulusExponent { n, e }) => {
            Ok(Box::new(Rs256(RsaPublicKeyComponents { n: n.clone(), e: e.clone() })))
        }
        (Algorithm::ES256, DecodingKeyKind::SecretOrDer(point)) => {
            Ok(Box::new(Es256(UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point.clone()))))
        }
        _ => Err(ErrorKind::UnsupportedAlgorithm.into()),
    }
}

struct Rs256(RsaPublicKeyComponents<Vec<u8>>);

impl Verifier<Vec<u8>> for Rs256 {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> std::result::Result<(), SignatureError> {
        self.0.verify(&RSA_PKCS1_2048_8192_SHA256, message, signature).map_err(|_| SignatureError::new())
    }
}

impl JwtVerifier for Rs256 {
    fn algorithm(&self) -> Algorithm {
        Algorithm::RS256
    }
}

struct Es256(UnparsedPublicKey<Vec<u8>>);

impl Verifier<Vec<u8>> for Es256 {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> std::result::Result<(), SignatureError> {
        self.0.verify(message, signature).map_err(|_| SignatureError::new())
    }
}

impl JwtVerifier for Es256 {
    fn algorithm(&self) -> Algorithm {
        Algorithm::ES256
    }
}

//! An issuer of tokens on loopback, and its keys.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::extract::State;
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use axum::{Json, Router};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::StatusCode;
use ring::hmac;
use ring::rand::SystemRandom;
use ring::rsa::PublicKeyComponents;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::{AUDIENCE, NOW};

/// Made for these tests: it opens nothing. ring makes no RSA keys.
const TEST_ONLY_RSA_KEY: &[u8] = include_bytes!("test-only-rsa-2048.pk8");

pub enum Signer {
    Rsa(Box<RsaKeyPair>),
    Ec(Box<EcdsaKeyPair>),
    /// The forger's: HMAC with bytes that everybody knows.
    Hmac(Vec<u8>),
    /// `alg: none`.
    Nothing,
}

pub struct Key {
    pub kid: &'static str,
    pub signer: Signer,
}

impl Key {
    pub fn rsa(kid: &'static str) -> Self {
        Self { kid, signer: Signer::Rsa(Box::new(RsaKeyPair::from_pkcs8(TEST_ONLY_RSA_KEY).unwrap())) }
    }

    pub fn ec(kid: &'static str) -> Self {
        let random = SystemRandom::new();
        let made = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, made.as_ref(), &random).unwrap();
        Self { kid, signer: Signer::Ec(Box::new(pair)) }
    }

    pub fn alg(&self) -> &'static str {
        match self.signer {
            Signer::Rsa(_) => "RS256",
            Signer::Ec(_) => "ES256",
            Signer::Hmac(_) => "HS256",
            Signer::Nothing => "none",
        }
    }

    pub fn jwk(&self) -> Value {
        match &self.signer {
            Signer::Rsa(pair) => {
                let public = PublicKeyComponents::<Vec<u8>>::from(pair.public());
                json!({"kty": "RSA", "kid": self.kid, "use": "sig", "alg": "RS256",
                       "n": encode(&public.n), "e": encode(&public.e)})
            }
            Signer::Ec(pair) => {
                let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
                json!({"kty": "EC", "kid": self.kid, "use": "sig", "alg": "ES256", "crv": "P-256",
                       "x": encode(x), "y": encode(y)})
            }
            Signer::Hmac(_) | Signer::Nothing => panic!("no public key"),
        }
    }

    pub fn sign(&self, claims: &Value) -> String {
        self.sign_under(&json!({"typ": "JWT", "alg": self.alg(), "kid": self.kid}), claims)
    }

    pub fn sign_under(&self, header: &Value, claims: &Value) -> String {
        let message = format!("{}.{}", encode(header.to_string().as_bytes()), encode(claims.to_string().as_bytes()));
        let random = SystemRandom::new();
        let signature = match &self.signer {
            Signer::Rsa(pair) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message.as_bytes(), &mut signature).unwrap();
                signature
            }
            Signer::Ec(pair) => pair.sign(&random, message.as_bytes()).unwrap().as_ref().to_vec(),
            Signer::Hmac(secret) => {
                hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message.as_bytes()).as_ref().to_vec()
            }
            Signer::Nothing => Vec::new(),
        };
        format!("{message}.{}", encode(&signature))
    }
}

pub fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

#[derive(Clone, Copy)]
pub enum Mood {
    Well,
    Down,
    /// Answers once [`Issuer::release`] was called.
    Silent,
    Redirecting,
    Verbose,
}

#[derive(Clone)]
pub struct Issuer {
    pub name: String,
    inner: Arc<Inner>,
}

struct Inner {
    mood: Mutex<Mood>,
    configuration: Mutex<Value>,
    keys: Mutex<Value>,
    released: Semaphore,
    discoveries: AtomicUsize,
    fetches: AtomicUsize,
    elsewhere: AtomicUsize,
}

impl Issuer {
    pub async fn start(keys: &[&Key]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let name = format!("http://{}/pool", listener.local_addr().unwrap());
        let configuration = json!({"issuer": name, "jwks_uri": format!("{name}/keys")});
        let inner = Arc::new(Inner {
            mood: Mutex::new(Mood::Well),
            configuration: Mutex::new(configuration),
            keys: Mutex::default(),
            released: Semaphore::new(0),
            discoveries: AtomicUsize::new(0),
            fetches: AtomicUsize::new(0),
            elsewhere: AtomicUsize::new(0),
        });
        let router = Router::new()
            .route("/pool/.well-known/openid-configuration", get(discover))
            .route("/pool/keys", get(fetch))
            .route("/pool/elsewhere", get(elsewhere))
            .with_state(inner.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        let issuer = Self { name, inner };
        issuer.publish(keys.iter().map(|key| key.jwk()).collect());
        issuer
    }

    pub fn publish(&self, jwks: Vec<Value>) {
        *self.inner.keys.lock().unwrap() = json!({"keys": jwks});
    }

    pub fn configure(&self, member: &str, value: &str) {
        self.inner.configuration.lock().unwrap()[member] = value.into();
    }

    pub fn is(&self, mood: Mood) {
        *self.inner.mood.lock().unwrap() = mood;
    }

    pub fn release(&self) {
        self.inner.released.add_permits(Semaphore::MAX_PERMITS / 2);
    }

    pub fn discoveries(&self) -> usize {
        self.inner.discoveries.load(Ordering::SeqCst)
    }

    pub fn fetches(&self) -> usize {
        self.inner.fetches.load(Ordering::SeqCst)
    }

    pub fn elsewhere(&self) -> usize {
        self.inner.elsewhere.load(Ordering::SeqCst)
    }

    /// Claims that count for a long while.
    pub fn claims(&self) -> Value {
        json!({"iss": self.name, "aud": AUDIENCE, "sub": "alice", "exp": NOW + 10 * 86_400})
    }
}

async fn discover(State(issuer): State<Arc<Inner>>) -> Response {
    issuer.discoveries.fetch_add(1, Ordering::SeqCst);
    let configuration = issuer.configuration.lock().unwrap().clone();
    Json(configuration).into_response()
}

async fn fetch(State(issuer): State<Arc<Inner>>) -> Response {
    issuer.fetches.fetch_add(1, Ordering::SeqCst);
    let mood = *issuer.mood.lock().unwrap();
    match mood {
        Mood::Down => return StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        Mood::Redirecting => return Redirect::temporary("/pool/elsewhere").into_response(),
        Mood::Verbose => {
            let mut keys = issuer.keys.lock().unwrap().clone();
            keys["padding"] = "x".repeat(256 * 1024).into();
            return Json(keys).into_response();
        }
        Mood::Silent => drop(issuer.released.acquire().await),
        Mood::Well => {}
    }
    let keys = issuer.keys.lock().unwrap().clone();
    Json(keys).into_response()
}

async fn elsewhere(State(issuer): State<Arc<Inner>>) -> Json<Value> {
    issuer.elsewhere.fetch_add(1, Ordering::SeqCst);
    let keys = issuer.keys.lock().unwrap().clone();
    Json(keys)
}

//! The API key in Secrets Manager: how it is found and rotated, and what each mistake is called.

use std::time::Duration;

use aws_sdk_secretsmanager::Client;
use aws_sdk_secretsmanager::primitives::Blob;
use emulators::{Moto, configuration};
use shared::api_key::{ApiKey, ApiKeys, Secret, Source};
use shared::backend::BackendError;
use tokio::time::timeout;

use crate::canned::{Canned, ServiceError};

const MEMBER: &str = "AmberfloApiKey";

fn source(url: &str, name: &str) -> Source {
    Source::SecretsManager(Secret::new(&configuration(url), name, MEMBER).unwrap())
}

async fn load_error(url: &str, name: &str) -> BackendError {
    ApiKeys::load(source(url, name)).await.err().unwrap()
}

async fn moto(suite: &str) -> Option<(Moto, Client)> {
    match Moto::start().await {
        Ok(moto) => {
            let client = Client::new(&configuration(&moto.url));
            Some((moto, client))
        }
        Err(reason) => {
            emulators::skip(suite, &reason);
            None
        }
    }
}

async fn create(client: &Client, name: &str, text: &str) -> String {
    client.create_secret().name(name).secret_string(text).send().await.unwrap().arn.unwrap()
}

#[tokio::test]
async fn every_mistake_in_a_secret_is_one_line_that_names_it_and_shows_nothing_of_it() {
    let Some((moto, client)) = moto("secrets-mistakes").await else { return };
    create(&client, "text", "s3cret").await;
    create(&client, "list", r#"["s3cret"]"#).await;
    create(&client, "other", r#"{"Other": "s3cret"}"#).await;
    create(&client, "number", r#"{"AmberfloApiKey": 53}"#).await;
    create(&client, "empty", r#"{"AmberfloApiKey": "", "a": "s3cret"}"#).await;
    create(&client, "deleted", r#"{"AmberfloApiKey": "s3cret"}"#).await;
    client.delete_secret().secret_id("deleted").recovery_window_in_days(7).send().await.unwrap();
    client.create_secret().name("binary").secret_binary(Blob::new(*b"s3cret")).send().await.unwrap();
    client.create_secret().name("unset").send().await.unwrap();

    for (name, setting, reason) in [
        ("none", "API_KEY_SECRET_NAME", "find the specified secret"),
        ("unset", "API_KEY_SECRET_NAME", "find the specified secret"),
        ("deleted", "API_KEY_SECRET_NAME", "marked"),
        ("binary", "API_KEY_SECRET_NAME", "is binary"),
        ("text", "API_KEY_SECRET_NAME", "is not JSON"),
        ("list", "API_KEY_SECRET_NAME", "no object"),
        ("other", "API_KEY_SECRET_ID", "no member \"AmberfloApiKey\""),
        ("number", "API_KEY_SECRET_ID", "not a string"),
        ("empty", "API_KEY_SECRET_ID", "is empty"),
    ] {
        let error = load_error(&moto.url, name).await;
        let BackendError::Misconfigured(text) = error else { panic!("{name}: {error}") };
        assert!(text.starts_with(setting) && text.contains(reason) && text.contains(name), "{name}: {text}");
        assert!(!text.contains("s3cret") && !text.contains('\n'), "{name}: {text}");
    }
}

#[tokio::test]
async fn a_rotated_key_takes_effect_without_a_restart_and_a_broken_one_does_not() {
    let Some((moto, client)) = moto("secrets-rotation").await else { return };
    let arn = create(&client, "rotated", r#"{"AmberfloApiKey": "first"}"#).await;
    let key = |text: &str| ApiKey::new(text).unwrap();
    let put = async |text: &str| {
        client.put_secret_value().secret_id("rotated").secret_string(text).send().await.unwrap();
    };

    let keys = ApiKeys::load(source(&moto.url, &arn)).await.unwrap();
    let mut current = keys.subscribe();
    assert_eq!(*current.borrow_and_update(), key("first"));

    put("no JSON").await;
    keys.refresh().await;
    assert!(!current.has_changed().unwrap(), "a failed refresh keeps the key");

    put(r#"{"AmberfloApiKey": "second"}"#).await;
    let every = tokio::spawn({
        let keys = keys.clone();
        async move { keys.refresh_every(Duration::from_millis(50)).await }
    });
    timeout(Duration::from_secs(20), current.changed()).await.unwrap().unwrap();
    assert_eq!(*current.borrow_and_update(), key("second"), "the timer finds it");
    every.abort();

    put(r#"{"AmberfloApiKey": "third"}"#).await;
    let keys = ApiKeys::load(source(&moto.url, "rotated")).await.unwrap();
    let mut current = keys.subscribe();
    put(r#"{"AmberfloApiKey": "fourth"}"#).await;
    keys.refresh().await;
    assert_eq!(*current.borrow_and_update(), key("fourth"), "Amberflo's refusal finds it");
}

#[tokio::test]
async fn refusals_of_aws_are_mistakes_and_failures_of_aws_are_outages() {
    let denied = "User: arn:aws:iam::1:user/u is not authorized to perform: secretsmanager:GetSecretValue";
    for (status, code, message, is_mistake) in [
        (400, "AccessDeniedException", denied, true),
        (400, "AccessDeniedException", "Access to KMS is not allowed", true),
        (400, "DecryptionFailure", "can't decrypt the protected secret text using the provided KMS key", true),
        (400, "InvalidRequestException", "the secret was marked for deletion", true),
        (400, "UnrecognizedClientException", "The security token included in the request is invalid.", true),
        (400, "ThrottlingException", "Rate exceeded", false),
        (500, "InternalServiceError", "An error occurred on the server side.", false),
    ] {
        let server = Canned::start(move |_, _| Err(ServiceError(status, code, message))).await;
        let error = load_error(&server.url, "key").await;
        assert_eq!(matches!(error, BackendError::Misconfigured(_)), is_mistake, "{error}");
        assert_eq!(matches!(error, BackendError::Unavailable(_)), !is_mistake, "{error}");
        let text = error.to_string();
        assert!(text.starts_with("API_KEY_SECRET_NAME: the secret \"key\"") && text.contains(message), "{text}");
    }
    let server = Canned::start(|_, _| Err(ServiceError(500, "", ""))).await;
    let url = server.url.clone();
    server.stop().await;
    let error = load_error(&url, "key").await;
    assert!(matches!(error, BackendError::Unavailable(_)), "nobody answers: {error}");
}

#[test]
fn names_that_cannot_be_a_secret_are_refused_before_any_call() {
    let config = configuration("http://127.0.0.1:1");
    for (name, member, setting) in [
        ("", "member", "API_KEY_SECRET_NAME"),
        ("a secret", "member", "API_KEY_SECRET_NAME"),
        ("arn:aws:secretsmanager:eu-west-1:123456789012:secret:a-AbCdEf", "member", "eu-west-1"),
        ("secret", "", "API_KEY_SECRET_ID"),
    ] {
        let error = Secret::new(&config, name, member).unwrap_err();
        assert!(matches!(&error, BackendError::Misconfigured(text) if text.contains(setting)), "{error}");
    }
    let shown = format!("{:?}", source("http://127.0.0.1:1", "secret"));
    assert!(shown.contains("secret") && shown.contains(MEMBER) && !shown.contains("emulated"), "{shown}");
}

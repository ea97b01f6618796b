//! The key in a secret of AWS Secrets Manager: a JSON object, one member of which is the key.
//!
//! The settings are those of the original plugin, amberflo/sbt-aws-amberflo, whose function reads
//! `json(secret API_KEY_SECRET_NAME)[API_KEY_SECRET_ID]`. The IAM action it needs on the secret is
//! `secretsmanager:GetSecretValue`, and `kms:Decrypt` where the secret has a key of its own.

use std::fmt;

use aws_config::SdkConfig;
use aws_sdk_secretsmanager::Client;
use aws_sdk_secretsmanager::error::{ProvideErrorMetadata as _, SdkError};
use aws_sdk_secretsmanager::operation::get_secret_value::GetSecretValueError;
use serde_json::Value;

use super::ApiKey;
use crate::backend::{BackendError, aws};

/// The version that a rotation makes the valid one.
const STAGE: &str = "AWSCURRENT";

/// One member of a secret. Its `Debug` shows where the key is, and nothing of it.
#[derive(Clone)]
pub struct Secret {
    client: Client,
    name: String,
    member: String,
    /// For errors.
    region: String,
}

impl Secret {
    /// The member `member` of the secret with this name or ARN; nothing is read yet.
    ///
    /// # Errors
    /// [`BackendError::Misconfigured`] for a name that cannot be one, or an ARN of another service or region.
    pub fn new(config: &SdkConfig, name: &str, member: &str) -> Result<Self, BackendError> {
        let region = config.region().map_or("", |region| region.as_ref());
        check(name, region).map_err(|error| refused(format!("API_KEY_SECRET_NAME: {name:?}: {error}")))?;
        if member.is_empty() {
            return Err(refused("API_KEY_SECRET_ID: empty; allowed is the name of a member of the secret".to_owned()));
        }
        Ok(Self {
            client: Client::new(config),
            name: name.to_owned(),
            member: member.to_owned(),
            region: region.to_owned(),
        })
    }

    pub(super) async fn read(&self) -> Result<ApiKey, BackendError> {
        let answer = self.client.get_secret_value().secret_id(&self.name).version_stage(STAGE).send().await;
        let secret = answer.map_err(|error| self.error(&error))?;
        let name = &self.name;
        let Some(text) = secret.secret_string() else {
            return Err(refused(format!(
                "API_KEY_SECRET_NAME: the secret {name:?} is binary; allowed is a JSON object"
            )));
        };
        let member = member(text, &self.member);
        member.map_err(|(setting, error)| refused(format!("{setting}: the secret {name:?} {error}")))
    }

    fn error(&self, error: &SdkError<GetSecretValueError>) -> BackendError {
        let attempt = format!("API_KEY_SECRET_NAME: the secret {:?} in {}", self.name, self.region);
        let code = error.as_service_error().and_then(GetSecretValueError::code);
        // Errors of this service that the same call will meet again: a secret that is scheduled for deletion or has no
        // value for the stage, and a KMS key that is disabled, deleted or foreign.
        if let Some(code @ ("InvalidRequestException" | "DecryptionFailure")) = code {
            let message = error.as_service_error().and_then(GetSecretValueError::message).unwrap_or("no message");
            return refused(format!("{attempt}: {code}: {message}"));
        }
        aws::error(&attempt, error)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret").field("name", &self.name).field("member", &self.member).finish_non_exhaustive()
    }
}

fn refused(error: String) -> BackendError {
    BackendError::Misconfigured(error)
}

fn check(name: &str, region: &str) -> Result<(), String> {
    const ALLOWED: &str = "allowed is the name of a secret, or arn:PARTITION:secretsmanager:REGION:ACCOUNT:secret:NAME";
    if name.starts_with("arn:") {
        return match name.splitn(7, ':').collect::<Vec<_>>()[..] {
            [_, _, "secretsmanager", there, _, "secret", secret] if !secret.is_empty() => {
                if there == region {
                    Ok(())
                } else {
                    Err(format!("it is in the region {there}, the AWS configuration says {region}; set AWS_REGION"))
                }
            }
            _ => Err(format!("this is not the ARN of a secret; {ALLOWED}")),
        };
    }
    // Source: CreateSecret in the API reference of Secrets Manager.
    let is_allowed = |c: u8| c.is_ascii_alphanumeric() || b"/_+=.@-".contains(&c);
    if (1..=512).contains(&name.len()) && name.bytes().all(is_allowed) {
        Ok(())
    } else {
        Err(format!("a name has 1 to 512 letters, digits and /_+=.@-; {ALLOWED}"))
    }
}

/// The key in a secret's text, or the setting that is to blame and what is wrong. Nothing of the text is shown.
fn member(text: &str, name: &str) -> Result<ApiKey, (&'static str, String)> {
    const NAME: &str = "API_KEY_SECRET_NAME";
    const ID: &str = "API_KEY_SECRET_ID";
    let value: Value = serde_json::from_str(text)
        .map_err(|_| (NAME, format!("is not JSON; allowed is an object such as {{{name:?}: \"the key\"}}")))?;
    let Value::Object(members) = value else {
        return Err((NAME, format!("is JSON but no object; allowed is one such as {{{name:?}: \"the key\"}}")));
    };
    match members.get(name) {
        Some(Value::String(key)) => {
            ApiKey::new(key).map_err(|error| (ID, format!("has a bad member {name:?}: {error}")))
        }
        Some(_) => Err((ID, format!("has a member {name:?} that is not a string"))),
        None => Err((ID, format!("has no member {name:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_arns_of_secrets_are_told_from_others() {
        for good in [
            "AmberfloApiKey",
            "prod/amberflo_key+1=a.b@c-d",
            "arn:aws:secretsmanager:eu-west-1:123456789012:secret:prod/amberflo-AbCdEf",
            "arn:aws-cn:secretsmanager:eu-west-1:123456789012:secret:a",
        ] {
            assert_eq!(check(good, "eu-west-1"), Ok(()), "{good}");
        }
        for bad in
            ["", "a b", "ä", "arn:", "arn:aws:sqs:eu-west-1:123456789012:q", "arn:aws:secretsmanager:eu-west-1:1:x:y"]
        {
            assert!(check(bad, "eu-west-1").unwrap_err().contains("allowed is"), "{bad:?}");
        }
        let elsewhere = check("arn:aws:secretsmanager:us-east-2:123456789012:secret:a", "eu-west-1").unwrap_err();
        assert!(elsewhere.contains("us-east-2") && elsewhere.contains("eu-west-1"), "{elsewhere}");
    }

    #[test]
    fn the_key_is_one_member_and_errors_show_nothing_of_the_secret() {
        assert_eq!(member(r#"{"other": 1, "Key": " s3cret "}"#, "Key").unwrap().header(), "s3cret");
        for (text, error) in [
            ("s3cret", "not JSON"),
            (r#"{"Key": "s3cret""#, "not JSON"),
            ("", "not JSON"),
            (r#""s3cret""#, "no object"),
            (r#"["s3cret"]"#, "no object"),
            (r#"{"key": "s3cret"}"#, "no member \"Key\""),
            (r#"{"Key": {"s3cret": 1}}"#, "not a string"),
            (r#"{"Key": null, "a": "s3cret"}"#, "not a string"),
            (r#"{"Key": "", "a": "s3cret"}"#, "is empty"),
            (r#"{"Key": "s3cret s3cret"}"#, "visible ASCII"),
        ] {
            let (_, found) = member(text, "Key").unwrap_err();
            assert!(found.contains(error) && !found.contains("s3cret") && !found.contains('\n'), "{text}: {found}");
        }
    }
}

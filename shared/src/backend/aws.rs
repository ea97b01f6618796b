//! What the ends on AWS have in common: one configuration, and one reading of the SDKs' errors.
//!
//! Credentials, region, endpoints and retries come from where every AWS SDK takes them: environment variables
//! (`AWS_REGION`, `AWS_PROFILE`, `AWS_ENDPOINT_URL`, `AWS_ENDPOINT_URL_KINESIS`, `AWS_USE_FIPS_ENDPOINT`,
//! `AWS_MAX_ATTEMPTS`, ...), the profile files, SSO, web identity, and the container's or machine's metadata service.

use std::error::Error;
use std::time::Duration;

use aws_config::environment::{EnvironmentVariableCredentialsProvider, EnvironmentVariableRegionProvider};
use aws_config::meta::credentials::CredentialsProviderChain;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::{ProfileFileCredentialsProvider, ProfileFileRegionProvider};
use aws_config::provider_config::ProviderConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, ConfigLoader, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_kinesis::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use aws_types::service_config::ServiceConfigKey;

use super::BackendError;

/// An attempt that has no answer after this long is made again.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Codes of errors that the same call will meet again until somebody changes something.
/// Source: the common errors of the AWS APIs, and those of the four services used here.
const MISCONFIGURED: &[&str] = &[
    "AccessDenied",
    "AccessDeniedException",
    "InvalidAddress",
    "InvalidArgumentException",
    "InvalidClientTokenId",
    "InvalidParameterException",
    "InvalidParameterValue",
    "InvalidSignatureException",
    "IncompleteSignature",
    "MissingAuthenticationToken",
    "MissingAuthenticationTokenException",
    "NotAuthorized",
    "OptInRequired",
    "ResourceNotFoundException",
    "AWS.SimpleQueueService.NonExistentQueue",
    "QueueDoesNotExist",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
    "UnsupportedOperation",
    "UnsupportedOperationException",
    "ValidationError",
    "ValidationException",
];

/// Reads the configuration that all clients share. `region` counts where the environment and the profile name none.
///
/// # Errors
/// [`BackendError::Misconfigured`] when no region is known.
pub async fn configuration(region: Option<&str>) -> Result<SdkConfig, BackendError> {
    let configuration = loader().load().await;
    match (configuration.region(), region) {
        (Some(_), _) => Ok(configuration),
        (None, Some(region)) => Ok(configuration.into_builder().region(Region::new(region.to_owned())).build()),
        (None, None) => {
            Err(BackendError::Misconfigured("no AWS region: set AWS_REGION, or a region in the AWS profile".to_owned()))
        }
    }
}

/// Reads the configuration of a client that works without AWS: of a service that listens at `endpoint` unless the
/// environment or the profile names an endpoint for `service_id`. Where they name no region or credentials, placeholders
/// do: nothing on this machine checks them.
pub async fn configuration_without_aws(service_id: &'static str, endpoint: &str) -> SdkConfig {
    // Without these the SDK asks a metadata service that is not there, for seconds.
    let region = RegionProviderChain::first_try(EnvironmentVariableRegionProvider::new())
        .or_else(ProfileFileRegionProvider::new())
        .or_else(Region::from_static("us-east-1"));
    let configuration = loader().region(region).load().await;
    let placeholder = Credentials::new("local", "local", None, None, "placeholder");
    if !has_own_endpoint(&configuration, service_id) {
        let credentials = SharedCredentialsProvider::new(placeholder);
        return configuration.into_builder().endpoint_url(endpoint).credentials_provider(credentials).build();
    }
    let mut provider_config = ProviderConfig::without_region().with_region(configuration.region().cloned());
    // It panics where it is given none: the SDK's own is left out of this build.
    if let Some(http) = configuration.http_client() {
        provider_config = provider_config.with_http_client(http);
    }
    let profile = ProfileFileCredentialsProvider::builder().configure(&provider_config).build();
    let credentials = CredentialsProviderChain::first_try("Environment", EnvironmentVariableCredentialsProvider::new())
        .or_else("Profile", profile)
        .or_else("Placeholder", placeholder);
    let credentials = SharedCredentialsProvider::new(credentials);
    configuration.into_builder().credentials_provider(credentials).build()
}

fn loader() -> ConfigLoader {
    let http = aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https();
    let timeouts =
        TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).operation_attempt_timeout(ATTEMPT_TIMEOUT).build();
    aws_config::defaults(BehaviorVersion::v2026_01_12()).http_client(http).timeout_config(timeouts)
}

/// Whether the environment or the profile names an endpoint for this service, or one for all.
#[must_use]
pub fn has_own_endpoint(config: &SdkConfig, service_id: &'static str) -> bool {
    let key =
        ServiceConfigKey::builder().service_id(service_id).env("AWS_ENDPOINT_URL").profile("endpoint_url").build();
    let of_service = || config.service_config()?.load_config(key.ok()?);
    config.endpoint_url().is_some() || of_service().is_some()
}

/// The error of an AWS call, with what was attempted and, where there is one, the service's own message.
pub fn error<E, R>(attempt: &str, error: &SdkError<E, R>) -> BackendError
where
    E: ProvideErrorMetadata + Error + 'static,
    R: std::fmt::Debug + 'static,
{
    match (error.code(), error) {
        (Some(code), SdkError::ServiceError(_)) => {
            let text = one_line(&format!("{attempt}: {code}: {}", error.message().unwrap_or("no message")));
            if MISCONFIGURED.contains(&code) {
                BackendError::Misconfigured(text)
            } else {
                BackendError::Unavailable(text)
            }
        }
        // The chain of causes says which credentials were looked for, or which address did not answer.
        _ => {
            let text = one_line(&format!("{attempt}: {}", causes(error)));
            if is_about_credentials(error) {
                BackendError::Misconfigured(format!(
                    "no AWS credentials: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run with a \
                     role ({text})"
                ))
            } else {
                BackendError::Unavailable(text)
            }
        }
    }
}

/// The chain of credential providers lists what it attempted on lines of their own.
fn one_line(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.join("; ").replace(":; ", ": ").replace(char::is_control, " ")
}

/// The error and its causes.
fn causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Wrappers often say what they wrap.
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

/// No credentials at all is a mistake of the settings; a provider that does not answer is an outage.
fn is_about_credentials(error: &(dyn Error + 'static)) -> bool {
    use aws_credential_types::provider::error::CredentialsError;
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<CredentialsError>() {
            return matches!(
                error,
                CredentialsError::CredentialsNotLoaded(_) | CredentialsError::InvalidConfiguration(_)
            );
        }
        cause = error.source();
    }
    false
}

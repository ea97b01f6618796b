//! The settings of access.

use std::net::SocketAddr;

use clap::Args;
use shared::service::ConfigError;

use super::issuer::trusted_url;

/// Who vouches for a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthMode {
    /// The issuer's signature on a bearer token, which we check.
    Jwt,
    /// API Gateway's JWT authorizer.
    Gateway,
    /// Nobody: whoever reaches the loopback address.
    None,
}

/// Settings of access. An empty one counts as none.
#[derive(Clone, Debug, Args)]
pub struct AuthArgs {
    /// Who may call: `jwt` (bearers of JWT_ISSUER's tokens), `gateway` (as a Lambda: whom API Gateway's JWT authorizer let
    /// in), or `none` (anybody on this machine; LISTEN must be a loopback address).
    #[arg(long, env, default_value = "jwt", value_parser = mode, value_name = "MODE", help_heading = "Access")]
    pub auth: AuthMode,
    /// The issuer of tokens, exactly as their `iss` has it.
    #[arg(long, env, value_name = "URL", help_heading = "Access")]
    pub jwt_issuer: Option<String>,
    /// The audiences of which a token must name one, separated by commas; for Cognito's access tokens, the client ids.
    #[arg(long, env, value_delimiter = ',', value_name = "AUDIENCE", help_heading = "Access")]
    pub jwt_audience: Vec<String>,
    /// Where the issuer's keys are. Default: where its /.well-known/openid-configuration says.
    #[arg(long, env, value_name = "URL", help_heading = "Access")]
    pub jwks_url: Option<String>,
    /// The scope that GET and HEAD need. Default: none.
    #[arg(long, env, value_name = "SCOPE", help_heading = "Access")]
    pub scope_read: Option<String>,
    /// The scope that every other method needs. Default: none.
    #[arg(long, env, value_name = "SCOPE", help_heading = "Access")]
    pub scope_write: Option<String>,
}

impl AuthArgs {
    /// Checks what a single value cannot show. `listen` is where the API answers; `None` in a Lambda.
    ///
    /// # Errors
    /// One line that names the setting, what was given and what is allowed.
    pub fn check(&self, listen: Option<SocketAddr>) -> Result<(), ConfigError> {
        let fault = |line: String| Err(ConfigError(line));
        match (self.auth, listen) {
            (AuthMode::Gateway, Some(_)) => {
                return fault("AUTH: gateway, but this is no Lambda; allowed is jwt, or none on loopback".to_owned());
            }
            (AuthMode::None, None) => {
                return fault("AUTH: none, but this is a Lambda; allowed is jwt or gateway".to_owned());
            }
            (AuthMode::None, Some(listen)) if !listen.ip().is_loopback() => {
                return fault(format!(
                    "AUTH: none, but LISTEN is {listen}; allowed is jwt, or a LISTEN on loopback, such as 127.0.0.1:{}",
                    listen.port()
                ));
            }
            (AuthMode::Jwt, _) => self.check_jwt()?,
            _ => self.check_unused()?,
        }
        for (name, scope) in [("SCOPE_READ", self.scope_read()), ("SCOPE_WRITE", self.scope_write())] {
            // The characters of a scope: RFC 6749, section 3.3.
            let is_scope = |scope: &str| scope.bytes().all(|byte| matches!(byte, b'!' | b'#'..=b'[' | b']'..=b'~'));
            match scope {
                Some(scope) if !is_scope(scope) => {
                    return fault(format!(
                        "{name}: {scope:?} is not one scope; allowed is visible ASCII but quotes and backslashes"
                    ));
                }
                Some(scope) if self.auth == AuthMode::None => {
                    return fault(format!("{name}: {scope:?}, but AUTH=none checks no scopes; allowed is none"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn check_jwt(&self) -> Result<(), ConfigError> {
        let Some(issuer) = self.issuer() else {
            return Err(ConfigError(
                "JWT_ISSUER: none is given, but AUTH is jwt; allowed is the https URL of the tokens' issuer".to_owned(),
            ));
        };
        let clean = trusted_url(issuer).is_some_and(|url| url.query().is_none());
        if !clean {
            return Err(ConfigError(format!(
                "JWT_ISSUER: {} is not an issuer; allowed is https://HOST/PATH, or http:// on loopback",
                shown(issuer)
            )));
        }
        if self.audiences().next().is_none() {
            return Err(ConfigError(
                "JWT_AUDIENCE: none is given, but AUTH is jwt; allowed is one audience, or several with commas between"
                    .to_owned(),
            ));
        }
        match self.jwks_url() {
            Some(url) if trusted_url(url).is_none() => Err(ConfigError(format!(
                "JWKS_URL: {} cannot be trusted; allowed is https://HOST/PATH, or http:// on loopback",
                shown(url)
            ))),
            _ => Ok(()),
        }
    }

    /// A check that somebody asked for and that would not take place must not pass in silence.
    fn check_unused(&self) -> Result<(), ConfigError> {
        let given =
            [("JWT_ISSUER", self.issuer()), ("JWT_AUDIENCE", self.audiences().next()), ("JWKS_URL", self.jwks_url())];
        let mode = if self.auth == AuthMode::Gateway { "gateway" } else { "none" };
        match given.into_iter().find_map(|(name, value)| Some((name, value?))) {
            Some((name, value)) => Err(ConfigError(format!(
                "{name}: {}, but AUTH={mode} checks no tokens; allowed is none, or AUTH=jwt",
                shown(value)
            ))),
            None => Ok(()),
        }
    }

    pub(super) fn issuer(&self) -> Option<&str> {
        text(&self.jwt_issuer)
    }

    pub(super) fn audiences(&self) -> impl Iterator<Item = &str> {
        self.jwt_audience.iter().map(|audience| audience.trim()).filter(|audience| !audience.is_empty())
    }

    pub(super) fn jwks_url(&self) -> Option<&str> {
        text(&self.jwks_url)
    }

    pub(super) fn scope_read(&self) -> Option<&str> {
        text(&self.scope_read)
    }

    pub(super) fn scope_write(&self) -> Option<&str> {
        text(&self.scope_write)
    }
}

fn text(setting: &Option<String>) -> Option<&str> {
    setting.as_deref().filter(|text| !text.is_empty())
}

/// A URL with an `@` may hold a password, so it is not shown.
fn shown(url: &str) -> String {
    if url.contains('@') { "a URL with a user name or password".to_owned() } else { format!("{url:?}") }
}

fn mode(text: &str) -> Result<AuthMode, String> {
    match text {
        "" | "jwt" => Ok(AuthMode::Jwt),
        "gateway" => Ok(AuthMode::Gateway),
        "none" => Ok(AuthMode::None),
        _ => Err("allowed is jwt, gateway or none".to_owned()),
    }
}

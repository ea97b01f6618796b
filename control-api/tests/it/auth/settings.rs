//! The settings: nothing that is open to a network, and no check that silently does not take place.

use clap::Parser;

use super::{Cli, LOOPBACK, args};

#[test]
fn what_may_start() {
    let jwt = ["--jwt-issuer", "https://idp.example/pool", "--jwt-audience", "a"];
    let open = "0.0.0.0:8080".parse().ok();
    let local = Some(LOOPBACK);
    let v6 = "[::1]:8080".parse().ok();
    for (flags, listen, fault) in [
        (&[][..], local, Some("JWT_ISSUER: none is given")),
        (&["--auth", ""], local, Some("JWT_ISSUER: none is given")),
        (&["--jwt-issuer", "", "--jwt-audience", "a"], local, Some("JWT_ISSUER: none is given")),
        (&["--jwt-issuer", "https://idp.example"], local, Some("JWT_AUDIENCE: none is given")),
        (&["--jwt-issuer", "https://idp.example", "--jwt-audience", " ,"], open, Some("JWT_AUDIENCE: none is given")),
        (
            &["--jwt-issuer", "http://idp.example", "--jwt-audience", "a"],
            open,
            Some("JWT_ISSUER: \"http://idp.example\""),
        ),
        (&["--jwt-issuer", "http://localhost.evil.example", "--jwt-audience", "a"], open, Some("JWT_ISSUER: ")),
        (&["--jwt-issuer", "https://idp.example?a", "--jwt-audience", "a"], open, Some("JWT_ISSUER: ")),
        (&["--jwt-issuer", "https://idp.example ", "--jwt-audience", "a"], open, Some("JWT_ISSUER: ")),
        (&["--jwt-issuer", "idp.example", "--jwt-audience", "a"], open, Some("JWT_ISSUER: \"idp.example\"")),
        (
            &["--jwt-issuer", "https://u:secret@idp.example", "--jwt-audience", "a"],
            open,
            Some("JWT_ISSUER: a URL with"),
        ),
        (&["--jwt-issuer", "http://127.0.0.1:9/pool", "--jwt-audience", "a"], open, None),
        (&jwt, open, None),
        (&jwt, None, None),
        (&[&jwt[..], &["--jwks-url", ""]].concat(), open, None),
        (&[&jwt[..], &["--jwks-url", "https://idp.example/keys?p=1"]].concat(), open, None),
        (&[&jwt[..], &["--jwks-url", "http://idp.example/keys"]].concat(), open, Some("JWKS_URL: ")),
        (&[&jwt[..], &["--scope-read", "a b"]].concat(), open, Some("SCOPE_READ: \"a b\"")),
        (&[&jwt[..], &["--scope-write", "a\""]].concat(), open, Some("SCOPE_WRITE: ")),
        (&[&jwt[..], &["--scope-write", "", "--scope-read", "m/r"]].concat(), open, None),
        (&["--auth", "gateway"], None, None),
        (&["--auth", "gateway", "--scope-write", "w"], None, None),
        (&["--auth", "gateway"], local, Some("AUTH: gateway, but this is no Lambda")),
        (&["--auth", "gateway"], open, Some("AUTH: gateway, but this is no Lambda")),
        (
            &["--auth", "gateway", "--jwt-issuer", "https://a"],
            None,
            Some("JWT_ISSUER: \"https://a\", but AUTH=gateway"),
        ),
        (&["--auth", "none"], local, None),
        (&["--auth", "none"], v6, None),
        (&["--auth", "none"], "127.9.9.9:1".parse().ok(), None),
        (&["--auth", "none"], open, Some("AUTH: none, but LISTEN is 0.0.0.0:8080")),
        (&["--auth", "none"], "[::]:8080".parse().ok(), Some("AUTH: none, but LISTEN")),
        (&["--auth", "none"], "192.168.1.7:8080".parse().ok(), Some("AUTH: none, but LISTEN")),
        (&["--auth", "none"], None, Some("AUTH: none, but this is a Lambda")),
        (&["--auth", "none", "--jwt-audience", "a"], local, Some("JWT_AUDIENCE: \"a\", but AUTH=none")),
        (&["--auth", "none", "--scope-write", "w"], local, Some("SCOPE_WRITE: \"w\", but AUTH=none")),
    ] {
        let found = args(flags).check(listen).err().map(|error| error.0);
        match (&found, fault) {
            (None, None) => {}
            (Some(line), Some(begins)) => {
                assert!(line.starts_with(begins) && line.contains("allowed is"), "{flags:?}: {line}");
                assert!(!line.contains('\n') && !line.contains("secret"), "{line}");
            }
            _ => panic!("{flags:?} {listen:?}: {found:?}, expected {fault:?}"),
        }
    }
}

#[test]
fn a_mode_that_does_not_exist() {
    let error = Cli::try_parse_from(["it", "--auth", "off"]).err().unwrap().to_string();
    assert!(error.contains("allowed is jwt, gateway or none"), "{error}");
}

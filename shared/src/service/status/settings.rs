//! The settings of a process, as they can be shown.

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};

const REDACTED: &str = "(redacted)";

/// A setting: what it is, and who says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The environment variable.
    pub name: String,
    /// The heading that `--help` shows it under.
    pub group: String,
    /// What it is set to, without secrets; `None` where it is not set and has no default.
    pub value: Option<String>,
    /// Who says so.
    pub source: SettingSource,
}

/// Who says what a setting is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SettingSource {
    /// Nobody.
    Default,
    /// The environment.
    Environment,
    /// A flag.
    Flag,
}

impl Setting {
    /// The settings of a command that can be given by environment variables, in its order.
    pub(crate) fn all(command: &Command, matches: &ArgMatches) -> Vec<Self> {
        command.get_arguments().filter_map(|argument| Self::of(argument, matches)).collect()
    }

    fn of(argument: &Arg, matches: &ArgMatches) -> Option<Self> {
        let name = argument.get_env()?.to_string_lossy().into_owned();
        let id = argument.get_id().as_str();
        let values = matches.try_get_raw(id).ok().flatten();
        let value = values.map(|values| values.map(|value| value.to_string_lossy()).collect::<Vec<_>>().join(","));
        let source = match matches.value_source(id) {
            Some(ValueSource::EnvVariable) => SettingSource::Environment,
            Some(ValueSource::CommandLine) => SettingSource::Flag,
            _ => SettingSource::Default,
        };
        let is_secret = argument.is_hide_env_values_set();
        let group = argument.get_help_heading().unwrap_or("Other").to_owned();
        Some(Self { name, group, value: value.map(|value| shown(value, is_secret)), source })
    }
}

/// A secret is not shown, nor a URL that may hold a password.
fn shown(value: String, is_secret: bool) -> String {
    let may_hold_password = value.contains("://") && value.contains('@');
    if (is_secret && !value.is_empty()) || may_hold_password { REDACTED.to_owned() } else { value }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Arguments {
        /// A key.
        #[arg(long, env = "STATUS_TEST_KEY", hide_env_values = true, help_heading = "Keys")]
        key: Option<String>,
        /// A URL.
        #[arg(long, env = "STATUS_TEST_URL", default_value = "http://host")]
        url: String,
        /// Several.
        #[arg(long, env = "STATUS_TEST_LIST", value_delimiter = ',')]
        list: Vec<String>,
        /// No setting.
        #[arg(long)]
        flag: bool,
    }

    fn all(arguments: &[&str]) -> Vec<(String, Option<String>, SettingSource)> {
        let arguments = [&["program"], arguments].concat();
        let (parsed, settings) = crate::service::parse_told::<Arguments>(arguments.iter().map(Into::into)).unwrap();
        assert_eq!(parsed.flag, arguments.contains(&"--flag"));
        settings.into_iter().map(|setting| (setting.name, setting.value, setting.source)).collect()
    }

    #[test]
    fn secrets_are_not_shown() {
        let key = "k3y-that-must-stay-secret";
        let given = all(&["--key", key, "--url", "http://user:password@host", "--list", "a,b", "--flag"]);
        let redacted = || Some(REDACTED.to_owned());
        assert_eq!(
            given,
            [
                ("STATUS_TEST_KEY".to_owned(), redacted(), SettingSource::Flag),
                ("STATUS_TEST_URL".to_owned(), redacted(), SettingSource::Flag),
                ("STATUS_TEST_LIST".to_owned(), Some("a,b".to_owned()), SettingSource::Flag),
            ]
        );
        let defaults: Vec<_> = all(&[]).into_iter().map(|(_, value, source)| (value, source)).collect();
        let default = SettingSource::Default;
        assert_eq!(defaults, [(None, default), (Some("http://host".to_owned()), default), (None, default)]);
    }
}

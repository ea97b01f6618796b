//! What only AWS can run: the commands as they stand, with an AWS CLI that checks a call and sends nothing.

use emulators::{REGION, skip};

use super::{AWS_ONLY, set_first, shell_blocks};
use crate::shell::{Shell, tools};

/// Of version 2 of the CLI; what tests have is version 1.
const ONLY_IN_VERSION_2: &str = "logs tail";
/// As long as any id has to be.
const ANSWER: &str = "arn:aws:ecs:us-east-1:111122223333:service/cluster/answer-of-aws";

#[tokio::test(flavor = "multi_thread")]
async fn each_call_is_one_that_the_aws_cli_knows_with_options_that_it_takes() {
    let cli = tools().join("python/bin/aws");
    if !cli.exists() {
        return skip("runbook-aws", "the AWS CLI is missing: run ingest-worker/tests/clients/setup.sh");
    }
    let variables = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"].map(|name| (name, "none".to_owned()));
    let region = [("AWS_DEFAULT_REGION", REGION.to_owned()), ("AWS_MAX_ATTEMPTS", "1".to_owned())];
    let mut shell = Shell::open(&[&variables[..], &region[..]].concat()).await;
    // It has checked names, options and their values when it finds that nobody listens there.
    shell.add_program(
        "aws",
        &format!(
            r#"echo "$1 $2" >>"$HOME/calls"
case "$1 $2" in '{ONLY_IN_VERSION_2}') exit 0;; esac
error=$('{}' "$@" --endpoint-url http://127.0.0.1:1 2>&1 >/dev/null)
case "$error" in *'Could not connect to the endpoint URL'*) echo '{ANSWER}'; exit 0;; esac
echo "aws $*: $error" >>"$HOME/refused""#,
            cli.display()
        ),
    );
    shell.add_program("npx", "test \"$1 $2\" = 'cdk deploy'");
    set_first(&mut shell, "").await;
    for block in shell_blocks().iter().filter(|block| block.mark == AWS_ONLY) {
        shell.paste(&block.text).await;
    }
    let refused = std::fs::read_to_string(shell.home.path().join("refused")).unwrap_or_default();
    assert_eq!(refused, "");
    let calls = std::fs::read_to_string(shell.home.path().join("calls")).unwrap();
    assert!(calls.lines().count() > 20, "{calls}");
}

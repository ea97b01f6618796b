//! Checks a queue's URL before the first call.

use http::Uri;

const ALLOWED: &str = "allowed is the URL of a standard queue, https://sqs.REGION.amazonaws.com/ACCOUNT/NAME";

/// What a queue's URL has to fit.
pub(super) struct Surroundings<'a> {
    /// The region that the client signs for.
    pub region: &'a str,
    /// Calls go to an endpoint that was set by hand, such as a proxy or an emulator: any host is right.
    pub has_own_endpoint: bool,
}

/// Says what is wrong with the URL, and what is allowed.
pub(super) fn check(url: &str, surroundings: &Surroundings<'_>) -> Result<(), String> {
    if url.starts_with("arn:") {
        return Err(format!("this is an ARN; {ALLOWED}"));
    }
    let uri: Uri = url.parse().map_err(|_| format!("this is not a URL; {ALLOWED}"))?;
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(format!("this is not a URL with a host; {ALLOWED}"));
    };
    if uri.query().is_some() || authority.as_str().contains('@') || url.contains('#') {
        return Err(format!("a queue's URL has no user, query or fragment; {ALLOWED}"));
    }
    let region = region(authority.host());
    if surroundings.has_own_endpoint {
        if !matches!(scheme, "http" | "https") {
            return Err(format!("the scheme is {scheme}; {ALLOWED}"));
        }
    } else if scheme != "https" || region.is_none() {
        return Err(format!("this is not an address of SQS; {ALLOWED}"));
    }
    let (account, name) = uri.path().rsplit_once('/').unwrap_or_default();
    if name.ends_with(".fifo") {
        return Err(format!("this is a FIFO queue, whose messages need a group; {ALLOWED}"));
    }
    let is_name = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_');
    if !(1..=80).contains(&name.len()) || !name.bytes().all(is_name) {
        return Err(format!("it does not end in a queue's name, 1 to 80 letters, digits, - and _; {ALLOWED}"));
    }
    let is_account = |text: &str| text.len() == 12 && text.bytes().all(|c| c.is_ascii_digit());
    if !surroundings.has_own_endpoint && !account.strip_prefix('/').is_some_and(is_account) {
        return Err(format!("it has no account of 12 digits before the name; {ALLOWED}"));
    }
    match region {
        Some(region) if region != surroundings.region => Err(format!(
            "the queue is in the region {region}, the AWS configuration says {}; set AWS_REGION, or give a queue there",
            surroundings.region
        )),
        _ => Ok(()),
    }
}

/// The region in the name of an SQS endpoint, in whatever partition: `sqs.REGION.SUFFIX`, `sqs-fips.REGION.SUFFIX`,
/// `REGION.queue.SUFFIX`, `queue.amazonaws.com` (us-east-1) and `ID.sqs.REGION.vpce.SUFFIX`.
/// Source: the tables of SQS endpoints and of PrivateLink's in the AWS documentation.
fn region(host: &str) -> Option<&str> {
    let labels: Vec<&str> = host.split('.').collect();
    let region = match labels.as_slice() {
        ["queue", "amazonaws", "com"] => "us-east-1",
        ["sqs" | "sqs-fips", region, _, _, ..] | [region, "queue", _, _, ..] => region,
        [_, "sqs" | "sqs-fips", region, "vpce", _, _, ..] => region,
        [_, _, "sqs" | "sqs-fips", region, "vpce", _, _, ..] => region,
        _ => return None,
    };
    // us-east-1, us-gov-west-1, cn-north-1, eusc-de-east-1, us-isob-east-1
    let is_region = region.contains('-') && region.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-');
    is_region.then_some(region)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(url: &str, region: &str, has_own_endpoint: bool) -> Result<(), String> {
        check(url, &Surroundings { region, has_own_endpoint })
    }

    #[test]
    fn takes_the_urls_of_every_partition() {
        for (host, region) in [
            ("sqs.eu-west-1.amazonaws.com", "eu-west-1"),
            ("sqs.cn-north-1.amazonaws.com.cn", "cn-north-1"),
            ("sqs.us-gov-west-1.amazonaws.com", "us-gov-west-1"),
            ("sqs-fips.us-east-2.amazonaws.com", "us-east-2"),
            ("sqs.us-east-1.api.aws", "us-east-1"),
            ("sqs.eusc-de-east-1.amazonaws.eu", "eusc-de-east-1"),
            ("sqs.us-isob-east-1.sc2s.sgov.gov", "us-isob-east-1"),
            ("us-west-2.queue.amazonaws.com", "us-west-2"),
            ("queue.amazonaws.com", "us-east-1"),
            ("vpce-1-2.sqs.eu-north-1.vpce.amazonaws.com", "eu-north-1"),
        ] {
            let url = format!("https://{host}/123456789012/dead-letters_1");
            assert_eq!(verdict(&url, region, false), Ok(()), "{url}");
            let elsewhere = verdict(&url, "ap-south-1", false).unwrap_err();
            assert!(elsewhere.contains(region) && elsewhere.contains("ap-south-1"), "both are named: {elsewhere}");
        }
    }

    #[test]
    fn says_what_is_wrong_and_what_is_allowed() {
        for (url, reason) in [
            ("", "not a URL"),
            ("dead-letters", "not a URL"),
            ("arn:aws:sqs:us-east-1:123456789012:dead-letters", "an ARN"),
            ("http://sqs.us-east-1.amazonaws.com/123456789012/q", "not an address of SQS"),
            ("https://sns.us-east-1.amazonaws.com/123456789012/q", "not an address of SQS"),
            ("https://sqs.amazonaws.com/123456789012/q", "not an address of SQS"),
            ("https://example.com/123456789012/q", "not an address of SQS"),
            ("https://sqs.us-east-1.amazonaws.com/123456789012/q.fifo", "FIFO"),
            ("https://sqs.us-east-1.amazonaws.com/123456789012/", "name"),
            ("https://sqs.us-east-1.amazonaws.com", "name"),
            ("https://sqs.us-east-1.amazonaws.com/q", "account"),
            ("https://sqs.us-east-1.amazonaws.com/1234/q", "account"),
            ("https://sqs.us-east-1.amazonaws.com/123456789012/q?a=b", "query"),
            ("https://user@sqs.us-east-1.amazonaws.com/123456789012/q", "user"),
        ] {
            let error = verdict(url, "us-east-1", false).unwrap_err();
            assert!(error.contains(reason) && error.contains(ALLOWED), "{url}: {error}");
        }
    }

    #[test]
    fn an_own_endpoint_makes_every_host_right_but_no_other_region() {
        for url in ["http://127.0.0.1:5000/123456789012/q", "https://proxy.internal/queue/us-east-1/000000000000/q"] {
            assert_eq!(verdict(url, "us-east-1", true), Ok(()), "{url}");
        }
        assert!(verdict("ftp://127.0.0.1/123456789012/q", "us-east-1", true).is_err());
        let localstack = "http://sqs.eu-west-1.localhost.localstack.cloud:4566/000000000000/q";
        assert_eq!(verdict(localstack, "eu-west-1", true), Ok(()));
        assert!(verdict(localstack, "us-east-1", true).is_err());
    }
}

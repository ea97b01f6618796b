//! Every way from a worker to what it depends on leads through a proxy of its own, so that each can be cut alone.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use emulators::{Fault, Throttle};

use super::kind::{Act, Route, Trouble};
use super::schedule::Step;

/// The proxies of a deployment.
pub struct Links {
    /// Of every worker; without AWS only that to Amberflo.
    pub workers: Vec<WorkerLinks>,
    /// From producers to the stream or the bus.
    pub producers: Throttle,
}

/// The proxies of one worker.
pub struct WorkerLinks {
    /// To Amberflo.
    pub amberflo: Throttle,
    /// To AWS, where the deployment uses it.
    pub aws: Option<AwsLinks>,
}

/// The proxies of one worker to AWS.
pub struct AwsLinks {
    /// To Kinesis.
    pub kinesis: Throttle,
    /// To DynamoDB.
    pub dynamodb: Throttle,
    /// To SQS.
    pub sqs: Throttle,
    /// To Secrets Manager.
    pub secrets: Throttle,
}

impl WorkerLinks {
    /// Proxies to Amberflo and, where there are, to the emulators of Kinesis and of the other services. Their random
    /// sequences start with numbers that follow from `seed`.
    pub async fn start(amberflo: SocketAddr, aws: Option<(&str, &str)>, seed: u64) -> Self {
        let mut seeds = fastrand::Rng::with_seed(seed);
        let mut start = |upstream: &str| {
            let (upstream, seed) = (upstream.to_owned(), seeds.u64(..));
            async move { Throttle::start_with_seed(&upstream, seed).await }
        };
        let amberflo = start(&format!("http://{amberflo}")).await;
        let Some((kinesis, others)) = aws else { return Self { amberflo, aws: None } };
        let aws = AwsLinks {
            kinesis: start(kinesis).await,
            dynamodb: start(others).await,
            sqs: start(others).await,
            secrets: start(others).await,
        };
        Self { amberflo, aws: Some(aws) }
    }

    /// Where the worker finds Amberflo.
    ///
    /// # Errors
    /// Never, as long as a proxy has an address of this machine.
    pub fn amberflo_address(&self) -> anyhow::Result<SocketAddr> {
        let address = self.amberflo.url.strip_prefix("http://").unwrap_or_default();
        address.parse().with_context(|| format!("the proxy's address {address}"))
    }

    fn of(&self, route: Route) -> Option<&Throttle> {
        let aws = self.aws.as_ref();
        match route {
            Route::Amberflo | Route::AmberfloOfOne => Some(&self.amberflo),
            Route::Kinesis | Route::KinesisOfOne => aws.map(|aws| &aws.kinesis),
            Route::DynamoDb | Route::DynamoDbOfOne => aws.map(|aws| &aws.dynamodb),
            Route::Sqs | Route::SqsOfOne => aws.map(|aws| &aws.sqs),
            Route::SecretsManager => aws.map(|aws| &aws.secrets),
            Route::Producers => None,
        }
    }

    fn all(&self) -> impl Iterator<Item = (&Throttle, [Route; 2])> {
        let routes = [
            [Route::Amberflo, Route::AmberfloOfOne],
            [Route::Kinesis, Route::KinesisOfOne],
            [Route::DynamoDb, Route::DynamoDbOfOne],
            [Route::Sqs, Route::SqsOfOne],
            [Route::SecretsManager, Route::SecretsManager],
        ];
        routes.into_iter().filter_map(|routes| Some((self.of(routes[0])?, routes)))
    }
}

impl Links {
    /// Lets calls meet what these steps say, all together, and nothing else.
    pub async fn refresh(&self, active: &[Step]) {
        for (index, links) in self.workers.iter().enumerate() {
            for (link, routes) in links.all() {
                set(
                    link,
                    troubles(active, |route, worker| {
                        routes.contains(&route) && (!route.is_of_one() || worker == index)
                    }),
                )
                .await;
            }
        }
        set(&self.producers, troubles(active, |route, _| route == Route::Producers)).await;
    }

    /// How many calls met each kind of trouble so far. Connections that were cut or refused are not counted.
    #[must_use]
    pub fn befell(&self) -> BTreeMap<&'static str, u64> {
        let mut sums = BTreeMap::new();
        let links = self.workers.iter().flat_map(|worker| worker.all().map(|(link, _)| link));
        for (name, count) in links.chain([&self.producers]).flat_map(Throttle::befell) {
            *sums.entry(name).or_default() += count;
        }
        sums
    }
}

/// The troubles of one link, with the names of their kinds.
fn troubles(active: &[Step], concerns: impl Fn(Route, usize) -> bool) -> Vec<(&'static str, Trouble)> {
    let trouble = |step: &Step| match step.kind.act {
        Act::Calls(route, trouble) if concerns(route, step.worker) => Some((step.kind.name, trouble)),
        _ => None,
    };
    let mut troubles: Vec<_> = active.iter().filter_map(trouble).collect();
    // Of several that befall a call the first counts, and slowness befalls each.
    troubles.sort_by_key(|(_, trouble)| matches!(trouble, Trouble::Slow(_)));
    troubles
}

async fn set(link: &Throttle, troubles: Vec<(&'static str, Trouble)>) {
    link.set(troubles.iter().filter_map(|(name, trouble)| Some(trouble.fault()?.named(name))));
    match troubles.iter().any(|(_, trouble)| *trouble == Trouble::Down) {
        true => link.down().await,
        false => link.up().await,
    }
}

impl Trouble {
    /// As a proxy wants it; one that is down needs none.
    fn fault(self) -> Option<Fault> {
        let (fault, operation, share) = match self {
            Self::Down => return None,
            Self::Refuse(operation, code, share) => (Fault::refuse(code), operation, share),
            Self::Lose(operation, code, share) => (Fault::lose(code), operation, share),
            Self::Hang(operation, share) => (Fault::hang(), operation, share),
            Self::Swallow(operation, share) => (Fault::swallow(), operation, share),
            Self::Slow(millis) => (Fault::slow(Duration::from_millis(millis)), "", 1.0),
        };
        Some(if operation.is_empty() { fault } else { fault.on(operation) }.share(share))
    }
}

impl Route {
    /// Whether it is one worker's.
    #[must_use]
    pub fn is_of_one(self) -> bool {
        matches!(self, Self::AmberfloOfOne | Self::KinesisOfOne | Self::DynamoDbOfOne | Self::SqsOfOne)
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;
    use crate::chaos::kind::{ArenaName, KINDS};

    fn step(name: &str, worker: usize) -> Step {
        let kind = KINDS.iter().find(|kind| kind.name == name).unwrap();
        let (at, until) = (Duration::ZERO, Duration::from_secs(1));
        Step { arena: ArenaName::Kinesis, kind, at, until, worker, dice: 0 }
    }

    async fn is_up(link: &Throttle) -> bool {
        TcpStream::connect(link.url.strip_prefix("http://").unwrap()).await.is_ok()
    }

    #[tokio::test]
    async fn one_worker_loses_one_service_and_all_come_back() {
        // Nobody is behind the proxies; they take connections themselves.
        let nowhere = "http://127.0.0.1:9";
        let worker = || WorkerLinks::start(([127, 0, 0, 1], 9).into(), Some((nowhere, nowhere)), 1);
        let links = Links { workers: vec![worker().await, worker().await], producers: Throttle::start(nowhere).await };
        let aws = |index: usize| links.workers[index].aws.as_ref().unwrap();

        links.refresh(&[step("kinesis-cut", 1), step("amberflo-down", 0)]).await;
        assert!(is_up(&aws(0).kinesis).await && !is_up(&aws(1).kinesis).await);
        assert!(is_up(&aws(1).dynamodb).await && is_up(&links.producers).await);
        for links in &links.workers {
            assert!(!is_up(&links.amberflo).await);
        }
        links.refresh(&[step("put-down", 0), step("kinesis-slow", 0)]).await;
        assert!(is_up(&aws(1).kinesis).await && is_up(&links.workers[0].amberflo).await);
        assert!(!is_up(&links.producers).await);
        links.refresh(&[]).await;
        assert!(is_up(&links.producers).await);
    }

    #[test]
    fn troubles_are_of_those_whom_they_concern() {
        let active = [step("kinesis-cut", 1), step("kinesis-slow", 0), step("kill", 0)];
        let of = |wanted: Route| troubles(&active, |route, _| route == wanted);
        assert_eq!(of(Route::KinesisOfOne), [("kinesis-cut", Trouble::Down)]);
        assert_eq!(of(Route::Kinesis), [("kinesis-slow", Trouble::Slow(700))]);
        assert!(of(Route::Sqs).is_empty());
    }

    #[test]
    fn slowness_hides_no_other_trouble() {
        let active = [step("kinesis-slow", 0), step("kinesis-errors", 0), step("kinesis-hang", 0)];
        let names: Vec<_> = troubles(&active, |_, _| true).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["kinesis-errors", "kinesis-hang", "kinesis-slow"]);
    }
}

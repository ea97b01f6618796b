//! A deployment under test: real processes, a stand-in for Amberflo, proxies between them, and an application plane.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use amberflo_sandbox::{Sandbox, SandboxConfig};
use shared::backend::Leases;
use shared::backend::dynamodb::DynamoLeases;
use shared::backend::kinesis::KinesisStream;
use shared::backend::local::{LocalOptions, LocalStore};
use shared::backend::sqs::SqsDeadLetters;
use shared::backend::{DeadLetters as _, Stream};
use shared::dead_letter::DeadLetter;
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};
use tokio_util::task::AbortOnDropHandle;

use super::amberflo::Condition;
use super::board::Board;
use super::clock::FakeClock;
use super::keys::Keys;
use super::kind::ArenaName;
use super::links::{Links, WorkerLinks};
use super::member::Member;
use super::schedule::Step;
use crate::service_process::{Service, ServiceProcess, ServiceSettings};
use crate::target::{Bus, EventStream, Target};

const SHARDS: i32 = 4;
const NAME: &str = "chaos";
const SECRET: &str = "amberflo";
const SECRET_MEMBER: &str = "key";
/// A producer gives a call up after so long, and makes it again.
const PUT_TIMEOUT: Duration = Duration::from_secs(5);
/// Dead letters that one receive gives at most.
const RECEIVE: usize = 10;
const PEEK: usize = 500;
/// Somebody who was killed may have had letters in hand, which are hidden for a minute then.
const HIDDEN_LIMIT: Duration = Duration::from_secs(75);
const HIDDEN_POLL: Duration = Duration::from_secs(1);
const STORE: &str = "store";

/// The emulators.
pub struct Aws {
    kinesis: emulators::Kinesis,
    moto: emulators::Moto,
}

impl Aws {
    /// Starts them.
    ///
    /// # Errors
    /// What the emulator said instead of its address.
    pub async fn start() -> anyhow::Result<Self> {
        let (kinesis, moto) = tokio::join!(emulators::Kinesis::start(), emulators::Moto::start());
        let failed = anyhow::Error::msg::<String>;
        Ok(Self { kinesis: kinesis.map_err(failed)?, moto: moto.map_err(failed)? })
    }
}

/// Where stream, leases and dead letters are: the truth, not what a worker sees through its proxies.
pub enum Store {
    /// In this directory.
    Local(PathBuf),
    /// In the emulators.
    Aws { aws: Aws, stream: emulators::Stream, queue: String },
}

/// A deployment. In order of dropping: what uses another goes before it.
pub struct Arena {
    /// Which it is.
    pub name: ArenaName,
    /// Where it is told what happens.
    pub board: Arc<Board>,
    /// The workers.
    pub workers: Vec<Member>,
    /// The control API.
    pub control_api: Member,
    /// The last second process with a worker's name.
    pub namesake: Option<Namesake>,
    /// The proxies.
    pub links: Links,
    /// What is wrong with Amberflo.
    pub condition: Condition,
    /// The API keys.
    pub keys: Keys,
    /// The stand-in for Amberflo.
    pub sandbox: Sandbox,
    /// When the control API was killed last.
    pub redrive_killed_at: Option<Duration>,
    /// The faults in force.
    pub active: Vec<Step>,
    /// How many requests had met each quirk in force when it began.
    pub counts_before: BTreeMap<&'static str, u64>,
    /// The clocks of workers, where they can be moved.
    pub clock: Option<FakeClock>,
    /// The small disk on which the local store lies, where there is one.
    pub disk: Option<PathBuf>,
    /// The truth.
    pub store: Store,
    _server: AbortOnDropHandle<std::io::Result<()>>,
}

/// A second process with a worker's name.
pub struct Namesake {
    /// Whose name.
    pub worker: usize,
    /// While it runs.
    pub process: Option<ServiceProcess>,
    /// Since the start of the emission.
    pub ended_at: Option<Duration>,
}

/// What an arena is made of.
pub struct Setting {
    /// Where its files go.
    pub dir: PathBuf,
    /// The seed of its random sequences.
    pub seed: u64,
    /// See [`Arena::clock`].
    pub clock: Option<FakeClock>,
    /// See [`Arena::disk`].
    pub disk: Option<PathBuf>,
}

impl Arena {
    /// Starts everything but the application plane.
    ///
    /// # Errors
    /// When something does not start: the end of its log.
    pub async fn start(setting: Setting, board: Arc<Board>, aws: Option<Aws>) -> anyhow::Result<Self> {
        let name = board.arena();
        let Setting { dir, seed, clock, disk } = setting;
        std::fs::create_dir_all(&dir)?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let amberflo = listener.local_addr()?;
        let sandbox = Sandbox::new(SandboxConfig { request_log: 0, ..SandboxConfig::default() });
        let server = tokio::spawn(amberflo_sandbox::serve(listener, sandbox.clone(), std::future::pending()));
        let server = AbortOnDropHandle::new(server);

        let store = match aws {
            Some(aws) => Store::emulated(aws).await,
            None => Store::Local(disk.clone().unwrap_or_else(|| dir.clone()).join(STORE)),
        };
        let mut keys = Keys::new(store.secrets());
        let condition = Condition { seed, quirks: [].into(), key: keys.newest(), has_poison: true, parts_before: 0 };
        sandbox.set_faults(condition.faults())?;
        let mut workers = Vec::new();
        let mut worker_links = Vec::new();
        for index in 0..name.workers() {
            let links = WorkerLinks::start(amberflo, store.endpoints(), seed.wrapping_add(index as u64)).await;
            let settings = worker_settings(&dir, index, &links, &store, clock.as_ref())?;
            keys.add_file(settings.key_file());
            worker_links.push(links);
            workers.push(settings);
        }
        let control = control_settings(&dir, amberflo, &store)?;
        keys.add_file(control.key_file());
        keys.publish().await?;
        let mut members = Vec::new();
        for (index, settings) in workers.into_iter().enumerate() {
            members.push(Member::start(&format!("worker-{}", index + 1), settings).await?);
        }
        let control_api = Member::start("control-api", control).await?;
        let entrance = match &store {
            Store::Local(_) => format!("http://{}", members[0].addresses().listen),
            Store::Aws { aws, .. } => aws.kinesis.url.clone(),
        };
        let producers = emulators::Throttle::start_with_seed(&entrance, seed).await;
        Ok(Self {
            name,
            board,
            workers: members,
            control_api,
            namesake: None,
            links: Links { workers: worker_links, producers },
            condition,
            keys,
            sandbox,
            redrive_killed_at: None,
            active: Vec::new(),
            counts_before: BTreeMap::new(),
            clock,
            disk,
            store,
            _server: server,
        })
    }

    /// Where producers put events: through the proxy.
    ///
    /// # Errors
    /// When the stream does not answer.
    pub async fn entrance(&self) -> anyhow::Result<Arc<dyn Target>> {
        let url = &self.links.producers.url;
        Ok(match &self.store {
            Store::Local(_) => Arc::new(Bus::local(url, PUT_TIMEOUT).await?),
            Store::Aws { stream, .. } => {
                let name = format!("kinesis:{}", stream.name).parse().map_err(anyhow::Error::msg)?;
                Arc::new(EventStream::open(&name, Some(url), PUT_TIMEOUT).await?)
            }
        })
    }
}

/// Copies the store on the small disk, which ends with this program, to a directory.
///
/// # Errors
/// When a file cannot be copied.
pub fn save_store(disk: &Path, into: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(into)?;
    for entry in std::fs::read_dir(disk.join(STORE))? {
        let entry = entry?;
        std::fs::copy(entry.path(), into.join(entry.file_name()))?;
    }
    Ok(())
}

impl Store {
    async fn emulated(aws: Aws) -> Self {
        let stream = emulators::Stream::create(&aws.kinesis.url, NAME, SHARDS).await;
        let queue = emulators::create_queue(&aws.moto.url, NAME).await;
        Self::Aws { aws, stream, queue }
    }

    /// Of Kinesis, and of the other services.
    fn endpoints(&self) -> Option<(&str, &str)> {
        match self {
            Self::Local(_) => None,
            Self::Aws { aws, .. } => Some((&aws.kinesis.url, &aws.moto.url)),
        }
    }

    fn secrets(&self) -> Option<(String, &'static str, &'static str)> {
        self.endpoints().map(|(_, others)| (others.to_owned(), SECRET, SECRET_MEMBER))
    }

    /// Stream and leases.
    ///
    /// # Errors
    /// When they cannot be opened.
    pub async fn open(&self) -> anyhow::Result<(Arc<dyn Stream>, Arc<dyn Leases>)> {
        Ok(match self {
            Self::Local(dir) => {
                let store = LocalStore::open(dir, LocalOptions::default())?;
                (Arc::new(store.clone()), Arc::new(store))
            }
            Self::Aws { aws, stream, .. } => {
                let stream = KinesisStream::open(&emulators::configuration(&aws.kinesis.url), &stream.name).await?;
                let leases = DynamoLeases::open(&emulators::configuration(&aws.moto.url), NAME, false).await?;
                let leases = leases.for_stream(stream.identity());
                (Arc::new(stream), Arc::new(leases))
            }
        })
    }

    /// # Errors
    /// When an emulator has ended by itself: how, and its last words.
    pub fn check(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Local(_) => Ok(()),
            Self::Aws { aws, .. } => aws.kinesis.check().and(aws.moto.check()).map_err(anyhow::Error::msg),
        }
    }

    /// Takes all dead letters, also those that somebody had in hand who is gone. Answers how many remain hidden, too.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn letters(&self) -> anyhow::Result<(Vec<DeadLetter>, u64)> {
        let mut letters = Vec::new();
        match self {
            Self::Local(dir) => {
                let store = LocalStore::open(dir, LocalOptions::default())?;
                let mut after = 0;
                loop {
                    let page = store.peek_dead_letters(after, PEEK).await?;
                    let Some(&(last, _)) = page.last() else { return Ok((letters, 0)) };
                    after = last;
                    letters.extend(page.into_iter().map(|(_, letter)| letter));
                }
            }
            Self::Aws { aws, queue, .. } => {
                let configuration = emulators::configuration(&aws.moto.url);
                let queue = SqsDeadLetters::open(&configuration, queue, Duration::from_secs(86_400)).await?;
                let deadline = Instant::now() + HIDDEN_LIMIT;
                loop {
                    let received = queue.receive(RECEIVE).await?;
                    if received.is_empty() {
                        let hidden = queue.depth().await?;
                        if hidden == 0 || Instant::now() >= deadline {
                            return Ok((letters, hidden));
                        }
                        sleep(HIDDEN_POLL).await;
                        continue;
                    }
                    queue.delete(&received.iter().map(|one| one.receipt.clone()).collect::<Vec<_>>()).await?;
                    letters.extend(received.into_iter().map(|one| one.letter));
                }
            }
        }
    }
}

fn worker_settings(
    dir: &Path,
    index: usize,
    links: &WorkerLinks,
    store: &Store,
    clock: Option<&FakeClock>,
) -> anyhow::Result<ServiceSettings> {
    let name = format!("worker-{}", index + 1);
    let dir = dir.join(&name);
    std::fs::create_dir_all(&dir)?;
    let mut settings = ServiceSettings::ingest_worker(&dir, links.amberflo_address()?);
    let own = [
        // Short, so that minutes hold many failovers, retries and refreshes.
        ("FAILOVER_TIME", "5s"),
        ("BATCH_LINGER", "250ms"),
        ("REQUEST_TIMEOUT", "2s"),
        ("API_KEY_REFRESH", "5s"),
        ("SHUTDOWN_GRACE", "8s"),
        // Refusals are found by halving, which takes many requests; and Amberflo's own limit is one of the faults.
        ("RATE_REQUESTS_PER_SECOND", "100"),
        ("LOG", "info"),
    ];
    settings.env.extend(own.map(|(name, value)| (name, value.to_owned())));
    settings.env.extend(store.environment());
    if let Some(aws) = &links.aws {
        settings.env.extend([
            ("AWS_ENDPOINT_URL_KINESIS", aws.kinesis.url.clone()),
            ("AWS_ENDPOINT_URL_DYNAMODB", aws.dynamodb.url.clone()),
            ("AWS_ENDPOINT_URL_SQS", aws.sqs.url.clone()),
            ("AWS_ENDPOINT_URL_SECRETS_MANAGER", aws.secrets.url.clone()),
            ("LEASE_TABLE", NAME.to_owned()),
            ("CREATE_LEASE_TABLE", "true".to_owned()),
            ("WORKER_ID", name),
        ]);
        // The last worker reads its key from a file.
        if index + 1 < ArenaName::Kinesis.workers() {
            settings.env.push(("API_KEY_SECRET_NAME", SECRET.to_owned()));
            settings.env.push(("API_KEY_SECRET_ID", SECRET_MEMBER.to_owned()));
        }
    }
    if let Some(clock) = clock {
        settings.env.extend(clock.environment(&dir)?);
    }
    Ok(settings)
}

fn control_settings(dir: &Path, amberflo: SocketAddr, store: &Store) -> anyhow::Result<ServiceSettings> {
    let dir = dir.join(Service::ControlApi.name());
    std::fs::create_dir_all(&dir)?;
    // It is asked to redrive only, and needs no bus.
    let mut settings = ServiceSettings::control_api(&dir, amberflo, amberflo);
    settings.env.extend(store.environment());
    Ok(settings)
}

impl Store {
    fn environment(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Local(dir) => vec![("STREAM", format!("local:{}", dir.display()))],
            Self::Aws { aws, stream, queue } => {
                let mut environment = emulators::environment(&aws.kinesis.url, &aws.moto.url);
                environment.push(("STREAM", format!("kinesis:{}", stream.name)));
                environment.push(("DEAD_LETTER_QUEUE", queue.clone()));
                environment
            }
        }
    }
}

//! On Kinesis, DynamoDB, SQS and Secrets Manager, all emulated, with two workers.

use amberflo_sandbox::Faults;
use emulators::{Kinesis, Moto, REGION, Stream, create_queue, environment, put_secret, skip};
use serde_json::{Value, json};

use super::site::{KEY, Site, detail, free_addresses, now};
use super::{DRAIN, KINESIS, LOST_TABLE, REPLAY, RESIZE, ROTATE, SET_FIRST, Steps};
use crate::harness::eventually;
use crate::shell::tools;

/// The sections whose commands are run here.
pub const TRIED: [&str; 7] = [SET_FIRST, DRAIN, ROTATE, RESIZE, REPLAY, LOST_TABLE, RETENTION];
const RETENTION: &str = "MeteringRetentionAtRisk";

const SUITE: &str = "runbook-kinesis";
const STREAM: &str = "usage";
const TABLE: &str = "leases";
const SECRET: &str = "amberflo";
const MEMBER: &str = "apiKey";
const NAMES: [&str; 2] = ["one", "two"];

/// Two workers on emulated AWS.
struct Fleet {
    site: Site,
    stream: Stream,
    admins: [String; 2],
    ids: Vec<String>,
}

#[tokio::test(flavor = "multi_thread")]
async fn procedures_on_kinesis_lose_and_double_nothing() {
    if !tools().join("python/bin/aws").exists() {
        return skip(SUITE, "the AWS CLI is missing: run ingest-worker/tests/clients/setup.sh");
    }
    let started = async { Ok::<_, String>((Kinesis::start().await?, Moto::start().await?)) };
    let (kinesis, moto) = match started.await {
        Ok(started) => started,
        Err(reason) => return skip(SUITE, &reason),
    };
    let mut fleet = Fleet::start(&kinesis.url, &moto.url).await;
    drain_one_worker(&mut fleet).await;
    rotate_the_key(&mut fleet).await;
    raise_the_retention(&mut fleet).await;
    resize_the_stream(&mut fleet).await;
    replay(&mut fleet).await;
    recover_a_lost_lease_table(&mut fleet).await;
}

impl Fleet {
    async fn start(kinesis: &str, moto: &str) -> Self {
        let stream = Stream::create(kinesis, STREAM, 2).await;
        let queue = create_queue(moto, "dead-letters").await;
        put_secret(moto, SECRET, &format!(r#"{{"{MEMBER}": "{KEY}"}}"#)).await;
        let aws = environment(kinesis, moto);
        let mut settings = vec![
            ("STREAM", format!("kinesis:{STREAM}")),
            ("LEASE_TABLE", TABLE.to_owned()),
            ("DEAD_LETTER_QUEUE", queue.clone()),
        ];
        let mut variables = [&aws[..], &settings].concat();
        let of_secret = [("SECRET", SECRET.to_owned()), ("MEMBER", MEMBER.to_owned())];
        variables.extend(of_secret);
        // Version 1 of the CLI looks at this one.
        variables.push(("AWS_DEFAULT_REGION", REGION.to_owned()));
        let mut site = Site::open(KINESIS, variables).await;
        settings.extend([
            ("API_KEY_SECRET_NAME", SECRET.to_owned()),
            ("API_KEY_SECRET_ID", MEMBER.to_owned()),
            ("API_KEY_REFRESH", "1s".to_owned()),
        ]);
        site.start_control_api(&settings).await;
        let admins: [_; 2] = free_addresses().await;
        settings.push(("BATCH_LINGER", "100ms".to_owned()));
        for (name, admin) in NAMES.iter().zip(admins) {
            let own = [("WORKER_ID", (*name).to_owned()), ("ADMIN_LISTEN", admin.to_string())];
            site.write_settings(name, &[&settings[..], &own].concat());
        }
        let admins = admins.map(|admin| format!("http://{admin}"));
        let mut fleet = Self { site, stream, admins, ids: Vec::new() };
        fleet.at(0).await;
        fleet.site.shell.paste("CREATE_LEASE_TABLE=true start_worker").await;
        fleet.at(1).await;
        fleet.site.shell.paste("start_worker").await;
        fleet.until_loads([1, 1]).await;
        fleet
    }

    /// Whom the shell's commands mean from now on.
    async fn at(&mut self, worker: usize) {
        self.site.shell.paste(&format!("NAME={} WORKER={}", NAMES[worker], self.admins[worker])).await;
    }

    async fn put(&mut self, count: usize) {
        let ids: Vec<String> =
            (self.ids.len()..self.ids.len() + count).map(|number| format!("event-{number}")).collect();
        let record = |(number, id): (usize, &String)| {
            let tenant = format!("tenant-{}", number % 16);
            let time = jiff::Timestamp::from_millisecond(now()).unwrap().to_string();
            let detail = detail(&tenant, id, 1);
            let envelope = json!({"id": id, "detail-type": "ingestUsage", "time": time, "detail": detail});
            (tenant, envelope.to_string().into())
        };
        self.stream.put(ids.iter().enumerate().map(record)).await;
        self.ids.extend(ids);
    }

    /// Puts events and waits until all that were ever put are billed, each once.
    async fn reconcile(&mut self) {
        self.put(60).await;
        self.site.until_billed_once(&self.ids).await;
    }

    /// How many leases each worker holds of the shards that are not ended.
    async fn loads(&mut self) -> [usize; 2] {
        let leases = self.site.leases().await;
        NAMES.map(|name| leases.iter().filter(|lease| lease["owner"] == name && lease["checkpoint"] != "ended").count())
    }

    async fn until_loads(&mut self, expected: [usize; 2]) {
        eventually(&format!("loads of {expected:?}"), async || (self.loads().await == expected).then_some(())).await;
    }

    /// Waits until the rows say what is settled now, and both workers have had time to see that.
    async fn until_rows_are_known(&mut self) {
        let rows = self.site.leases().await;
        let sum = |rows: &[Value]| rows.iter().map(|lease| lease["counter"].as_u64().unwrap()).sum::<u64>();
        let open = rows.iter().filter(|lease| lease["checkpoint"] != "ended").count() as u64;
        let renewed = sum(&rows) + 5 * open;
        eventually("leases to be renewed", async || (sum(&self.site.leases().await) >= renewed).then_some(())).await;
    }

    async fn delete_table(&mut self) {
        self.site.shell.paste(&format!("aws dynamodb delete-table --table-name {TABLE} >/dev/null")).await;
    }
}

async fn drain_one_worker(fleet: &mut Fleet) {
    fleet.put(60).await;
    fleet.at(1).await;
    let mut steps = Steps::of(DRAIN, KINESIS);
    steps.next(&mut fleet.site.shell).await;
    let leases = steps.next(&mut fleet.site.shell).await;
    assert!(!leases.contains(r#""owner":"two""#), "{leases}");
    fleet.until_loads([2, 0]).await;
    fleet.reconcile().await;
    steps.next(&mut fleet.site.shell).await;
    steps.done();
    fleet.until_loads([1, 1]).await;
    fleet.reconcile().await;
    assert_eq!(fleet.site.amberflo.ledger().absorbed_copies, 0, "nothing was sent twice");
}

async fn rotate_the_key(fleet: &mut Fleet) {
    let amberflo = fleet.site.amberflo.clone();
    let are_valid = |keys: &[&str]| {
        let keys = keys.iter().map(|key| (*key).to_owned()).collect();
        amberflo.set_faults(Faults { valid_keys: Some(keys), ..Faults::default() }).unwrap();
    };
    are_valid(&[KEY, "new-key"]);
    fleet.site.shell.paste("NEW_KEY=new-key").await;
    let mut steps = Steps::of(ROTATE, KINESIS);
    steps.next(&mut fleet.site.shell).await;
    steps.next(&mut fleet.site.shell).await;
    let has_read_it = async || fleet.site.log("one").contains("the API key changed").then_some(());
    eventually("the other worker to have read it", has_read_it).await;
    are_valid(&["new-key"]);
    fleet.reconcile().await;
    assert!(steps.next(&mut fleet.site.shell).await.contains("ready\nready"));
    steps.done();
    assert_eq!(amberflo.stats().unknown_keys, [].into(), "nobody has used the old one since");
}

async fn raise_the_retention(fleet: &mut Fleet) {
    let mut steps = Steps::of(RETENTION, KINESIS);
    steps.next(&mut fleet.site.shell).await;
    steps.done();
    let client = &fleet.stream.client;
    let summary = client.describe_stream_summary().stream_name(STREAM).send().await.unwrap();
    assert_eq!(summary.stream_description_summary().unwrap().retention_period_hours(), 720);
}

async fn resize_the_stream(fleet: &mut Fleet) {
    fleet.put(60).await;
    let mut steps = Steps::of(RESIZE, KINESIS);
    steps.next(&mut fleet.site.shell).await;
    fleet.reconcile().await;
    fleet.until_loads([2, 2]).await;
    let checked = steps.next(&mut fleet.site.shell).await;
    steps.done();
    assert!(checked.lines().any(|line| line == "4"), "{checked}");
    let leases: Vec<Value> =
        checked.lines().filter(|line| line.starts_with('{')).map(|line| serde_json::from_str(line).unwrap()).collect();
    let ended = leases.iter().filter(|lease| lease["checkpoint"] == "ended").count();
    assert_eq!((leases.len(), ended), (6, 2), "both parents are read to their end: {checked}");
    fleet.reconcile().await;
    assert_eq!(fleet.site.amberflo.ledger().absorbed_copies, 0, "nothing was sent twice");
}

async fn replay(fleet: &mut Fleet) {
    let mut steps = Steps::of(REPLAY, KINESIS);
    let rewound = steps.next(&mut fleet.site.shell).await;
    assert!(rewound.contains("rewoundTo"), "{rewound}");
    let all = fleet.ids.len() as u64;
    let amberflo = fleet.site.amberflo.clone();
    eventually("all to be sent again", async || (amberflo.ledger().absorbed_copies >= all).then_some(())).await;
    steps.next(&mut fleet.site.shell).await;
    steps.done();
    fleet.reconcile().await;
}

async fn recover_a_lost_lease_table(fleet: &mut Fleet) {
    let mut steps = Steps::of(LOST_TABLE, KINESIS);
    fleet.until_rows_are_known().await;
    let (before, earlier) = (fleet.site.amberflo.ledger().absorbed_copies, fleet.ids.len() as u64);
    fleet.delete_table().await;
    fleet.site.shell.paste(r#"while curl -sf "$WORKER/ready"; do sleep 0.2; done"#).await;
    fleet.put(60).await;
    steps.next(&mut fleet.site.shell).await;
    fleet.reconcile().await;
    fleet.until_loads([2, 2]).await;
    let absorbed = fleet.site.amberflo.ledger().absorbed_copies - before;
    // What they remember of each other is some seconds old, or more on a busy machine.
    assert!(absorbed < earlier, "they remember where they were: {absorbed} of {earlier} were sent again");
    assert!(
        fleet.site.log("two").contains("made anew, with its last checkpoint")
            || fleet.site.log("one").contains("made anew")
    );

    let from = jiff::Timestamp::from_millisecond(now()).unwrap();
    fleet.put(60).await;
    for worker in [0, 1] {
        fleet.at(worker).await;
        fleet.site.shell.paste("stop_worker").await;
    }
    fleet.put(60).await;
    fleet.delete_table().await;
    fleet.site.shell.paste(&format!("FROM={from}")).await;
    steps.next(&mut fleet.site.shell).await;
    fleet.at(0).await;
    fleet.site.shell.paste("start_worker").await;
    fleet.reconcile().await;
    fleet.until_loads([2, 2]).await;
    steps.next(&mut fleet.site.shell).await;
    steps.done();
    fleet.reconcile().await;
}

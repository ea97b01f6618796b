//! A machine with a worker, a control API and a stand-in for Amberflo, as the runbook's reader has one.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use amberflo_sandbox::{Sandbox, SandboxConfig};
use serde_json::{Value, json};
use shared::clock::Clock;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::set_first;
use crate::harness::eventually;
use crate::shell::Shell;

pub const METER: &str = "api-calls";
/// The key that is valid at first.
pub const KEY: &str = "sandbox-key";
const KEY_FILE: &str = "api-key";

/// Everything ends with it.
pub struct Site {
    pub shell: Shell,
    pub amberflo: Sandbox,
    amberflo_address: SocketAddr,
    api_address: SocketAddr,
    control_address: SocketAddr,
    _stop: DropGuard,
}

impl Site {
    /// A shell in which the runbook's variables and functions are set for this place, with these variables besides.
    pub async fn open(place: &str, mut variables: Vec<(&'static str, String)>) -> Self {
        let amberflo = Sandbox::new(SandboxConfig { api_keys: [KEY.to_owned()].into(), ..SandboxConfig::default() });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let amberflo_address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(amberflo_sandbox::serve(listener, amberflo.clone(), stop.clone().cancelled_owned()));
        let [api_address, control_address] = free_addresses().await;
        variables.extend([("API", format!("http://{api_address}")), ("CONTROL", format!("http://{control_address}"))]);
        let mut shell = Shell::open(&variables).await;
        for service in ["ingest-worker", "control-api"] {
            shell.add_program(service, &format!("exec '{}' {service} \"$@\"", env!("CARGO_BIN_EXE_loadtest")));
        }
        std::fs::write(shell.home.path().join(KEY_FILE), KEY).unwrap();
        set_first(&mut shell, place).await;
        Self { shell, amberflo, amberflo_address, api_address, control_address, _stop: stop.drop_guard() }
    }

    /// Writes a file of settings: where Amberflo is and the key in a file, and these.
    pub fn write_settings(&self, name: &str, settings: &[(&str, String)]) {
        let mut file = format!("AMBERFLO_BASE_URL=http://{}\n", self.amberflo_address);
        for (name, value) in settings {
            file.push_str(&format!("{name}='{value}'\n"));
        }
        if !settings.iter().any(|(name, _)| *name == "API_KEY_SECRET_NAME") {
            file.push_str(&format!("AMBERFLO_API_KEY_FILE='{}'\n", self.shell.home.path().join(KEY_FILE).display()));
        }
        std::fs::write(self.shell.home.path().join(format!("{name}.env")), file).unwrap();
    }

    /// Starts the control API, open to this machine.
    pub async fn start_control_api(&mut self, settings: &[(&str, String)]) {
        let mut settings = settings.to_vec();
        settings.extend([
            ("AUTH", "none".to_owned()),
            ("LISTEN", self.api_address.to_string()),
            ("ADMIN_LISTEN", self.control_address.to_string()),
        ]);
        self.write_settings("control-api", &settings);
        let start = "(set -a; . ./control-api.env; exec control-api >>control-api.log 2>&1) &\n\
                     until curl -sf \"$CONTROL/ready\"; do sleep 0.2; done";
        self.shell.paste(start).await;
        let meter = json!({"label": "API calls", "meterApiName": METER, "meterType": "sum_of_all_usage"});
        let created = self.shell.answer(&format!("api /meters -d '{meter}'")).await;
        assert_eq!(created["data"]["meterApiName"], METER, "{created}");
    }

    /// What a worker of this name has logged.
    pub fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.shell.home.path().join(format!("{name}.log"))).unwrap()
    }

    /// The rows of the table of leases.
    pub async fn leases(&mut self) -> Vec<Value> {
        self.shell.answers("ingest-worker leases list").await
    }

    /// How often each id is on the bill.
    pub fn billed(&self) -> BTreeMap<String, u64> {
        let mut billed = BTreeMap::new();
        for record in self.amberflo.records() {
            *billed.entry(record.unique_id.unwrap()).or_default() += 1;
        }
        billed
    }

    /// Waits until each of these ids is on the bill, and asserts that nothing else is, and each once.
    pub async fn until_billed_once(&self, ids: &[String]) {
        let expected: BTreeMap<String, u64> = ids.iter().map(|id| (id.clone(), 1)).collect();
        assert_eq!(expected.len(), ids.len(), "each id once");
        eventually("all events on the bill", async || (self.billed().len() >= expected.len()).then_some(())).await;
        assert_eq!(self.billed(), expected);
    }
}

/// A usage event of this moment.
pub fn detail(tenant: &str, id: &str, value: u64) -> Value {
    json!({"tenantId": tenant, "meterApiName": METER, "meterValue": value, "uniqueId": id, "meterTimeInMillis": now()})
}

pub fn now() -> i64 {
    Clock::system().now()
}

/// The present time in whole seconds.
pub fn now_in_seconds() -> i64 {
    now() / 1000
}

/// Addresses that were free a moment ago.
pub async fn free_addresses<const N: usize>() -> [SocketAddr; N] {
    let mut listeners = Vec::new();
    for _ in 0..N {
        // All held at once, so that they differ.
        listeners.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
    }
    let addresses: Vec<_> = listeners.iter().map(|listener| listener.local_addr().unwrap()).collect();
    addresses.try_into().unwrap()
}

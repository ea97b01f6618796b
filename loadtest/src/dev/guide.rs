//! What a developer reads: where everything is, and commands to paste. Each command is one line.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// The meter that exists from the start.
pub const METER: &str = "api-calls";

/// Where everything is.
pub struct Guide<'a> {
    pub bus: SocketAddr,
    pub worker_admin: SocketAddr,
    pub sandbox: SocketAddr,
    pub control_api: SocketAddr,
    pub control_api_admin: SocketAddr,
    pub directory: &'a Path,
    pub is_removed: bool,
    pub logs: [PathBuf; 2],
}

impl fmt::Display for Guide<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bus, worker_admin, sandbox, control_api, control_api_admin, directory, is_removed, logs } = self;
        let [worker_log, control_api_log] = logs.each_ref().map(|path| path.display());
        let end = if *is_removed { "removed at the end; --dir DIR keeps it" } else { "kept" };
        // A new identity with every paste: with the old one and another time, it would be a conflict.
        let put = format!(
            r#"NOW=$(date +%s)000; curl -s http://{bus}/ -H 'X-Amz-Target: AWSEvents.PutEvents' -d '{{"Entries": [{{"Source": "my.application", "DetailType": "ingestUsage", "Detail": "{{\"tenantId\": \"acme\", \"meterApiName\": \"{METER}\", \"meterValue\": 3, \"uniqueId\": \"bus-'$NOW'\", \"meterTimeInMillis\": '$NOW'}}"}}]}}'"#
        );
        let ingest = format!(
            r#"NOW=$(date +%s)000; curl -s http://{control_api}/ingest -H 'content-type: application/json' -d '{{"tenantId": "acme", "meterApiName": "{METER}", "meterValue": 2, "uniqueId": "api-'$NOW'", "meterTimeInMillis": '$NOW'}}'"#
        );
        write!(
            formatter,
            "Everything runs on this machine, until Ctrl-C.\n\
             \n\
             control API  http://{control_api}   what it can do: http://{control_api}/docs\n\
             event bus    http://{bus}   PutEvents, for any AWS SDK: AWS_ENDPOINT_URL_EVENTBRIDGE\n\
             Amberflo     http://{sandbox}   a stand-in; what it received: http://{sandbox}/sandbox/ledger\n\
             status       http://{worker_admin}/ (worker), http://{control_api_admin}/ (control API): in a browser, how they do\n\
             metrics      http://{worker_admin}/metrics (worker), http://{control_api_admin}/metrics (control API)\n\
             stream       {stream} ({end}); its dead letters too: local:{stream}\n\
             logs         {worker_log}, {control_api_log} (warnings and errors also here)\n\
             \n\
             Put an event on the bus:\n\
             \n  {put}\n\
             \n\
             Or hand it to the control API, which puts it on the bus:\n\
             \n  {ingest}\n\
             \n\
             Two seconds later, see the usage:\n\
             \n  curl -s 'http://{control_api}/usage/meterId?meterApiName={METER}'\n",
            stream = directory.join("stream").display(),
        )
    }
}

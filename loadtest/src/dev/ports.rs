//! The ports, all looked at before anything starts.

use std::io::ErrorKind;
use std::net::Ipv4Addr;

use tokio::net::TcpListener;

use crate::service_process::Addresses;

/// Where on loopback everything answers. 0 takes a free port.
#[derive(Clone, Copy, Debug, clap::Args)]
#[command(next_help_heading = "Ports")]
pub struct PortArgs {
    /// The control API.
    #[arg(long, default_value = "8080", value_name = "PORT")]
    control_api_port: u16,
    /// The control API's health and metrics.
    #[arg(long, default_value = "9465", value_name = "PORT")]
    control_api_admin_port: u16,
    /// The worker's local event bus.
    #[arg(long, default_value = "4010", value_name = "PORT")]
    bus_port: u16,
    /// The worker's health and metrics.
    #[arg(long, default_value = "9464", value_name = "PORT")]
    worker_admin_port: u16,
    /// The stand-in for Amberflo.
    #[arg(long, default_value = "4020", value_name = "PORT")]
    sandbox_port: u16,
}

/// Ports that are ours until what needs them starts.
pub struct Ports {
    /// The stand-in for Amberflo.
    pub sandbox: TcpListener,
    /// The worker.
    pub worker: Pair,
    /// The control API.
    pub control_api: Pair,
}

/// The ports of a service.
pub struct Pair {
    listen: TcpListener,
    admin: TcpListener,
}

impl Pair {
    /// Where they are.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn addresses(&self) -> std::io::Result<Addresses> {
        Ok(Addresses { listen: self.listen.local_addr()?, admin: self.admin.local_addr()? })
    }
}

impl Ports {
    /// Takes all of them.
    ///
    /// # Errors
    /// A line for each that cannot be had, with what needs it and what to do.
    pub async fn reserve(args: &PortArgs) -> Result<Self, String> {
        let (sandbox, bus, worker_admin, control_api, control_api_admin) = tokio::join!(
            bind(args.sandbox_port, "the stand-in for Amberflo needs it", "--sandbox-port"),
            bind(args.bus_port, "the worker needs it for the event bus", "--bus-port"),
            bind(args.worker_admin_port, "the worker needs it for health and metrics", "--worker-admin-port"),
            bind(args.control_api_port, "the control API needs it", "--control-api-port"),
            bind(
                args.control_api_admin_port,
                "the control API needs it for health and metrics",
                "--control-api-admin-port"
            ),
        );
        match (sandbox, bus, worker_admin, control_api, control_api_admin) {
            (Ok(sandbox), Ok(bus), Ok(worker_admin), Ok(control_api), Ok(control_api_admin)) => Ok(Self {
                sandbox,
                worker: Pair { listen: bus, admin: worker_admin },
                control_api: Pair { listen: control_api, admin: control_api_admin },
            }),
            (sandbox, bus, worker_admin, control_api, control_api_admin) => {
                let taken = [sandbox, bus, worker_admin, control_api, control_api_admin].map(Result::err);
                Err(taken.into_iter().flatten().collect::<Vec<_>>().join("\n"))
            }
        }
    }
}

async fn bind(port: u16, need: &str, flag: &str) -> Result<TcpListener, String> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.map_err(|error| {
        let why = match error.kind() {
            ErrorKind::AddrInUse => "is taken".to_owned(),
            _ => format!("cannot be listened on ({error})"),
        };
        format!("port {port} {why}, and {need}: end the program that has it, or give another port with {flag}")
    })
}

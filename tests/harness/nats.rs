//! A real NATS server with JetStream, between agents: started, ended in all ways, started again with its data.
//! And whatever anybody may write to it.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use data_encoding::BASE64;
use rustix::{
    mount::MountFlags,
    process::{Pid, Signal, kill_process},
};
use serde_json::{Value, json};

use crate::{
    agent::{AgentSetup, free_address, tokentrail},
    audit::AuditLog,
    line::Line,
    machine::find_program,
    sandbox::{Process, Sandbox},
    wait::{PATIENCE, wait_until},
};

mod login;
mod operator;

pub use login::Login;
pub use operator::Operator;

/// The cluster that [`Broker::start`] prepares it for.
const CLUSTER: &str = "test";
/// Where one listens that has a network of its own.
const PORT: u16 = 4222;

/// The folder in the sandbox where it stores.
const STORE: &str = "jetstream";

/// A NATS server. Dropping it kills it.
pub struct Broker<'sandbox> {
    sandbox: &'sandbox Sandbox,
    address: SocketAddr,
    configuration: PathBuf,
    /// The network that it is in, if not this program's.
    network: Option<PathBuf>,
    process: Option<Process>,
}

impl<'sandbox> Broker<'sandbox> {
    /// Starts one with JetStream on disk, and makes stream and bucket.
    ///
    /// # Errors
    /// If there is none, or it does not come up.
    pub fn start(sandbox: &'sandbox Sandbox) -> Result<Self> {
        let broker = Self::bare(sandbox, "")?;
        broker.set_up()?;
        Ok(broker)
    }

    /// Starts one with more in its configuration, and makes nothing in it.
    ///
    /// # Errors
    /// If there is none, or it does not come up.
    pub fn bare(sandbox: &'sandbox Sandbox, more: &str) -> Result<Self> {
        Self::configured(sandbox, &with_jetstream(sandbox, more))
    }

    /// Starts one at the far end of a line, with more in its configuration; the caller is in the network at
    /// the near end. It is reached over other lines that end there, too.
    ///
    /// # Errors
    /// If there is none, or it does not come up.
    pub fn behind(sandbox: &'sandbox Sandbox, line: &Line, more: &str) -> Result<Self> {
        let address = SocketAddr::new(line.far_ip(), PORT);
        Self::at(sandbox, address, Some(line.far().to_owned()), &with_jetstream(sandbox, more))
    }

    /// Starts one with this configuration but for its address.
    ///
    /// # Errors
    /// If there is none, or it does not come up.
    pub fn configured(sandbox: &'sandbox Sandbox, more: &str) -> Result<Self> {
        Self::at(sandbox, free_address()?, None, more)
    }

    fn at(
        sandbox: &'sandbox Sandbox,
        address: SocketAddr,
        network: Option<PathBuf>,
        more: &str,
    ) -> Result<Self> {
        let port = address.port();
        let configuration = sandbox.folder().join(format!("nats-{port}.conf"));
        let listen =
            if network.is_some() { format!("0.0.0.0:{port}") } else { address.to_string() };
        fs::write(&configuration, format!("listen: \"{listen}\"\n{more}\n"))?;
        let mut broker = Self { sandbox, address, configuration, network, process: None };
        broker.start_again()?;
        Ok(broker)
    }

    /// What an agent needs to find it.
    pub fn arguments(&self) -> [String; 4] {
        Self::arguments_for(&self.url())
    }

    /// What an agent needs that finds it over this line.
    pub fn arguments_over(&self, line: &Line) -> [String; 4] {
        Self::arguments_for(&format!("nats://{}:{}", line.far_ip(), self.address.port()))
    }

    fn arguments_for(url: &str) -> [String; 4] {
        ["--nats", url, "--cluster-name", CLUSTER].map(str::to_owned)
    }

    /// An agent without a sensor that follows a log for others.
    pub fn side(&self, name: &str, log: &AuditLog) -> AgentSetup<'sandbox> {
        let folder = self.sandbox.folder();
        AgentSetup::new(self.sandbox, log.path())
            .node_name(name)
            .state(folder.join(format!("state-{name}")))
            .alert_log(folder.join(format!("alerts-{name}.ndjson")))
            .args(["--no-sensor".to_owned()])
            .args(self.arguments())
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    /// Makes stream and bucket, as an operator does.
    ///
    /// # Errors
    /// If that fails.
    pub fn set_up(&self) -> Result<()> {
        self.set_up_with(&[])
    }

    /// The same, with further options.
    ///
    /// # Errors
    /// If that fails.
    pub fn set_up_with(&self, options: &[&str]) -> Result<()> {
        let mut command = tokentrail();
        command.args(["nats", "setup"]).args(self.arguments()).args(options);
        let done = self.sandbox.run(&mut command)?;
        ensure!(done.success(), "{done:?}");
        Ok(())
    }

    /// Starts it where it was, with what it had, and waits until it answers.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn start_again(&mut self) -> Result<()> {
        // Folders of daemons are not in everybody's path.
        let program = find_program("nats-server").unwrap_or_else(|| "/usr/sbin/nats-server".into());
        let log = fs::File::options()
            .append(true)
            .create(true)
            .open(self.configuration.with_extension("log"))?;
        let mut command = match &self.network {
            Some(network) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net={}", network.display())).arg("--").arg(program);
                command
            }
            None => Command::new(program),
        };
        command.arg("--config").arg(&self.configuration);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let process = self.sandbox.ledger().spawn(&mut command);
        let mut process =
            process.context("there is no nats-server; install the Debian package of that name")?;
        wait_until(PATIENCE, "the NATS server answers", || {
            if let Some(status) = process.child.try_wait()? {
                bail!("the NATS server ended ({status}):\n{}", self.log());
            }
            Ok(self.connect().ok().map(drop))
        })?;
        self.process = Some(process);
        Ok(())
    }

    /// Ends it as an operating system does that has no time: `kill -9`.
    ///
    /// # Errors
    /// If it cannot be killed.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            process.child.kill()?;
            process.child.wait()?;
        }
        Ok(())
    }

    /// Stops it from doing anything, or lets it go on: to its clients it is a server behind a broken line.
    ///
    /// # Errors
    /// If it cannot be told.
    pub fn freeze(&self, frozen: bool) -> Result<()> {
        let Some(process) = &self.process else { bail!("there is no NATS server to freeze") };
        let signal = if frozen { Signal::STOP } else { Signal::CONT };
        Ok(kill_process(Pid::from_child(&process.child), signal)?)
    }

    /// Publishes any bytes on any subject, as anybody can who may log in, and waits until that is done.
    ///
    /// # Errors
    /// If the server does not take it.
    pub fn publish(&self, subject: &str, payload: &[u8]) -> Result<()> {
        let refused = self.log_in("", "", "_INBOX.harness")?.publish(subject, "", payload)?;
        ensure!(refused.is_none(), "{refused:?}");
        Ok(())
    }

    /// The last answer that waits for a node, as whoever may read the stream can keep it.
    ///
    /// # Errors
    /// If there is none.
    pub fn answer_to(&self, node: &str) -> Result<Vec<u8>> {
        let ask = json!({"last_by_subj": format!("tokentrail.{CLUSTER}.request.{node}")});
        let get = format!("$JS.API.STREAM.MSG.GET.tokentrail_{CLUSTER}");
        let found =
            self.log_in("", "", "_INBOX.thief")?.ask(&get, "", ask.to_string().as_bytes())?;
        let data = found.pointer("/message/data").and_then(Value::as_str);
        let data = data.with_context(|| format!("no answer waits for {node}: {found}"))?;
        Ok(BASE64.decode(data.as_bytes())?)
    }

    /// All alerts that it has, each as often as it has it, with the node that told it.
    ///
    /// # Errors
    /// If it does not answer, or there are no alerts to be had from it.
    pub fn alerts(&self) -> Result<Vec<(String, Value)>> {
        const STREAM: &str = "ALERTS_tokentrail_test";
        let mut login = self.log_in("", "", "_INBOX.collector")?;
        let info = login.ask(
            &format!("$JS.API.STREAM.INFO.{STREAM}"),
            "",
            br#"{"subjects_filter":">"}"#,
        )?;
        let told = info.pointer("/state/subjects").and_then(Value::as_object);
        let mut alerts = Vec::new();
        for (subject, count) in told.into_iter().flatten() {
            let node = subject.rsplit('.').next().unwrap_or_default();
            let name = format!("collector-{node}");
            let config =
                json!({"durable_name": name, "ack_policy": "none", "filter_subject": subject});
            let create = format!("$JS.API.CONSUMER.DURABLE.CREATE.{STREAM}.{name}");
            let make = json!({"stream_name": STREAM, "config": config}).to_string();
            let made = login.ask(&create, "", make.as_bytes())?;
            ensure!(made.get("error").is_none(), "{made}");
            let next = format!("$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{name}");
            for _ in 0..count.as_u64().unwrap_or_default() {
                alerts.push((node.to_owned(), login.ask(&next, "", b"")?));
            }
            login.ask(&format!("$JS.API.CONSUMER.DELETE.{STREAM}.{name}"), "", b"")?;
        }
        Ok(alerts)
    }

    /// Changes a text in its configuration, and has it read that anew.
    ///
    /// # Errors
    /// If it is not there or cannot be told.
    pub fn reconfigure(&self, old: &str, new: &str) -> Result<()> {
        let configuration = fs::read_to_string(&self.configuration)?;
        ensure!(configuration.contains(old), "there is no {old:?} in its configuration");
        fs::write(&self.configuration, configuration.replace(old, new))?;
        self.reload()
    }

    /// Has it read its configuration anew, and what that includes.
    ///
    /// # Errors
    /// If it cannot be told.
    pub fn reload(&self) -> Result<()> {
        let Some(process) = &self.process else { bail!("there is no NATS server to tell") };
        Ok(kill_process(Pid::from_child(&process.child), Signal::HUP)?)
    }

    /// Deletes a stream, or the bucket by its stream, and makes it anew, as an operator does by mistake.
    ///
    /// # Errors
    /// If that fails.
    pub fn make_anew(&self, stream: &str) -> Result<()> {
        let delete = format!("$JS.API.STREAM.DELETE.{stream}");
        let deleted = self.log_in("", "", "_INBOX.harness")?.ask(&delete, "", b"")?;
        ensure!(deleted.get("error").is_none(), "{deleted}");
        self.set_up()
    }

    /// Logs in with a password. What is asked is answered to `inbox`.
    ///
    /// # Errors
    /// If the server does not let it in.
    pub fn log_in(&self, user: &str, password: &str, inbox: &str) -> Result<Login> {
        Login::new(self.connect()?, user, password, inbox)
    }

    /// A connection on which the server has introduced itself.
    fn connect(&self) -> Result<TcpStream> {
        let stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let info = line(&stream)?;
        ensure!(info.starts_with("INFO "), "{info}");
        Ok(stream)
    }

    /// Gives the next one in this sandbox a disk of its own, and returns where that is.
    ///
    /// # Errors
    /// If it cannot be mounted (needs root).
    pub fn disk(sandbox: &Sandbox) -> Result<PathBuf> {
        sandbox.tmpfs(STORE, MountFlags::empty(), c"size=16m")
    }

    /// Its process, while there is one.
    pub fn pid(&self) -> Option<u32> {
        Some(self.process.as_ref()?.child.id())
    }

    /// What it wrote to its log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.configuration.with_extension("log")).unwrap_or_default()
    }
}

/// JetStream on disk. How much fits there is left to the disk: the server takes three quarters of what is free
/// for its limit, and refuses what needs more from the start.
fn with_jetstream(sandbox: &Sandbox, more: &str) -> String {
    let folder = sandbox.folder().join(STORE);
    format!("jetstream {{ store_dir: {folder:?}, max_file_store: 8GB }}\n{more}")
}

/// One line, byte by byte: nothing behind it is taken.
fn line(stream: &TcpStream) -> Result<String> {
    let mut line = String::new();
    BufReader::with_capacity(1, stream).read_line(&mut line)?;
    Ok(line)
}

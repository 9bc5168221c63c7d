//! A hub as a child process, for tests of what only a whole hub shows.
//!
//! ```ignore
//! let mut hub = Hub::start(&["--set", "log.segment_bytes=1MiB"]);
//! hub.run(&["device", "create", "dev-1"]).expect_success();
//! hub.kill9();
//! hub.restart();
//! ```
//!
//! Each hub has free ports and a folder of its own under cargo's target folder, so tests run side by side. It ends with
//! the value; the folder stays behind when the test fails.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime};
use std::{fs, thread};

use forebay::cli::Endpoints;
use forebay::server::tls::ensure_dev_certificates;
use rustix::process::{Pid, Signal, kill_process};

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_forebay");
/// Far more than anything here takes on a busy machine: a test that waits this long has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(5);

pub struct Hub {
    child: Option<Child>,
    folder: PathBuf,
    args: Vec<String>,
    endpoints: Endpoints,
}

impl Hub {
    /// Starts `forebay dev` on free ports and waits until it is ready. `args` are added; without `--fleet` there
    /// is no demo fleet.
    pub fn start(args: &[&str]) -> Self {
        let folder = new_folder();
        let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
        let mut child = spawn(&folder, &args, &["--any-ports".to_owned()]);
        let endpoints = wait_ready(&mut child, &folder);
        Self {
            child: Some(child),
            folder,
            args,
            endpoints,
        }
    }

    /// Starts `forebay serve` on free ports with a configuration file of this content, which may leave out all that a hub
    /// under test has anyway, and waits until it is ready. It cannot be restarted.
    pub fn serve(config: &str) -> Self {
        let folder = new_folder();
        let data = folder.join("data");
        let hosts = ["localhost".to_owned()];
        let files = ensure_dev_certificates(&data, &hosts, SystemTime::now()).unwrap();
        let owner_key = "c2VydmVkIGh1YnMnIG93bmVyIGtleSwgMzIgYnl0ZXM=";
        let flags = [
            format!("process.data_dir={}", data.display()),
            format!("quic.certificate_file={}", files.server_certificate.display()),
            format!("quic.key_file={}", files.server_key.display()),
            format!("identity.owner_key={owner_key}"),
            "ops.log_format=json".to_owned(),
        ];
        let ports = ["quic", "https", "mqtt", "amqp", "ops"].map(|door| format!("{door}.listen=127.0.0.1:0"));
        fs::write(folder.join("forebay.toml"), config).unwrap();
        let output = fs::File::create(folder.join("output")).unwrap();
        let mut command = Command::new(PROGRAM);
        command.arg("serve").arg("--config").arg(folder.join("forebay.toml"));
        for flag in flags.iter().chain(&ports) {
            command.args(["--set", flag]);
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        let ready = wait_ready_line(&mut child, &folder);
        let port = |door: &str| {
            let address = ready["fields"][door].as_str().expect("the line names every door");
            address.parse::<std::net::SocketAddr>().unwrap().port()
        };
        let policy = format!("SharedAccessKeyName=iothubowner;SharedAccessKey={owner_key}");
        let endpoints = Endpoints {
            hub_host: "localhost".to_owned(),
            ca_file: files.ca_certificate,
            iothub_connection_string: format!("HostName=localhost;{policy}"),
            eventhub_connection_string: format!("Endpoint=sb://localhost/;{policy};EntityPath=forebay"),
            consumer_group: "$Default".to_owned(),
            second_consumer_group: "$Default".to_owned(),
            mqtt_port: port("mqtt"),
            https_port: port("https"),
            amqps_port: port("amqp"),
            amqp_plain_port: 0,
            case_timeout: 30,
            quic_port: port("quic"),
            ops_port: port("ops"),
            devices: Vec::new(),
        };
        Self {
            child: Some(child),
            folder,
            args: Vec::new(),
            endpoints,
        }
    }

    /// The configuration file of a hub that `serve` started.
    pub fn config_file(&self) -> PathBuf {
        self.folder.join("forebay.toml")
    }

    /// Tells it to read its configuration and its certificate anew.
    pub fn sighup(&self) {
        signal(self.child.as_ref().expect("the hub is running"), Signal::HUP);
    }

    /// Starts it again, after `kill9` or `sigterm`, on the same data and ports.
    pub fn restart(&mut self) {
        assert!(self.child.is_none(), "the hub is still running");
        let ports = [
            format!("--quic-port={}", self.endpoints.quic_port),
            format!("--https-port={}", self.endpoints.https_port),
            format!("--ops-port={}", self.endpoints.ops_port),
            format!("--mqtt-port={}", self.endpoints.mqtt_port),
            format!("--amqp-port={}", self.endpoints.amqps_port),
            format!("--amqp-plain-port={}", self.endpoints.amqp_plain_port),
        ];
        fs::remove_file(self.data().join("endpoints.json")).unwrap();
        let mut child = spawn(&self.folder, &self.args, &ports);
        self.endpoints = wait_ready(&mut child, &self.folder);
        self.child = Some(child);
    }

    /// Ends it as a crash of the process would.
    pub fn kill9(&mut self) {
        let mut child = self.child.take().expect("the hub is running");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Asks it to stop, as a service manager would, and waits until it has.
    pub fn sigterm(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("the hub is running");
        signal(&child, Signal::TERM);
        wait(&mut child)
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the hub is running").id()
    }

    pub fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    /// Its data folder.
    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// What it wrote to standard output and error, over all its starts.
    pub fn output(&self) -> String {
        fs::read_to_string(self.folder.join("output")).unwrap_or_default()
    }

    /// The answer of the operations port: status and body.
    pub fn get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.endpoints.ops_port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // HTTP/1.0: no chunks, and the end of the stream is the end of the body.
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").expect("an answer has a head");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        (status.expect("an answer begins with a status"), body.to_owned())
    }

    /// Bytes of its memory, by the name that the kernel has for a kind of it: `RssAnon`, `VmRSS`.
    pub fn memory(&self, kind: &str) -> u64 {
        let id = self.child.as_ref().expect("the hub is running").id();
        let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(kind)?.strip_prefix(':'));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
        kib.expect("the kernel says").parse::<u64>().unwrap() * 1024
    }

    /// The metrics in Prometheus' text format.
    pub fn metrics(&self) -> String {
        let (status, text) = self.get("/metrics");
        assert_eq!(status, 200, "{text}");
        text
    }

    /// The sum of one metric's samples over all labels.
    ///
    /// # Panics
    /// If there are none: a misspelt name must not read as 0.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.metrics();
        let samples: Vec<f64> = text
            .lines()
            .filter(|line| line.split(['{', ' ']).next() == Some(name))
            .map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
            .collect();
        assert!(!samples.is_empty(), "there is no metric {name}");
        samples.iter().sum()
    }

    /// A client subcommand for this hub, not yet started.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(args).arg("--hub").arg(self.data());
        command
    }

    /// Runs a client subcommand for this hub to its end, with nothing on standard input.
    pub fn run(&self, args: &[&str]) -> Ended {
        self.run_with_input(args, b"")
    }

    pub fn run_with_input(&self, args: &[&str], input: &[u8]) -> Ended {
        run(self.command(args), input)
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if thread::panicking() {
            eprintln!(
                "the hub's folder is {}; its output:\n{}",
                self.folder.display(),
                self.output()
            );
        } else {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

/// A command that has ended.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// Its standard output, if it ended with 0.
    #[track_caller]
    pub fn expect_success(self) -> String {
        assert!(self.status.success(), "{self:?}");
        self.stdout
    }

    /// Its standard error, if it ended with 1.
    #[track_caller]
    pub fn expect_failure(self) -> String {
        assert_eq!(self.status.code(), Some(1), "{self:?}");
        self.stderr
    }
}

/// Runs a command to its end. One that runs too long fails the test instead of hanging it.
pub fn run(mut command: Command, input: &[u8]) -> Ended {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut stderr = child.stderr.take().unwrap();
    // All three pipes at once: a child that fills one that nobody reads would wait for ever.
    thread::scope(|scope| {
        // A child may end before it has read everything.
        scope.spawn(move || drop(stdin.write_all(input)));
        let stdout = scope.spawn(move || text(&mut stdout));
        let stderr = scope.spawn(move || text(&mut stderr));
        Ended {
            status: wait(&mut child),
            stdout: stdout.join().unwrap(),
            stderr: stderr.join().unwrap(),
        }
    })
}

fn text(from: &mut impl std::io::Read) -> String {
    let mut text = String::new();
    from.read_to_string(&mut text).unwrap();
    text
}

pub fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// Waits for a child's end; kills it and panics when it takes too long.
pub fn wait(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            panic!("{child:?} does not end");
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// Looks again and again until there is something.
#[track_caller]
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        thread::sleep(LOOK_EVERY);
    }
}

fn new_folder() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!("hub-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    // A former process may have had the same id.
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(folder.join("data")).unwrap();
    folder
}

fn spawn(folder: &Path, args: &[String], ports: &[String]) -> Child {
    let output = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(folder.join("output"))
        .unwrap();
    let is_fleet_given = args.iter().any(|arg| arg.starts_with("--fleet"));
    Command::new(PROGRAM)
        .args(["dev", "--quiet", "--data"])
        .arg(folder.join("data"))
        .args(if is_fleet_given { &[][..] } else { &["--fleet", "0"] })
        .args(ports)
        .args(args)
        .stdin(Stdio::null())
        .stdout(output.try_clone().unwrap())
        .stderr(output)
        .spawn()
        .unwrap()
}

/// The endpoints file is written when the ports are open.
fn wait_ready(child: &mut Child, folder: &Path) -> Endpoints {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Ok(endpoints) = Endpoints::read(&folder.join("data")) {
            return endpoints;
        }
        let ended = child.try_wait().unwrap();
        if ended.is_some() || Instant::now() > deadline {
            let _ = child.kill();
            let output = fs::read_to_string(folder.join("output")).unwrap_or_default();
            panic!("the hub does not start ({ended:?}):\n{output}");
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// The line that `serve` writes when the ports are open.
fn wait_ready_line(child: &mut Child, folder: &Path) -> serde_json::Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let output = fs::read_to_string(folder.join("output")).unwrap_or_default();
        let lines = output.lines().filter_map(|line| serde_json::from_str(line).ok());
        let is_ready = |line: &serde_json::Value| line["fields"]["message"] == "ready";
        if let Some(ready) = lines.into_iter().find(is_ready) {
            return ready;
        }
        let ended = child.try_wait().unwrap();
        if ended.is_some() || Instant::now() > deadline {
            let _ = child.kill();
            panic!("the hub does not start ({ended:?}):\n{output}");
        }
        thread::sleep(LOOK_EVERY);
    }
}

//! What the HTTPS door is measured against: actix-web with the same TLS, whose only handler reads the body and says 204.

use std::io::{BufRead as _, BufReader, Write as _, stdout};
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use actix_web::{App, HttpResponse, HttpServer, web};
use anyhow::Context as _;
use clap::Args;
use forebay::server::certificate::Certificate;
use forebay::server::tls::{https_config, load_identity};

#[derive(Clone, Debug, Args)]
pub struct BareArgs {
    /// PEM file of the certificate
    #[arg(long, value_name = "FILE")]
    certificate: PathBuf,
    /// PEM file of its key
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
}

impl BareArgs {
    /// Serves until the process is killed; says its port on standard output.
    ///
    /// # Errors
    /// The certificate cannot be used or no port is to be had.
    pub fn serve(&self) -> anyhow::Result<()> {
        let tls = https_config(&Certificate::new(load_identity(&self.certificate, &self.key)?, 0)?)?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        println!("{}", listener.local_addr()?.port());
        stdout().flush()?;
        let app = || App::new().default_service(web::to(no_content));
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        actix_web::rt::System::new().block_on(async {
            let server = HttpServer::new(app).workers(workers).disable_signals();
            server.listen_rustls_0_23(listener, tls)?.run().await
        })?;
        Ok(())
    }
}

async fn no_content(_body: web::Bytes) -> HttpResponse {
    HttpResponse::NoContent().finish()
}

/// The server as a child process; dropping it ends it.
pub struct Bare {
    child: Child,
    pub port: u16,
}

impl Bare {
    /// # Errors
    /// It does not start.
    pub fn start(certificate: PathBuf, key: PathBuf) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("the path of this program")?;
        let mut child = Command::new(program)
            .arg("bare-https")
            .arg("--certificate")
            .arg(certificate)
            .arg("--key")
            .arg(key)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let said = child.stdout.take().context("the child's output")?;
        let read = BufReader::new(said).read_line(&mut line);
        // From here on a failure ends the child.
        let mut bare = Self { child, port: 0 };
        read?;
        bare.port = line.trim().parse().context("the bare server did not start")?;
        Ok(bare)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

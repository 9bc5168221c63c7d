//! Every key of the configuration on a hub that runs: applied, or named as waiting for a restart.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use super::*;
use crate::config::keys::{Key, keys};
use crate::config::{Sources, default_toml, load};
use crate::server::tls::{DoorTls, ensure_dev_certificates};

struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn folder(name: &str) -> Folder {
    let path = std::env::temp_dir().join(format!("forebay-reload-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).unwrap();
    Folder(path)
}

/// One that a policy may have.
const KEY: &str = "YSBrZXkgdGhhdCBvbmx5IHRoaXMgdGVzdCBrbm93cy4=";

/// What a hub under test is started with.
fn base(folder: &Folder) -> Vec<String> {
    let data = folder.0.display();
    let mut set: Vec<String> = ["quic", "https", "mqtt", "amqp", "ops"]
        .map(|door| format!("{door}.listen=127.0.0.1:0"))
        .to_vec();
    set.extend([
        format!("process.data_dir={data}"),
        "log.segment_bytes=1MiB".to_owned(),
        "process.shards=1".to_owned(),
        "identity.partition_count=2".to_owned(),
        format!("quic.certificate_file={data}/server.pem"),
        format!("quic.key_file={data}/server-key.pem"),
    ]);
    set
}

fn config(set: Vec<String>) -> Result<Config, ConfigError> {
    load(&Sources {
        flags: set,
        ..Sources::default()
    })
}

/// The base with another value of this key that is allowed beside it.
fn changed(key: &Key, base: &[String], running: &Config, folder: &Folder) -> Config {
    let (name, data) = (key.dotted(), folder.0.display().to_string());
    let secret = folder.0.join("secret");
    std::fs::write(&secret, KEY).unwrap();
    let (min, max) = key.range.clone().unwrap_or_default();
    let mut candidates: Vec<String> = [min, max].iter().map(|end| end.trim_matches('"').to_owned()).collect();
    // A step from the default, where the ends contradict other keys.
    candidates.extend(["8MiB", "4MiB", "512KiB", "128KiB", "64KiB"].map(str::to_owned));
    candidates.extend([
        "127.0.0.1:1".to_owned(),
        KEY.to_owned(),
        format!("{data}/other.pem"),
        secret.display().to_string(),
        "os".to_owned(),
        "json".to_owned(),
        "debug".to_owned(),
        "twin".to_owned(),
        "off".to_owned(),
        "other.example".to_owned(),
    ]);
    candidates
        .into_iter()
        .filter(|value| !value.is_empty())
        .filter_map(|value| config([base, &[format!("{name}={value}")]].concat()).ok())
        .find(|wanted| {
            running
                .change_to(wanted)
                .is_ok_and(|change| change.applied.len() + change.waiting.len() > 0)
        })
        .unwrap_or_else(|| panic!("no other value of {name} was found"))
}

#[test]
fn every_key_is_applied_or_named_as_waiting_for_a_restart() {
    let folder = folder("keys");
    let files = ensure_dev_certificates(&folder.0, &[], SystemTime::now()).unwrap();
    let base = base(&folder);
    let running = config(base.clone()).unwrap();
    let (logging, _lines) = Logging::new(&running).unwrap();
    actix_rt::System::new().block_on(async {
        let tls = DoorTls::load(files.server(), &running).unwrap();
        let server = Server::start(&running, tls, None::<SocketAddr>).await.unwrap();
        let at_start = server.live(&logging);
        assert_eq!(at_start, Live::of(&running));
        for key in keys() {
            let name = key.dotted();
            let wanted = changed(&key, &base, &running, &folder);
            let change = server.reload(&wanted, &logging).await.unwrap();
            let live = server.live(&logging);
            // A secret's file brings the secret.
            let named = [change.applied.as_slice(), &change.waiting].concat();
            assert!(
                named
                    .iter()
                    .all(|named| named.starts_with(&name) || name.starts_with(named)),
                "{name}: {named:?}"
            );
            if key.is_live() {
                assert!(change.applied.contains(&name), "{name} is not named: {change:?}");
                assert_ne!(live, at_start, "{name} reached no part of the hub");
            } else {
                assert!(change.waiting.contains(&name), "{name} is not named: {change:?}");
                assert_eq!(live, at_start, "{name} waits for a restart");
            }
            assert_eq!(live, Live::of(&change.config), "{name}");
            server.reload(&running, &logging).await.unwrap();
            assert_eq!(server.live(&logging), at_start, "{name} was set back");
        }
        let rendered = server.metrics.render();
        let waiting = keys().iter().filter(|key| !key.is_live()).count();
        let line = format!("forebay_config_reloads_total{{outcome=\"restart_needed\"}} {waiting}");
        assert!(rendered.contains(&line), "{line} in\n{rendered}");
        // A filter that only a file of another version could hold.
        let mut wrong = running.clone();
        wrong.ops.log.0 = "forebay=loud".to_owned();
        wrong.throttles.wait_max = Duration::from_secs(1);
        assert!(matches!(
            server.reload(&wrong, &logging).await,
            Err(ReloadError::LogLines(_))
        ));
        assert_eq!(
            server.live(&logging),
            at_start,
            "nothing of what is refused is in force"
        );
        assert!(server.stop("the test is over").await);
    });
}

#[test]
fn the_printed_configuration_marks_what_is_live() {
    let text = default_toml();
    let marked = text.matches(" Live.").count();
    assert_eq!(marked, keys().iter().filter(|key| key.is_live()).count(), "of {marked}");
}

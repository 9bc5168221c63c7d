//! Tests of the TLS configuration: what is made, read, kept private and refused.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;

use rcgen::CertificateParams;

use super::*;
use crate::client::tls::{ClientTls, client_config};

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("forebay-tls-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn server_pem(files: &DevFiles) -> String {
    fs::read_to_string(&files.server_certificate).unwrap()
}

#[test]
fn development_certificates_name_every_host_and_verify_against_their_ca() {
    let folder = Folder::new("verify");
    let hosts = ["Hub.Example.net".to_owned(), "10.1.2.3".to_owned()];
    let files = ensure_dev_certificates(&folder.0, &hosts, SystemTime::now()).unwrap();
    let identity = load_identity(&files.server_certificate, &files.server_key).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(read_certificates("CA file", &files.ca_certificate).unwrap().remove(0))
        .unwrap();
    let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .unwrap();
    let verify = |name: &str, days: u32| {
        use rustls::client::danger::ServerCertVerifier;
        let later = SystemTime::now() + DAY * days;
        let time = UnixTime::since_unix_epoch(later.duration_since(SystemTime::UNIX_EPOCH).unwrap());
        let name = rustls::pki_types::ServerName::try_from(name.to_owned()).unwrap();
        verifier.verify_server_cert(&identity.chain[0], &[], &name, &[], time)
    };
    for name in ["hub.example.net", "10.1.2.3", "localhost", "127.0.0.1", "::1"] {
        verify(name, 0).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    assert!(verify("other.example.net", 0).is_err());
    assert!(verify("localhost", SERVER_DAYS - 1).is_ok());
    assert!(verify("localhost", SERVER_DAYS + 1).is_err());
    for (path, mode) in [
        (&files.ca_key, 0o600),
        (&files.server_key, 0o600),
        (&files.ca_certificate, 0o644),
    ] {
        assert_eq!(
            fs::metadata(path).unwrap().permissions().mode() & 0o777,
            mode,
            "{}",
            path.display()
        );
    }
}

#[test]
fn certificates_are_kept_until_a_name_is_missing_or_they_run_out() {
    let folder = Folder::new("keep");
    let now = SystemTime::now();
    let one = ["a.example".to_owned()];
    let two = ["a.example".to_owned(), "b.example".to_owned()];
    let files = ensure_dev_certificates(&folder.0, &one, now).unwrap();
    let ca = fs::read_to_string(&files.ca_certificate).unwrap();
    let first = server_pem(&files);

    ensure_dev_certificates(&folder.0, &one, now + DAY * (SERVER_DAYS - RENEW_DAYS - 1)).unwrap();
    assert_eq!(server_pem(&files), first, "nothing is missing");
    ensure_dev_certificates(&folder.0, &two, now).unwrap();
    let second = server_pem(&files);
    assert_ne!(second, first, "a name is missing");
    ensure_dev_certificates(&folder.0, &one, now).unwrap();
    assert_eq!(server_pem(&files), second, "a name too many does no harm");
    ensure_dev_certificates(&folder.0, &one, now + DAY * (SERVER_DAYS - RENEW_DAYS + 1)).unwrap();
    let third = server_pem(&files);
    assert_ne!(third, second, "it runs out soon");
    // A start was cut off between key and certificate.
    fs::write(&files.server_key, new_key(&[]).unwrap().serialize_pem()).unwrap();
    ensure_dev_certificates(&folder.0, &one, now).unwrap();
    load_identity(&files.server_certificate, &files.server_key).unwrap();
    assert_eq!(
        fs::read_to_string(&files.ca_certificate).unwrap(),
        ca,
        "clients go on trusting the same CA"
    );
}

#[test]
fn a_lost_ca_key_is_reported_and_not_replaced() {
    let folder = Folder::new("lost");
    let files = ensure_dev_certificates(&folder.0, &[], SystemTime::now()).unwrap();
    fs::remove_file(&files.ca_key).unwrap();
    let error = ensure_dev_certificates(&folder.0, &[], SystemTime::now())
        .unwrap_err()
        .to_string();
    assert!(error.contains("ca-key.pem is missing"), "{error}");
}

#[test]
fn errors_name_the_file() {
    let folder = Folder::new("errors");
    let files = ensure_dev_certificates(&folder.0, &[], SystemTime::now()).unwrap();
    let empty = folder.0.join("empty.pem");
    fs::write(&empty, "nothing here\n").unwrap();
    let missing = folder.0.join("missing.pem");
    for (certificate, key, parts) in [
        (&missing, &files.server_key, ["missing.pem", "cannot be read"]),
        (&empty, &files.server_key, ["empty.pem", "no certificate"]),
        (&files.server_certificate, &empty, ["empty.pem", "no private key"]),
        (
            &files.server_certificate,
            &files.ca_key,
            ["ca-key.pem", "do not belong together"],
        ),
    ] {
        let error = load_identity(certificate, key).unwrap_err().to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    }
}

/// A device's certificate that no CA of the hub vouches for.
fn self_signed(name: &str) -> Identity {
    let key = new_key(&[]).unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    let certificate = params.self_signed(&key).unwrap();
    Identity {
        chain: vec![certificate.der().clone()],
        key: rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
    }
}

struct Answer {
    chain_length: usize,
    took_early_data: bool,
}

/// One connection over real sockets: says "hi" as early as it may and tells what the server saw.
async fn connect(client: &quinn::Endpoint, server: &quinn::Endpoint) -> Result<Answer, String> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, server.local_addr().unwrap().port()));
    let accept = async {
        let connecting = server.accept().await.unwrap().accept().map_err(|e| e.to_string())?;
        let connection = connecting.await.map_err(|e| e.to_string())?;
        let mut stream = connection.accept_uni().await.map_err(|e| e.to_string())?;
        assert_eq!(stream.read_to_end(10).await.unwrap(), b"hi");
        let chain = connection
            .peer_identity()
            .and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
        connection.close(0u8.into(), b"");
        Ok::<usize, String>(chain.map_or(0, |chain| chain.len()))
    };
    let send = async {
        let (connection, accepted) = match client.connect(address, "localhost").unwrap().into_0rtt() {
            Ok((connection, accepted)) => (connection, Some(accepted)),
            Err(connecting) => (connecting.await.map_err(|e| e.to_string())?, None),
        };
        let mut stream = connection.open_uni().await.map_err(|e| e.to_string())?;
        stream.write_all(b"hi").await.map_err(|e| e.to_string())?;
        stream.finish().unwrap();
        let took_early_data = match accepted {
            Some(accepted) => accepted.await,
            None => false,
        };
        connection.closed().await;
        Ok::<bool, String>(took_early_data)
    };
    let (chain_length, took_early_data) = tokio::join!(accept, send);
    Ok(Answer {
        chain_length: chain_length?,
        took_early_data: took_early_data?,
    })
}

fn endpoints(
    files: &DevFiles,
    resumptions_max: usize,
    identity: Option<Identity>,
    alpn: &[u8],
) -> (quinn::Endpoint, quinn::Endpoint) {
    let tls = load_identity(&files.server_certificate, &files.server_key).unwrap();
    endpoints_of(files, &Certificate::new(tls, resumptions_max).unwrap(), identity, alpn)
}

fn endpoints_of(
    files: &DevFiles,
    certificate: &Arc<Certificate>,
    identity: Option<Identity>,
    alpn: &[u8],
) -> (quinn::Endpoint, quinn::Endpoint) {
    let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let tls = quinn::crypto::rustls::QuicServerConfig::try_from(server_config(certificate).unwrap()).unwrap();
    let server = quinn::Endpoint::server(quinn::ServerConfig::with_crypto(Arc::new(tls)), any_port).unwrap();
    let tls = ClientTls {
        identity,
        ..ClientTls::from_ca_file(&files.ca_certificate).unwrap()
    };
    let mut tls = Arc::unwrap_or_clone(client_config(tls).unwrap());
    tls.alpn_protocols = vec![alpn.to_vec()];
    let tls = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    let mut client = quinn::Endpoint::client(any_port).unwrap();
    client.set_default_client_config(quinn::ClientConfig::new(Arc::new(tls)));
    (client, server)
}

#[tokio::test]
async fn a_second_connection_sends_in_its_first_flight() {
    let folder = Folder::new("early");
    let files = ensure_dev_certificates(&folder.0, &[], SystemTime::now()).unwrap();
    let (client, server) = endpoints(&files, 100, None, ALPN);
    let first = connect(&client, &server).await.unwrap();
    assert_eq!((first.chain_length, first.took_early_data), (0, false));
    let second = connect(&client, &server).await.unwrap();
    assert!(second.took_early_data);
}

#[tokio::test]
async fn what_was_begun_under_an_earlier_certificate_is_not_resumed() {
    let folder = Folder::new("replaced");
    let files = ensure_dev_certificates(&folder.0, &[], SystemTime::now()).unwrap();
    let certificate = Certificate::new(
        load_identity(&files.server_certificate, &files.server_key).unwrap(),
        100,
    )
    .unwrap();
    let (client, server) = endpoints_of(&files, &certificate, None, ALPN);
    connect(&client, &server).await.unwrap();
    assert!(connect(&client, &server).await.unwrap().took_early_data);
    fs::remove_file(&files.server_certificate).unwrap();
    ensure_dev_certificates(&folder.0, &[], SystemTime::now()).unwrap();
    certificate
        .replace(load_identity(&files.server_certificate, &files.server_key).unwrap())
        .unwrap();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, server.local_addr().unwrap().port()));
    let accept = async { server.accept().await.unwrap().accept().unwrap().await.unwrap() };
    let resume = async {
        let (connection, accepted) = client.connect(address, "localhost").unwrap().into_0rtt().ok().unwrap();
        (accepted.await, connection)
    };
    let (_accepted, (took_early_data, connection)) = tokio::join!(accept, resume);
    assert!(!took_early_data);
    let shown = connection
        .peer_identity()
        .and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
    let served = read_certificates("certificate", &files.server_certificate).unwrap();
    assert_eq!(*shown.unwrap(), served, "the handshake is a full one");
}

#[tokio::test]
async fn without_a_memory_every_handshake_is_full() {
    let folder = Folder::new("full");
    let files = ensure_dev_certificates(&folder.0, &[], SystemTime::now()).unwrap();
    let (client, server) = endpoints(&files, 0, None, ALPN);
    for _ in 0..2 {
        assert!(!connect(&client, &server).await.unwrap().took_early_data);
    }
}

#[tokio::test]
async fn an_unknown_client_certificate_reaches_the_hub_also_when_resumed() {
    let folder = Folder::new("client");
    let files = ensure_dev_certificates(&folder.0, &[], SystemTime::now()).unwrap();
    let (client, server) = endpoints(&files, 100, Some(self_signed("dev-1")), ALPN);
    assert_eq!(connect(&client, &server).await.unwrap().chain_length, 1);
    let resumed = connect(&client, &server).await.unwrap();
    assert_eq!((resumed.chain_length, resumed.took_early_data), (1, true));
}

#[tokio::test]
async fn another_application_protocol_is_refused() {
    let folder = Folder::new("alpn");
    let files = ensure_dev_certificates(&folder.0, &[], SystemTime::now()).unwrap();
    let (client, server) = endpoints(&files, 100, None, b"forebay/9");
    let error = connect(&client, &server).await.map(|_| ()).unwrap_err();
    // RFC 7301 s3.2: alert 120 is no_application_protocol.
    assert!(error.contains("error 120"), "{error}");
}

/// Runs one TLS handshake in memory in which the server's verifier sees a signature by a foreign key.
#[test]
fn a_certificate_without_its_key_is_refused() {
    let folder = Folder::new("stolen");
    let files = ensure_dev_certificates(&folder.0, &[], SystemTime::now()).unwrap();
    let stolen = self_signed("dev-1");
    let other = self_signed("dev-2");
    #[derive(Debug)]
    struct Fixed(Arc<rustls::sign::CertifiedKey>);
    impl rustls::client::ResolvesClientCert for Fixed {
        fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<rustls::sign::CertifiedKey>> {
            Some(self.0.clone())
        }
        fn has_certs(&self) -> bool {
            true
        }
    }
    let handshake = |chain: Vec<CertificateDer<'static>>, key| {
        let key = provider().key_provider.load_private_key(key).unwrap();
        let base = client_config(ClientTls::from_ca_file(&files.ca_certificate).unwrap()).unwrap();
        let mut config = Arc::unwrap_or_clone(base);
        config.client_auth_cert_resolver = Arc::new(Fixed(Arc::new(rustls::sign::CertifiedKey::new(chain, key))));
        let server = load_identity(&files.server_certificate, &files.server_key).unwrap();
        let mut server =
            rustls::ServerConnection::new(server_config(&Certificate::new(server, 10).unwrap()).unwrap()).unwrap();
        let mut client = rustls::ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
        while client.is_handshaking() || server.is_handshaking() {
            let mut bytes = Vec::new();
            client.write_tls(&mut bytes).unwrap();
            server.read_tls(&mut bytes.as_slice()).unwrap();
            server.process_new_packets()?;
            let mut bytes = Vec::new();
            server.write_tls(&mut bytes).unwrap();
            client.read_tls(&mut bytes.as_slice()).unwrap();
            client.process_new_packets().unwrap();
        }
        Ok::<_, rustls::Error>(())
    };
    handshake(stolen.chain.clone(), stolen.key.clone_key()).unwrap();
    let error = handshake(stolen.chain, other.key).unwrap_err();
    assert_eq!(error, CertificateError::BadSignature.into());
}

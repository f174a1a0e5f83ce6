//! The configuration: a file in TOML, and flags, which win. Both have the same names.

use std::{fs, net::SocketAddr, path::PathBuf};

use clap::Parser;
use libp2p::Multiaddr;
use serde::Deserialize;

use crate::{error::RelayError, limits, log::LogLevel};

/// Where a relay listens by default.
const LISTEN_DEFAULT: [&str; 2] = ["/ip4/0.0.0.0/tcp/4001", "/ip6/::/tcp/4001"];

/// The command line.
#[derive(Debug, Default, Parser)]
#[command(
    name = "wavesync-relay",
    version,
    about = "Lets wavesync peers that can not reach each other meet. It forwards encrypted bytes \
             and can read none of them.",
    after_help = "The relay's full addresses are printed on standard output, one per line. Options \
                  may stand in the configuration file under the same names; a flag wins."
)]
pub struct Arguments {
    /// Read options from this file (TOML)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Listen here; repeatable; TCP, /ws behind a proxy, or /tls/ws [default: port 4001]
    #[arg(long, value_name = "MULTIADDR")]
    listen: Vec<String>,
    /// Tell peers this address instead of the listening ones; repeatable; behind NAT or proxy
    #[arg(long, value_name = "MULTIADDR", alias = "announce")]
    external: Vec<String>,
    /// Keep the relay's key here, so that its peer id stays; made when missing, for its owner only
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
    /// Certificate chain for /tls/ws (PEM)
    #[arg(long, value_name = "FILE", requires = "certificate_key")]
    certificate: Option<PathBuf>,
    /// Private key of the certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "certificate")]
    certificate_key: Option<PathBuf>,
    /// No limits per IP address, since all peers seem to have the proxy's
    #[arg(long)]
    behind_proxy: bool,
    /// Serve /metrics, /healthz and /readyz here, for example 127.0.0.1:9464 [default: not at all]
    #[arg(long, value_name = "ADDRESS:PORT")]
    http: Option<SocketAddr>,
    /// How much to write on standard error
    #[arg(long, value_name = "LEVEL")]
    log: Option<LogLevel>,
    /// Connections at a time
    #[arg(long, value_name = "N")]
    connections: Option<u32>,
    /// Connections at a time from one IP address
    #[arg(long, value_name = "N")]
    connections_per_ip: Option<u32>,
    /// Circuits at a time
    #[arg(long, value_name = "N")]
    circuits: Option<usize>,
    /// Bytes that a circuit may carry, both directions together; 0 is no limit [default: 0]
    #[arg(long, value_name = "N")]
    circuit_bytes: Option<u64>,
}

/// What a file may say.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    listen: Vec<String>,
    external: Vec<String>,
    identity: Option<PathBuf>,
    certificate: Option<PathBuf>,
    certificate_key: Option<PathBuf>,
    behind_proxy: bool,
    http: Option<SocketAddr>,
    log: Option<LogLevel>,
    limits: Limits,
}

/// How many and how much; the table `[limits]` of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Limits {
    /// Connections at a time.
    pub connections: u32,
    /// Connections at a time of one peer.
    pub connections_per_peer: u32,
    /// Connections at a time from one IP address.
    pub connections_per_ip: u32,
    /// Peers that may wait for circuits at a time.
    pub reservations: usize,
    /// Reservations of one peer.
    pub reservations_per_peer: usize,
    /// How long a reservation lasts unless it is renewed.
    pub reservation_seconds: u64,
    /// Circuits at a time.
    pub circuits: usize,
    /// Circuits at a time from one peer.
    pub circuits_per_peer: usize,
    /// How long a circuit may last.
    pub circuit_seconds: u64,
    /// Bytes that a circuit may carry, both directions together; 0 is no limit.
    pub circuit_bytes: u64,
    /// Groups that one peer may be in.
    pub groups_per_peer: usize,
    /// Peers at the meeting point, once for each group.
    pub meeting: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: limits::CONNECTIONS_MAX,
            connections_per_peer: limits::CONNECTIONS_PER_PEER_MAX,
            connections_per_ip: limits::CONNECTIONS_PER_IP_MAX,
            reservations: limits::RESERVATIONS_MAX,
            reservations_per_peer: limits::RESERVATIONS_PER_PEER_MAX,
            reservation_seconds: limits::RESERVATION_SECONDS,
            circuits: limits::CIRCUITS_MAX,
            circuits_per_peer: limits::CIRCUITS_PER_PEER_MAX,
            circuit_seconds: limits::CIRCUIT_SECONDS,
            circuit_bytes: limits::CIRCUIT_BYTES_UNLIMITED,
            groups_per_peer: limits::GROUPS_PER_PEER_MAX,
            meeting: limits::MEETING_MAX,
        }
    }
}

/// What a relay runs with.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Never empty after loading.
    pub listen: Vec<Multiaddr>,
    /// Whether `listen` is the default, of which a part may fail (a machine without IPv6).
    pub listen_by_default: bool,
    /// What peers are told instead of the listening addresses.
    pub external: Vec<Multiaddr>,
    /// Where the key is; a fresh one without.
    pub identity: Option<PathBuf>,
    /// Certificate chain and key.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// All peers seem to have the proxy's address.
    pub behind_proxy: bool,
    /// Where metrics and health are served.
    pub http: Option<SocketAddr>,
    /// How much is written.
    pub log: LogLevel,
    /// How many and how much.
    pub limits: Limits,
}

impl Config {
    /// Puts file and flags together.
    ///
    /// # Errors
    /// If the file can not be read, or something in either makes no sense.
    pub fn load(arguments: Arguments) -> Result<Config, RelayError> {
        let file = match &arguments.config {
            None => File::default(),
            Some(path) => {
                let failed = |reason| RelayError::ConfigFile { path: path.clone(), reason };
                let text = fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
                toml::from_str(&text).map_err(|error| failed(error.to_string()))?
            }
        };
        let or = |flags: Vec<String>, file| if flags.is_empty() { file } else { flags };
        let mut listen = addresses(or(arguments.listen, file.listen))?;
        let listen_by_default = listen.is_empty();
        if listen_by_default {
            listen = addresses(LISTEN_DEFAULT.map(str::to_owned).to_vec())?;
        }
        let certificate = match (
            arguments.certificate.or(file.certificate),
            arguments.certificate_key.or(file.certificate_key),
        ) {
            (Some(chain), Some(key)) => Some((chain, key)),
            (None, None) => None,
            _ => return Err(RelayError::Usage("a certificate needs certificate-key, too".into())),
        };
        let mut limits = file.limits;
        limits.connections = arguments.connections.unwrap_or(limits.connections);
        limits.connections_per_ip =
            arguments.connections_per_ip.unwrap_or(limits.connections_per_ip);
        limits.circuits = arguments.circuits.unwrap_or(limits.circuits);
        limits.circuit_bytes = arguments.circuit_bytes.unwrap_or(limits.circuit_bytes);
        Ok(Config {
            listen,
            listen_by_default,
            external: addresses(or(arguments.external, file.external))?,
            identity: arguments.identity.or(file.identity),
            certificate,
            behind_proxy: arguments.behind_proxy || file.behind_proxy,
            http: arguments.http.or(file.http),
            log: arguments.log.or(file.log).unwrap_or_default(),
            limits,
        })
    }
}

fn addresses(texts: Vec<String>) -> Result<Vec<Multiaddr>, RelayError> {
    texts.iter().map(|text| multiaddr(text)).collect()
}

fn multiaddr(text: &str) -> Result<Multiaddr, RelayError> {
    match text.parse::<Multiaddr>() {
        Ok(address) if !address.is_empty() => Ok(address),
        _ => Err(RelayError::Usage(format!(
            "{text:?} is not an address; write it like /ip4/0.0.0.0/tcp/4001"
        ))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn words(line: &str) -> Result<Config, String> {
        let words = ["wavesync-relay"].into_iter().chain(line.split_whitespace());
        let arguments = Arguments::try_parse_from(words).map_err(|error| error.to_string())?;
        Config::load(arguments).map_err(|error| error.to_string())
    }

    #[test]
    fn flags_repeat_and_have_defaults() {
        let line = "--listen /ip4/1.2.3.4/tcp/1 --listen /ip6/::1/tcp/2/ws --identity k";
        let config = words(line).unwrap();
        assert_eq!(config.listen.len(), 2);
        assert!(!config.listen_by_default && !config.behind_proxy);
        assert_eq!(config.identity, Some(PathBuf::from("k")));
        assert_eq!(config.limits, Limits::default());
        let config = words("--behind-proxy").unwrap();
        assert!(config.listen_by_default && config.behind_proxy);
        assert_eq!(config.listen.len(), LISTEN_DEFAULT.len());
    }

    #[test]
    fn mistakes_are_named() {
        for (line, named) in [
            ("--listen", "--listen"),
            ("--listen 1.2.3.4:1", "1.2.3.4:1"),
            ("--frobnicate", "--frobnicate"),
            ("--certificate c", "--certificate-key"),
            ("--http nowhere", "nowhere"),
            ("--log loud", "loud"),
            ("--config /nowhere/at/all", "/nowhere/at/all"),
        ] {
            let error = words(line).unwrap_err();
            assert!(error.contains(named), "{line}: {error}");
        }
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_defaults() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("relay.toml");
        let text = "listen = ['/ip4/127.0.0.1/tcp/5/ws']\nbehind-proxy = true\nlog = 'debug'\n\
                    [limits]\ncircuits = 7\ncircuit-bytes = 9\n";
        fs::write(&path, text).unwrap();
        let config = words(&format!("--config {} --circuits 8", path.display())).unwrap();
        assert_eq!(config.listen[0].to_string(), "/ip4/127.0.0.1/tcp/5/ws");
        assert!(config.behind_proxy && config.log == LogLevel::Debug);
        assert_eq!((config.limits.circuits, config.limits.circuit_bytes), (8, 9));
        assert_eq!(config.limits.connections, limits::CONNECTIONS_MAX);
        for (wrong, named) in [("circuit = 1", "circuit"), ("[limits]\nx = 1", "x"), ("=", "TOML")]
        {
            fs::write(&path, wrong).unwrap();
            let error = words(&format!("--config {}", path.display())).unwrap_err();
            assert!(error.contains(named) && error.contains("relay.toml"), "{error}");
        }
    }
}

//! The command line.

use std::path::PathBuf;

use libp2p::Multiaddr;

use crate::error::RelayError;

pub(crate) const HELP: &str = "\
wavesync-relay: lets wavesync peers that can not reach each other meet

usage: wavesync-relay [options]

  --listen MULTIADDR    listen here; may be given several times
                        (default: /ip4/0.0.0.0/tcp/4001 and /ip6/::/tcp/4001)
  --announce MULTIADDR  tell peers this address instead of the listening ones; may be given
                        several times; needed behind a NAT or a proxy
  --identity FILE       keep the relay's key here, so that its peer id stays the same; the file
                        is made when missing, readable by its owner only
  --behind-proxy        no limits per IP address, since all peers seem to have the proxy's
  --help, --version

The relay's full addresses are printed on standard output, one per line.";

/// Where a relay listens by default.
const LISTEN_DEFAULT: [&str; 2] = ["/ip4/0.0.0.0/tcp/4001", "/ip6/::/tcp/4001"];

#[derive(Debug)]
pub(crate) enum Command {
    Help,
    Version,
    Run(Options),
}

#[derive(Debug, Default)]
pub(crate) struct Options {
    /// Never empty after parsing.
    pub(crate) listen: Vec<Multiaddr>,
    /// Whether `listen` is the default, of which a part may fail (a machine without IPv6).
    pub(crate) listen_by_default: bool,
    pub(crate) announce: Vec<Multiaddr>,
    pub(crate) identity: Option<PathBuf>,
    pub(crate) behind_proxy: bool,
}

pub(crate) fn parse(mut words: impl Iterator<Item = String>) -> Result<Command, RelayError> {
    let mut options = Options::default();
    while let Some(word) = words.next() {
        let mut value =
            || words.next().ok_or_else(|| RelayError::Usage(format!("{word} needs a value")));
        match word.as_str() {
            "--help" | "-h" => return Ok(Command::Help),
            "--version" => return Ok(Command::Version),
            "--listen" => options.listen.push(multiaddr(&value()?)?),
            "--announce" => options.announce.push(multiaddr(&value()?)?),
            "--identity" => options.identity = Some(value()?.into()),
            "--behind-proxy" => options.behind_proxy = true,
            _ => return Err(RelayError::Usage(format!("unknown option {word:?}"))),
        }
    }
    if options.listen.is_empty() {
        options.listen_by_default = true;
        for address in LISTEN_DEFAULT {
            options.listen.push(multiaddr(address)?);
        }
    }
    Ok(Command::Run(options))
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

    fn words(line: &str) -> Result<Command, RelayError> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn options_repeat_and_have_defaults() {
        let line = "--listen /ip4/1.2.3.4/tcp/1 --listen /ip6/::1/tcp/2 --identity k";
        let Ok(Command::Run(options)) = words(line) else { panic!("expected a run") };
        assert_eq!(options.listen.len(), 2);
        assert!(!options.listen_by_default && !options.behind_proxy);
        assert_eq!(options.identity, Some(PathBuf::from("k")));
        let Ok(Command::Run(options)) = words("--behind-proxy") else { panic!("expected a run") };
        assert!(options.listen_by_default && options.behind_proxy);
        assert_eq!(options.listen.len(), LISTEN_DEFAULT.len());
    }

    #[test]
    fn mistakes_are_named() {
        for (line, named) in [
            ("--listen", "--listen"),
            ("--listen 1.2.3.4:1", "1.2.3.4:1"),
            ("--frobnicate", "--frobnicate"),
        ] {
            let error = words(line).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}

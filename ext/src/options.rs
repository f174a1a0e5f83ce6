//! The options of `wavesync_join`, as JSON.

use serde_json::{Map, Value};
use wavesync_core::store::contact::Existing;

use crate::ffi::SqlError;

/// What a user may ask for when joining; everything may be left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Multiaddresses to listen at.
    pub listen: Option<Vec<String>>,
    /// Multiaddresses of members to stay connected with.
    pub peers: Option<Vec<String>>,
    /// Multiaddresses of relays to be reachable through.
    pub relays: Option<Vec<String>>,
    /// Go from relayed connections to direct ones where that is possible.
    pub direct: Option<bool>,
    /// Look for members in the local network.
    pub mdns: Option<bool>,
    /// Sync only these tables.
    pub tables: Option<Vec<String>>,
    /// Create the group's tables here.
    pub adopt_schema: Option<bool>,
    /// What others see as this replica's name.
    pub name: Option<String>,
    /// What the rows that exist here already are to those of the group.
    pub existing: Option<Existing>,
}

const KEYS: &str = "listen, peers, relays, direct, mdns, tables, adopt_schema, name, existing";
const EXAMPLE: &str =
    r#"{"listen":["/ip4/127.0.0.1/tcp/4101"],"peers":["/ip4/127.0.0.1/tcp/4102"],"mdns":false}"#;

impl Options {
    /// Reads options.
    ///
    /// # Errors
    /// If the text is not a JSON object, a key is unknown, or a value has the wrong type.
    pub fn parse(text: &str) -> Result<Self, SqlError> {
        let object: Map<String, Value> = serde_json::from_str(text).map_err(|error| {
            SqlError::new(format!(
                "the options of wavesync_join must be a JSON object such as {EXAMPLE}: {error}"
            ))
        })?;
        let mut options = Self::default();
        for (key, value) in object {
            match key.as_str() {
                "listen" => options.listen = Some(addresses(&key, &value)?),
                "peers" => options.peers = Some(addresses(&key, &value)?),
                "relays" => options.relays = Some(relays(&key, &value)?),
                "tables" => options.tables = Some(texts(&key, &value)?),
                "direct" => options.direct = Some(flag(&key, &value)?),
                "mdns" => options.mdns = Some(flag(&key, &value)?),
                "adopt_schema" => options.adopt_schema = Some(flag(&key, &value)?),
                "name" => options.name = Some(name(&key, &value)?),
                "existing" => options.existing = Some(existing(&key, &value)?),
                _ => {
                    return Err(SqlError::new(format!(
                        "wavesync_join knows no option '{key}'; it knows {KEYS}"
                    )));
                }
            }
        }
        Ok(options)
    }
}

fn addresses(key: &str, value: &Value) -> Result<Vec<String>, SqlError> {
    let addresses = texts(key, value)?;
    for address in &addresses {
        wavesync_net::check_address(address).map_err(|error| SqlError::new(error.to_string()))?;
    }
    Ok(addresses)
}

fn relays(key: &str, value: &Value) -> Result<Vec<String>, SqlError> {
    let relays = texts(key, value)?;
    for relay in &relays {
        wavesync_net::check_relay(relay).map_err(|error| SqlError::new(error.to_string()))?;
    }
    Ok(relays)
}

fn texts(key: &str, value: &Value) -> Result<Vec<String>, SqlError> {
    let list = value.as_array().and_then(|list| {
        list.iter().map(|item| item.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()
    });
    list.ok_or_else(|| SqlError::new(format!("the option '{key}' must be a list of texts")))
}

fn flag(key: &str, value: &Value) -> Result<bool, SqlError> {
    value
        .as_bool()
        .ok_or_else(|| SqlError::new(format!("the option '{key}' must be true or false")))
}

fn existing(key: &str, value: &Value) -> Result<Existing, SqlError> {
    match value.as_str() {
        Some("same") => Ok(Existing::Same),
        Some("new_ids") => Ok(Existing::NewIds),
        _ => Err(SqlError::new(format!(
            "the option '{key}' must be \"same\" (rows with equal ids here and there are the same \
             things) or \"new_ids\" (they are not: the rows here get new ids)"
        ))),
    }
}

fn name(key: &str, value: &Value) -> Result<String, SqlError> {
    let most = wavesync_core::limits::REPLICA_NAME_MAX_BYTES;
    value.as_str().filter(|name| name.len() <= most).map(str::to_owned).ok_or_else(|| {
        SqlError::new(format!("the option '{key}' must be a text of at most {most} bytes"))
    })
}

#[cfg(test)]
#[path = "../../core/tests/noise/bend.rs"]
mod bend;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Good options with a few bytes bent, and any bytes at all.
    const INPUTS: u64 = 20_000;

    #[test]
    fn the_example_is_understood_and_mistakes_are_named() {
        let options = Options::parse(EXAMPLE).unwrap();
        assert_eq!(options.mdns, Some(false));
        assert_eq!(options.peers.unwrap(), ["/ip4/127.0.0.1/tcp/4102"]);
        let message = |text: &str| Options::parse(text).unwrap_err().to_string();
        assert!(message(r#"{"peer":[]}"#).contains("listen, peers"));
        assert!(message(r#"{"peers":"x"}"#).contains("list of texts"));
        assert!(message(r#"{"peers":["127.0.0.1:4"]}"#).contains("127.0.0.1:4"));
        assert!(message(r#"{"relays":["/ip4/127.0.0.1/tcp/4"]}"#).contains("peer id"));
        assert!(message(r#"{"existing":"mine"}"#).contains("new_ids"));
        assert!(message("[]").contains("JSON object"));
        assert!(message("{").contains("JSON object"));
    }

    #[test]
    fn inputs_that_a_fuzzer_kept_are_endured() {
        let fuzz = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
        let mut good = 0;
        for kind in ["corpus", "crashers"] {
            let Ok(files) = std::fs::read_dir(fuzz.join(kind).join("options")) else { continue };
            for file in files {
                let bytes = std::fs::read(file.unwrap().path()).unwrap();
                let text = String::from_utf8_lossy(&bytes);
                good += usize::from(Options::parse(&text).is_ok());
            }
        }
        assert!(good > 0, "no input is good: nothing was tried");
    }

    #[test]
    fn random_bytes_are_endured() {
        let good = [
            EXAMPLE,
            r#"{"relays":["/dns4/relay.example/tcp/443/wss/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"]}"#,
            r#"{"tables":["note","my table"],"direct":true,"adopt_schema":true,"name":"a"}"#,
            r#"{"existing":"new_ids","listen":["/ip6/::1/udp/0/quic-v1","/ip4/0.0.0.0/tcp/0/ws"]}"#,
        ];
        good.iter().for_each(|text| assert!(Options::parse(text).is_ok(), "{text}"));
        let examples: Vec<Vec<u8>> = good.map(|text| text.as_bytes().to_vec()).into();
        let (mut taken, mut refused) = (0, 0);
        for seed in 0..INPUTS {
            let bytes = super::bend::input(&mut super::bend::Dice::new(seed), &examples);
            match Options::parse(&String::from_utf8_lossy(&bytes)) {
                Ok(_) => taken += 1,
                Err(error) => {
                    assert!(!error.to_string().is_empty(), "seed {seed} is refused without a word");
                    refused += 1;
                }
            }
        }
        assert!(taken > 100 && refused > INPUTS / 2, "{taken} taken, {refused} refused");
    }
}

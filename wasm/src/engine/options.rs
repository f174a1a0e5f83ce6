//! The options of joining, as JSON, and which addresses a browser can dial.

use serde_json::{Map, Value};
use wavesync_core::limits;
use wavesync_core::store::contact::Existing;

use crate::error::Fault;

/// What a user may ask for when joining.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Multiaddresses of relays.
    pub relays: Vec<String>,
    /// Multiaddresses of members to stay connected with.
    pub peers: Vec<String>,
    /// Sync only these tables.
    pub tables: Option<Vec<String>>,
    /// Create the group's tables here.
    pub adopt_schema: Option<bool>,
    /// What others see as this replica's name.
    pub name: Option<String>,
    /// What the rows that exist here already are to those of the group.
    pub existing: Option<Existing>,
}

const KEYS: &str = "relays, peers, tables, adopt_schema, name, existing";

impl Options {
    /// Reads options; `secure` says that the page came by https.
    ///
    /// # Errors
    /// `bad_options`, `bad_address`, `not_websocket`, `insecure_websocket` or `no_relay`.
    pub fn parse(text: &str, secure: bool) -> Result<Self, Fault> {
        let object: Map<String, Value> = serde_json::from_str(text).map_err(|error| {
            bad(format!("the options of join must be an object such as {{relays: […]}}: {error}"))
        })?;
        let mut options = Self::default();
        for (key, value) in object {
            // What JavaScript leaves undefined or null was not given.
            if value.is_null() {
                continue;
            }
            match key.as_str() {
                "relays" => options.relays = addresses(&key, &value, secure)?,
                "peers" => options.peers = addresses(&key, &value, secure)?,
                "tables" => options.tables = Some(texts(&key, &value)?),
                "adopt_schema" => options.adopt_schema = Some(flag(&key, &value)?),
                "name" => options.name = Some(name(&key, &value)?),
                "existing" => options.existing = Some(existing(&key, &value)?),
                "listen" | "mdns" | "direct" => {
                    return Err(bad(format!(
                        "a browser cannot do what the option '{key}' asks for: it only dials, \
                         through websockets"
                    )));
                }
                _ => return Err(bad(format!("join knows no option '{key}'; it knows {KEYS}"))),
            }
        }
        for relay in &options.relays {
            wavesync_net::check_relay(relay).map_err(|error| {
                Fault::new("bad_address", error.to_string(), "the relay prints its addresses")
            })?;
        }
        if options.relays.is_empty() && options.peers.is_empty() {
            return Err(Fault::new(
                "no_relay",
                "joining needs a relay: nobody can connect to a browser, and it finds nobody in \
                 the local network",
                "pass {relays: ['/dns4/relay.example/tcp/443/tls/ws/p2p/12D3Koo…']}",
            ));
        }
        Ok(options)
    }
}

fn bad(message: String) -> Fault {
    Fault::new("bad_options", message, "")
}

fn texts(key: &str, value: &Value) -> Result<Vec<String>, Fault> {
    let list = value.as_array().and_then(|list| {
        list.iter().map(|item| item.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()
    });
    list.ok_or_else(|| bad(format!("the option '{key}' must be a list of texts")))
}

fn addresses(key: &str, value: &Value, secure: bool) -> Result<Vec<String>, Fault> {
    let addresses = texts(key, value)?;
    addresses.iter().try_for_each(|address| check(address, secure))?;
    Ok(addresses)
}

/// Whether this page can dial an address.
fn check(address: &str, secure: bool) -> Result<(), Fault> {
    wavesync_net::check_address(address).map_err(|error| {
        Fault::new("bad_address", error.to_string(), "a relay prints its addresses when it starts")
    })?;
    let first: Vec<&str> = address.split("/p2p/").next().unwrap_or("").split('/').collect();
    let has = |part: &str| first.contains(&part);
    if !has("ws") && !has("wss") {
        return Err(Fault::new(
            "not_websocket",
            format!("a browser cannot dial {address}: it has no /ws and no /tls/ws"),
            "use the websocket address that the relay prints, with /ws or /tls/ws; a relay listens \
             there when its configuration names such an address",
        ));
    }
    let host = first.get(2).copied().unwrap_or("");
    let local = host == "localhost" || host == "::1" || host.starts_with("127.");
    if secure && !local && !has("wss") && !has("tls") {
        return Err(Fault::new(
            "insecure_websocket",
            format!("a page that came by https must not dial {address}, which has no TLS"),
            "give the relay a certificate or a proxy with one, and use its address with /tls/ws",
        ));
    }
    Ok(())
}

fn flag(key: &str, value: &Value) -> Result<bool, Fault> {
    value.as_bool().ok_or_else(|| bad(format!("the option '{key}' must be true or false")))
}

fn existing(key: &str, value: &Value) -> Result<Existing, Fault> {
    match value.as_str() {
        Some("same") => Ok(Existing::Same),
        Some("new_ids") => Ok(Existing::NewIds),
        _ => Err(bad(format!(
            "the option '{key}' must be \"same\" (rows with equal ids here and there are the same \
             things) or \"new_ids\" (they are not: the rows here get new ids)"
        ))),
    }
}

fn name(key: &str, value: &Value) -> Result<String, Fault> {
    let most = limits::REPLICA_NAME_MAX_BYTES;
    value
        .as_str()
        .filter(|name| name.len() <= most)
        .map(str::to_owned)
        .ok_or_else(|| bad(format!("the option '{key}' must be a text of at most {most} bytes")))
}

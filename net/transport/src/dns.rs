//! Names in addresses: `/dns/…`, `/dns4/…` and `/dns6/…`, asked of the system's resolver on a
//! thread of its own, so that `/etc/hosts`, VPNs and split DNS count. The wrapped transport sees
//! only numbers.

use std::{
    error::Error as StdError,
    io,
    net::{IpAddr, ToSocketAddrs},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use futures::{
    TryFutureExt,
    future::{BoxFuture, MapErr},
};
use libp2p::core::{
    multiaddr::{Multiaddr, Protocol},
    transport::{DialOpts, ListenerId, Transport, TransportError, TransportEvent},
};

/// A name with more addresses than this is tried at the first ones only.
const ADDRESSES_PER_NAME_MAX: usize = 16;

/// Why a dial through [`DnsTransport`] failed.
#[derive(Debug, thiserror::Error)]
pub enum DnsError<E: StdError + 'static> {
    /// The resolver has no answer: a typing error, or no network.
    #[error("the name {name:?} can not be resolved ({source}); check its spelling and the network")]
    Resolve {
        /// The name that was asked for.
        name: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// The name exists, without an address of the family that was asked for.
    #[error("the name {name:?} has no address of the kind that {asked} asks for")]
    NoAddress {
        /// The name that was asked for.
        name: String,
        /// The protocol that named the family: `dns4` or `dns6`.
        asked: &'static str,
    },
    /// `/dnsaddr` needs a resolver of TXT records, which this transport has not.
    #[error("/dnsaddr is not supported; give the address with /dns4, /dns6 or /dns instead")]
    Dnsaddr,
    /// None of the addresses of the name answered.
    #[error("no address of {name:?} answered: {attempts}")]
    AllFailed {
        /// The name that was asked for.
        name: String,
        /// Every address that was tried with its error.
        attempts: String,
    },
    /// The wrapped transport failed.
    #[error("{0}")]
    Transport(#[source] E),
}

/// Resolves names before the wrapped transport dials. Addresses of one name are tried in order.
pub struct DnsTransport<T> {
    inner: Arc<Mutex<T>>,
}

impl<T> DnsTransport<T> {
    /// Wraps `inner`.
    pub fn new(inner: T) -> DnsTransport<T> {
        DnsTransport { inner: Arc::new(Mutex::new(inner)) }
    }
}

impl<T> DnsTransport<T>
where
    T: Transport,
    T::Error: 'static,
{
    fn with_inner<R>(&self, action: impl FnOnce(&mut T) -> R) -> R {
        action(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

type MapError<E> = fn(E) -> DnsError<E>;

impl<T> Transport for DnsTransport<T>
where
    T: Transport + Send + Unpin + 'static,
    T::Error: Send + 'static,
    T::Dial: Send + 'static,
{
    type Output = T::Output;
    type Error = DnsError<T::Error>;
    type ListenerUpgrade = MapErr<T::ListenerUpgrade, MapError<T::Error>>;
    type Dial = BoxFuture<'static, Result<T::Output, Self::Error>>;

    fn listen_on(
        &mut self,
        id: ListenerId,
        address: Multiaddr,
    ) -> Result<(), TransportError<Self::Error>> {
        self.with_inner(|inner| inner.listen_on(id, address))
            .map_err(|error| error.map(DnsError::Transport))
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.with_inner(|inner| inner.remove_listener(id))
    }

    fn dial(
        &mut self,
        address: Multiaddr,
        options: DialOpts,
    ) -> Result<Self::Dial, TransportError<Self::Error>> {
        let name = match Name::first_in(&address) {
            // A circuit's names are the business of the transport that dials its relay.
            Some(name) if !is_circuit(&address) => name,
            _ => {
                let dial = self
                    .with_inner(|inner| inner.dial(address, options))
                    .map_err(|error| error.map(DnsError::Transport))?;
                return Ok(Box::pin(dial.map_err(DnsError::Transport)));
            }
        };
        if name.family == Family::Dnsaddr {
            return Err(TransportError::Other(DnsError::Dnsaddr));
        }
        Ok(Box::pin(dial_name(self.inner.clone(), address, name, options)))
    }

    fn poll(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        self.with_inner(|inner| Transport::poll(Pin::new(inner), context)).map(|event| {
            event
                .map_upgrade(|upgrade| upgrade.map_err(DnsError::Transport as MapError<T::Error>))
                .map_err(DnsError::Transport)
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    Any,
    Four,
    Six,
    Dnsaddr,
}

/// The first name in an address and its place.
struct Name {
    text: String,
    family: Family,
    index: usize,
}

impl Name {
    fn first_in(address: &Multiaddr) -> Option<Name> {
        address.iter().enumerate().find_map(|(index, part)| {
            let (text, family) = match part {
                Protocol::Dns(text) => (text, Family::Any),
                Protocol::Dns4(text) => (text, Family::Four),
                Protocol::Dns6(text) => (text, Family::Six),
                Protocol::Dnsaddr(text) => (text, Family::Dnsaddr),
                _ => return None,
            };
            Some(Name { text: text.into_owned(), family, index })
        })
    }

    fn wants(&self, ip: &IpAddr) -> bool {
        match self.family {
            Family::Four => ip.is_ipv4(),
            Family::Six => ip.is_ipv6(),
            Family::Any => true,
            Family::Dnsaddr => false,
        }
    }
}

fn is_circuit(address: &Multiaddr) -> bool {
    address.iter().any(|part| part == Protocol::P2pCircuit)
}

/// The addresses of a name, in the resolver's order, each once.
async fn resolve<E: StdError + 'static>(name: &Name) -> Result<Vec<IpAddr>, DnsError<E>> {
    let asked = name.text.clone();
    let all = blocking::unblock(move || {
        (asked.as_str(), 0).to_socket_addrs().map(|found| found.collect::<Vec<_>>())
    })
    .await
    .map_err(|source| DnsError::Resolve { name: name.text.clone(), source })?;
    let mut wanted: Vec<IpAddr> = Vec::new();
    for ip in all.iter().map(|found| found.ip()).filter(|ip| name.wants(ip)) {
        if !wanted.contains(&ip) && wanted.len() < ADDRESSES_PER_NAME_MAX {
            wanted.push(ip);
        }
    }
    if wanted.is_empty() {
        let asked = if name.family == Family::Six { "dns6" } else { "dns4" };
        return Err(DnsError::NoAddress { name: name.text.clone(), asked });
    }
    Ok(wanted)
}

async fn dial_name<T>(
    inner: Arc<Mutex<T>>,
    address: Multiaddr,
    name: Name,
    options: DialOpts,
) -> Result<T::Output, DnsError<T::Error>>
where
    T: Transport,
    T::Error: 'static,
{
    let mut attempts: Vec<String> = Vec::new();
    for ip in resolve(&name).await? {
        let part = Protocol::from(ip);
        let Some(numeric) = address.replace(name.index, |_| Some(part.clone())) else { continue };
        // The lock is released before the dial is awaited.
        let started =
            inner.lock().unwrap_or_else(PoisonError::into_inner).dial(numeric.clone(), options);
        let outcome = match started {
            Ok(dial) => dial.await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match outcome {
            Ok(output) => return Ok(output),
            Err(error) => attempts.push(format!("{numeric}: {error}")),
        }
    }
    Err(DnsError::AllFailed { name: name.text, attempts: attempts.join("; ") })
}

//! The streams of one connection. Bursts of inbound streams wait for their turn here; none is lost
//! as long as the peer keeps within the limits that this side keeps itself.

use std::{
    collections::{HashSet, VecDeque},
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use futures::{StreamExt, stream::SelectAll};
use libp2p::{
    Stream,
    core::upgrade::ReadyUpgrade,
    swarm::{
        ConnectionHandler, ConnectionHandlerEvent, StreamProtocol, StreamUpgradeError,
        SubstreamProtocol,
        handler::{ConnectionEvent, DialUpgradeError, FullyNegotiatedOutbound},
    },
};

use super::{
    INBOUND_STREAMS_MAX, INBOUND_STREAMS_WAITING_MAX, OUTBOUND_STREAMS_MAX,
    OUTBOUND_STREAMS_WAITING_MAX, PROTOCOL, StreamId,
    pipe::{Pipe, PipeEvent},
    queue::Queue,
};

/// From the behaviour.
#[derive(Debug)]
pub(crate) enum Command {
    /// Open a stream; the answer carries the same number.
    Open { open: u64 },
}

/// To the behaviour.
#[derive(Debug)]
pub(crate) enum Report {
    /// A stream exists; `open` is `None` when the peer opened it.
    Opened {
        stream: StreamId,
        queue: Arc<Queue>,
        open: Option<u64>,
    },
    OpenFailed {
        open: u64,
        reason: String,
    },
    Frame {
        stream: StreamId,
        bytes: Vec<u8>,
    },
    Drained {
        stream: StreamId,
    },
    Closed {
        stream: StreamId,
        clean: bool,
        reason: String,
    },
}

pub(crate) struct Handler {
    ids: Arc<AtomicU64>,
    pipes: SelectAll<Pipe<Stream>>,
    inbound: HashSet<StreamId>,
    inbound_waiting: VecDeque<Stream>,
    outbound: HashSet<StreamId>,
    /// Opens that wait for a place.
    opens: VecDeque<u64>,
    /// Opens under negotiation.
    opening: usize,
    reports: VecDeque<Report>,
}

type Event = ConnectionHandlerEvent<ReadyUpgrade<StreamProtocol>, u64, Report>;

impl Handler {
    pub(crate) fn new(ids: Arc<AtomicU64>) -> Handler {
        Handler {
            ids,
            pipes: SelectAll::new(),
            inbound: HashSet::new(),
            inbound_waiting: VecDeque::new(),
            outbound: HashSet::new(),
            opens: VecDeque::new(),
            opening: 0,
            reports: VecDeque::new(),
        }
    }

    fn start(&mut self, io: Stream, open: Option<u64>) {
        let stream = StreamId(self.ids.fetch_add(1, Ordering::Relaxed));
        let queue = Arc::new(Queue::default());
        let side = if open.is_some() { &mut self.outbound } else { &mut self.inbound };
        side.insert(stream);
        self.pipes.push(Pipe::new(stream, io, queue.clone()));
        self.reports.push_back(Report::Opened { stream, queue, open });
    }

    fn accept(&mut self, io: Stream) {
        if self.inbound.len() < INBOUND_STREAMS_MAX {
            self.start(io, None);
        } else if self.inbound_waiting.len() < INBOUND_STREAMS_WAITING_MAX {
            self.inbound_waiting.push_back(io);
        } else {
            // Dropping it resets it: this peer ignores the limits of the protocol.
            tracing::debug!("too many inbound streams on one connection; one was reset");
        }
    }

    /// A stream ended: whoever waited longest takes its place.
    fn ended(&mut self, stream: StreamId) {
        self.outbound.remove(&stream);
        if self.inbound.remove(&stream)
            && let Some(io) = self.inbound_waiting.pop_front()
        {
            self.start(io, None);
        }
    }

    fn poll_pipes(&mut self, context: &mut Context<'_>) -> Poll<Option<Report>> {
        self.pipes.poll_next_unpin(context).map(|event| {
            event.map(|event| match event {
                PipeEvent::Frame { stream, bytes } => Report::Frame { stream, bytes },
                PipeEvent::Drained { stream } => Report::Drained { stream },
                PipeEvent::Closed { stream, clean, reason } => {
                    self.ended(stream);
                    Report::Closed { stream, clean, reason }
                }
            })
        })
    }

    fn open_failed(&mut self, open: u64, error: StreamUpgradeError<Infallible>) {
        self.opening -= 1;
        let reason = match error {
            StreamUpgradeError::Timeout => {
                "the peer did not answer in time; it may be busy, try again".to_owned()
            }
            StreamUpgradeError::NegotiationFailed => {
                format!("the peer does not speak {PROTOCOL}; this is no wavesync of this version")
            }
            StreamUpgradeError::Io(error) => format!("the connection failed: {error}"),
            StreamUpgradeError::Apply(never) => match never {},
        };
        self.reports.push_back(Report::OpenFailed { open, reason });
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Command;
    type ToBehaviour = Report;
    type InboundProtocol = ReadyUpgrade<StreamProtocol>;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = u64;

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol> {
        SubstreamProtocol::new(ReadyUpgrade::new(PROTOCOL), ())
    }

    fn connection_keep_alive(&self) -> bool {
        true
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Event> {
        if let Some(report) = self.reports.pop_front() {
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(report));
        }
        if self.outbound.len() + self.opening < OUTBOUND_STREAMS_MAX
            && let Some(open) = self.opens.pop_front()
        {
            self.opening += 1;
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest {
                protocol: SubstreamProtocol::new(ReadyUpgrade::new(PROTOCOL), open),
            });
        }
        match self.poll_pipes(context) {
            Poll::Ready(Some(report)) => {
                Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(report))
            }
            // Without streams there is nothing to wait for but the connection's own events.
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }

    /// The connection is ending: what arrived is still delivered.
    fn poll_close(&mut self, context: &mut Context<'_>) -> Poll<Option<Report>> {
        if let Some(report) = self.reports.pop_front() {
            return Poll::Ready(Some(report));
        }
        self.pipes.iter_mut().for_each(Pipe::drain);
        match self.poll_pipes(context) {
            Poll::Ready(report) => Poll::Ready(report),
            Poll::Pending => Poll::Ready(None),
        }
    }

    fn on_behaviour_event(&mut self, command: Command) {
        let Command::Open { open } = command;
        if self.opens.len() < OUTBOUND_STREAMS_WAITING_MAX {
            self.opens.push_back(open);
        } else {
            let reason = "too many streams wait to be opened; wait until some end".to_owned();
            self.reports.push_back(Report::OpenFailed { open, reason });
        }
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<Self::InboundProtocol, Self::OutboundProtocol, (), u64>,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(inbound) => self.accept(inbound.protocol),
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol,
                info,
            }) => {
                self.opening -= 1;
                self.start(protocol, Some(info));
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info, error }) => {
                self.open_failed(info, error);
            }
            _ => {}
        }
    }
}

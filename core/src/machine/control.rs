//! Connections, the handshake, and the control stream: hello, state, schema.

use crate::auth::{Accepting, Greeting, Offering, Proof, Session};
use crate::ids::{Cursor, Millis, SiteId, Stamp};
use crate::machine::collect;
use crate::machine::peer::{Known, Peer, PeerId, Stream, StreamId, StreamKind};
use crate::machine::{Level, Machine, Output};
use crate::mutants::{self, Mutant};
use crate::store::Store;
use crate::store::adopt::TableSchema;
use crate::store::apply::Full;
use crate::store::collect::Collected;
use crate::wire::message::{
    Answer, Attach, Hello, Refusal, RefusalCode, State, VectorList, features, plain, sealed,
};
use crate::{Error, Result, limits, wire};

/// Who was told to go and is still here is told again after this long, in milliseconds.
pub(super) const TOLD_TO_GO_MS: u64 = 5_000;
/// A control stream that lived for this long, in milliseconds, lasted.
const CONTROL_STEADY_MS: u64 = 60_000;
/// Number of the control stream in its session.
const CONTROL_STREAM: u64 = 0;

impl Machine {
    pub(super) fn connected(&mut self, now: Millis, id: PeerId, address: String, relayed: bool) {
        let peer =
            self.peers.entry(id.clone()).or_insert_with(|| Peer { since: now, ..Peer::default() });
        (peer.address, peer.relayed) = (address, relayed);
        self.greet(now, &id);
        self.make_way(&id);
    }

    pub(super) fn disconnected(&mut self, id: &PeerId) {
        self.peers.remove(id);
        self.opening.retain(|_, (peer, _)| peer != id);
        self.streams.retain(|_, stream| stream.peer != *id);
        self.inbox.retain(|(stream, _)| self.streams.contains_key(stream));
        // The network may give the same numbers again, after a pause.
        self.congested.retain(|stream| self.streams.contains_key(stream));
        self.asking.retain(|stream| self.streams.contains_key(stream));
        self.serving.retain(|stream| self.streams.contains_key(stream));
    }

    /// Gives up the connections to a peer that has proven nothing. They may take a while to end.
    pub(super) fn send_away(&mut self, id: &PeerId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        peer.leaving = Some(self.seen_at);
        let streams = self.streams.iter().filter(|(_, stream)| stream.peer == *id);
        let streams: Vec<StreamId> = streams.map(|(stream, _)| *stream).collect();
        streams.into_iter().for_each(|stream| self.close_stream(stream));
        self.outputs.push(Output::Disconnect { peer: id.clone() });
    }

    /// Opens the control stream, if that is this side's part.
    fn greet(&mut self, now: Millis, id: &PeerId) {
        let ours = self.config.own_peer < *id;
        let Some(peer) = self.peers.get_mut(id) else { return };
        if !ours
            || peer.leaving.is_some()
            || peer.greeting
            || peer.control.is_some()
            || peer.retry_at.is_some_and(|at| at > now)
        {
            return;
        }
        peer.greeting = true;
        self.open_stream(id, false);
    }

    pub(super) fn open_stream(&mut self, id: &PeerId, pass: bool) {
        let token = self.next_token;
        self.next_token += 1;
        self.opening.insert(token, (id.clone(), pass));
        self.outputs.push(Output::OpenStream { peer: id.clone(), token });
    }

    pub(super) fn stream_opened(
        &mut self,
        now: Millis,
        peer: PeerId,
        stream: StreamId,
        token: Option<u64>,
    ) {
        let leaving = self.peers.get(&peer).is_some_and(|peer| peer.leaving.is_some());
        let Some(token) = token.filter(|_| !leaving) else {
            self.streams.insert(stream, Stream::new(peer, StreamKind::Fresh, now));
            if leaving {
                self.close_stream(stream);
            }
            return;
        };
        let Some((peer, pass)) = self.opening.remove(&token) else {
            self.outputs.push(Output::Close { stream });
            return;
        };
        if pass {
            self.start_pass(now, peer, stream);
            return;
        }
        let (offering, greeting) = Offering::new(self.nonce());
        self.streams.insert(
            stream,
            Stream { offered: true, ..Stream::new(peer, StreamKind::Offering(offering), now) },
        );
        self.send_plain(stream, plain::GREETING, &greeting);
    }

    pub(super) fn stream_closed(&mut self, id: StreamId) {
        self.congested.remove(&id);
        let Some(stream) = self.streams.remove(&id) else { return };
        self.inbox.retain(|(waiting, _)| *waiting != id);
        let Some(peer) = self.peers.get_mut(&stream.peer) else { return };
        if stream.offered && !stream.kind.is_proven() {
            peer.greeting = false;
            peer.control_fell(self.seen_at, false);
        }
        match stream.kind {
            StreamKind::Again { .. } => {
                peer.requesting = false;
                peer.check.give_up();
                let soon = self.seen_at.plus(limits::DIGEST_QUIET_MS);
                self.check.not_before = self.check.not_before.max(soon);
            }
            StreamKind::Incoming { .. } => {
                peer.requesting = false;
                if std::mem::take(&mut peer.full) != Full::No {
                    // Others were not asked meanwhile.
                    let soon = self.seen_at.plus(limits::ASK_AGAIN_MS);
                    self.compare_at = self.compare_at.min(soon);
                }
                if std::mem::take(&mut peer.first_contact) {
                    // Somebody else may be asked now.
                    let soon = self.seen_at.plus(limits::ASK_AGAIN_MS);
                    self.compare_at = self.compare_at.min(soon);
                }
            }
            StreamKind::Control { .. } if peer.control == Some(id) => {
                peer.control = None;
                peer.session = None;
                peer.known = None;
                peer.greeting = false;
                // Among those who have proven nothing it is the newest.
                peer.since = self.seen_at;
                let lasted = self.seen_at.since(stream.since) >= CONTROL_STEADY_MS;
                peer.control_fell(self.seen_at, lasted);
            }
            _ => {}
        }
    }

    pub(super) fn close_stream(&mut self, stream: StreamId) {
        let proven = self.streams.get(&stream).is_none_or(|entry| entry.kind.is_proven());
        self.outputs.push(match proven {
            true => Output::Close { stream },
            false => Output::Abandon { stream },
        });
        self.stream_closed(stream);
    }

    /// A frame arrived: handshake frames are answered here, sealed ones are opened and queued.
    pub(super) fn frame(&mut self, now: Millis, id: StreamId, bytes: &[u8]) {
        self.seen_at = now;
        let Some(mut stream) = self.streams.remove(&id) else { return };
        if let Some(peer) = self.peers.get_mut(&stream.peer) {
            peer.counters.bytes_in += bytes.len() as u64;
        }
        let outcome = self.frame_on(now, id, &mut stream, bytes);
        self.streams.insert(id, stream);
        match outcome {
            Ok(()) if self.inbox_is_full() => {
                let error = Error::protocol("messages arrive faster than SQLite can take them");
                self.give_up_stream(id, &error);
            }
            Ok(()) => {
                let kind = self.streams.get(&id).map(|stream| &stream.kind);
                if matches!(kind, Some(StreamKind::Refused)) {
                    self.close_stream(id);
                }
            }
            Err(error) => self.give_up_stream(id, &error),
        }
    }

    fn inbox_is_full(&self) -> bool {
        let bytes: usize = self.inbox.iter().map(|(_, opened)| opened.body.len()).sum();
        self.inbox.len() > limits::INBOX_MAX_MESSAGES
            || (bytes > limits::INBOX_MAX_BYTES && self.inbox.len() > 1)
    }

    fn frame_on(
        &mut self,
        now: Millis,
        id: StreamId,
        stream: &mut Stream,
        bytes: &[u8],
    ) -> Result<()> {
        let most = match stream.kind {
            StreamKind::Control { .. } => limits::CONTROL_MESSAGE_MAX_BYTES,
            StreamKind::Incoming { .. } | StreamKind::Again { .. } => {
                limits::PASS_MESSAGE_MAX_BYTES
            }
            StreamKind::Outgoing { .. } => limits::CONTROL_MESSAGE_MAX_BYTES,
            _ => return self.handshake_frame(now, id, stream, bytes),
        };
        let progress =
            matches!(stream.kind, StreamKind::Incoming { .. } | StreamKind::Again { .. });
        let (StreamKind::Control { channel }
        | StreamKind::Again { channel }
        | StreamKind::Incoming { channel, .. }
        | StreamKind::Outgoing { channel, .. }) = &mut stream.kind
        else {
            return Ok(());
        };
        if let Some(opened) = channel.open(bytes, most)? {
            self.inbox.push_back((id, opened));
        }
        if progress {
            stream.since = now;
        }
        Ok(())
    }

    fn handshake_frame(
        &mut self,
        now: Millis,
        id: StreamId,
        stream: &mut Stream,
        bytes: &[u8],
    ) -> Result<()> {
        let long = bytes.len() > limits::HANDSHAKE_MESSAGE_MAX_BYTES;
        if long && !mutants::on(Mutant::LongHandshake) {
            return Err(Error::protocol("a handshake message is too long"));
        }
        let (kind, body) =
            bytes.split_first().ok_or_else(|| Error::protocol("an empty handshake message"))?;
        let own = self.config.own_peer.0.clone();
        let names = (&own[..], &stream.peer.0[..]);
        if *kind == plain::REFUSAL {
            let refusal: Refusal = wire::decode(body)?;
            stream.kind = StreamKind::Refused;
            return self.refused(&stream.peer.clone(), RefusalCode::from_number(refusal.code));
        }
        let state = std::mem::replace(&mut stream.kind, StreamKind::Fresh);
        match (state, *kind) {
            (StreamKind::Fresh, plain::GREETING) => {
                let greeting: Greeting = wire::decode(body)?;
                let nonce = self.nonce();
                let (accepting, greeting, proof) =
                    Accepting::answer(&self.config.key, names, nonce, &greeting)?;
                self.send_plain(id, plain::ANSWER, &Answer { greeting, proof });
                if mutants::on(Mutant::EarlySession) {
                    let session = accepting.session(&self.config.key);
                    self.control_ready(now, id, stream, session);
                    return Ok(());
                }
                stream.kind = StreamKind::Accepting(accepting);
            }
            (StreamKind::Fresh, plain::ATTACH) => {
                let attach: Attach = wire::decode(body)?;
                stream.kind = self.attach(&stream.peer, &attach);
                stream.since = now;
            }
            (StreamKind::Offering(offering), plain::ANSWER) => {
                let answer: Answer = wire::decode(body)?;
                let (session, proof) =
                    offering.finish(&self.config.key, names, &answer.greeting, &answer.proof)?;
                self.send_plain(id, plain::PROOF, &proof);
                self.control_ready(now, id, stream, session);
            }
            (StreamKind::Accepting(accepting), plain::PROOF) => {
                let proof: Proof = wire::decode(body)?;
                let session = accepting.finish(&self.config.key, &proof)?;
                self.control_ready(now, id, stream, session);
            }
            _ => return Err(Error::protocol("a handshake message out of order")),
        }
        Ok(())
    }

    /// A further stream of a proven session; its seals prove that it belongs there. With two
    /// connections one after the other, a stream may name a session that is over on this side:
    /// that is nobody's fault, and the peer asks again in its next session.
    fn attach(&mut self, id: &PeerId, attach: &Attach) -> StreamKind {
        let passes = self.streams.values().filter(|stream| {
            stream.peer == *id && matches!(stream.kind, StreamKind::Outgoing { .. })
        });
        let room = passes.count() < limits::PASSES_PER_PEER_MAX;
        let Some(peer) = self.peers.get_mut(id) else { return StreamKind::Refused };
        let fresh = peer.attached < attach.stream || mutants::on(Mutant::AttachUsedNumber);
        match &peer.session {
            Some(session) if room && fresh && may_attach(session, attach) => {
                peer.attached = attach.stream;
                StreamKind::Outgoing { channel: session.channel(attach.stream), serving: None }
            }
            _ => StreamKind::Refused,
        }
    }

    /// The peer says that it does not accept us.
    fn refused(&mut self, id: &PeerId, code: RefusalCode) -> Result<()> {
        let (code, message, hint) = match code {
            RefusalCode::Auth => (
                "auth_failed",
                "a peer refused us: it has another topic or passphrase",
                "check that both sides use the same topic and passphrase",
            ),
            RefusalCode::Version => (
                "version",
                "a peer refused us: it speaks another version of the protocol",
                "update the older of the two sides",
            ),
            RefusalCode::Other => ("refused", "a peer refused us", "it is tried again"),
        };
        self.failed(id, (Level::Warning, code, message, hint));
        Ok(())
    }

    fn control_ready(&mut self, now: Millis, id: StreamId, stream: &mut Stream, session: Session) {
        stream.kind = StreamKind::Control { channel: session.channel(CONTROL_STREAM) };
        stream.since = now;
        let Some(peer) = self.peers.get_mut(&stream.peer) else { return };
        let before = peer.control.replace(id);
        peer.session = Some(session);
        (peer.greeting, peer.attached, peer.last_error, peer.known) = (false, 0, None, None);
        (peer.told, peer.caps_told, peer.schema_told) = (None, None, None);
        (peer.collected_told, peer.apart) = (None, false);
        (peer.hello_due, peer.refusals) = (true, 0);
        peer.check = super::check::PeerCheck::default();
        self.outputs.push(Output::Proven { peer: stream.peer.clone() });
        if let Some(before) = before.filter(|before| *before != id) {
            self.close_stream(before);
            if let Some(peer) = self.peers.get_mut(&stream.peer) {
                peer.control = Some(id);
            }
        }
    }

    pub(super) fn check_deadlines(&mut self, now: Millis) {
        self.seen_at = now;
        let late: Vec<StreamId> = self
            .streams
            .iter()
            .filter(|(_, stream)| stream.deadline().is_some_and(|at| at <= now))
            .map(|(id, _)| *id)
            .collect();
        for id in late {
            self.close_stream(id);
        }
        // A connection that was being made when it was told came too late for that.
        let stays = |_: &PeerId, peer: &Peer| {
            peer.leaving.is_some_and(|told| told.plus(TOLD_TO_GO_MS) <= now)
        };
        self.peers_where(stays).iter().for_each(|id| self.send_away(id));
        let waiting = self.peers_where(|_, peer| peer.control.is_none() && !peer.greeting);
        waiting.iter().for_each(|id| self.greet(now, id));
    }

    pub(super) fn hello(
        &mut self,
        now: Millis,
        id: &PeerId,
        hello: Hello,
        store: &mut Store,
    ) -> Result<()> {
        if hello.site == self.identity.site {
            // Nobody can tell which of the two is the copy; the other one does the same.
            return self.renew(now, Stamp(0), store);
        }
        if self.site_of(id).is_some_and(|site| site != hello.site) {
            return Err(Error::protocol("a second hello under another site id"));
        }
        let mut vector = hello.state.vector.check()?;
        if self.contradicted(now, &hello.state, &vector, store)? {
            return Ok(());
        }
        let caps = store.own_state(now)?.caps;
        let over = vector.clamp(&caps);
        let lowered = hello.state.applied.check()?;
        let applied = vector.with_lowered(&lowered);
        let mut collected = Collected::new();
        collect::learn(&mut collected, hello.state.collected.as_deref(), &vector, &caps);
        let cursor = store.cursor_for(now, hello.site)?;
        let read = hello.state.cursor;
        store.write(now, |tx| {
            tx.remember_member(hello.site, &id.0, &hello.name)?;
            tx.remember_read(hello.site, read)
        })?;
        let adopts = store.adopts()?;
        let Some(peer) = self.peers.get_mut(id) else { return Ok(()) };
        peer.wants_schema = hello.wants_schema;
        peer.awaits_schema = adopts;
        let started_at = cursor.seq;
        let (site, name) = (hello.site, hello.name);
        let state = hello.state;
        let (in_order, digests) = ((0, 0), hello.features & features::DIGESTS != 0);
        let known = Known {
            site,
            name,
            digests,
            state,
            vector,
            over,
            applied,
            collected,
            cursor,
            started_at,
            in_order,
        };
        peer.known = Some(known);
        self.recall_contact(now, id, store)?;
        self.event(Level::Info, "connected", "a member is connected", "", Some(id));
        self.check_held_back(id, &lowered);
        if hello.wants_schema {
            let tables = store.schema(now)?;
            self.tell_schema(id, &tables)?;
        }
        self.consider(now, id, store)
    }

    pub(super) fn peer_state(
        &mut self,
        now: Millis,
        id: &PeerId,
        state: State,
        store: &mut Store,
    ) -> Result<()> {
        let mut vector = state.vector.check()?;
        if self.contradicted(now, &state, &vector, store)? {
            return Ok(());
        }
        let caps = store.own_state(now)?.caps;
        let over = vector.clamp(&caps);
        let known = self.peers.get_mut(id).and_then(|peer| peer.known.as_mut());
        let known = known.ok_or_else(|| Error::protocol("a state before the hello"))?;
        let lowered = state.applied.check()?;
        if state.partial {
            known.over.retain(|site| !vector.0.contains_key(site));
            known.over.extend(over);
            known.vector.0.append(&mut vector.0);
        } else {
            (known.over, known.vector) = (over, vector);
        }
        known.applied = known.vector.with_lowered(&lowered);
        collect::learn(&mut known.collected, state.collected.as_deref(), &known.vector, &caps);
        known.state = state;
        self.trim_due = true;
        self.check_held_back(id, &lowered);
        self.consider(now, id, store)
    }

    pub(super) fn adopt(
        &mut self,
        now: Millis,
        id: &PeerId,
        tables: &[TableSchema],
        store: &mut Store,
    ) -> Result<()> {
        if tables.len() > limits::TABLES_MAX {
            return Err(Error::protocol("a schema has too many tables"));
        }
        let (created, names) = store.adopt(now, tables)?;
        if names {
            // What was kept under them may have joined rows, and others may not know them yet.
            (self.own_dirty, self.schema_due) = (true, true);
        }
        if !created.is_empty() {
            let message =
                format!("tables created as other members have them: {}", created.join(", "));
            self.event(Level::Info, "schema_adopted", &message, "", Some(id));
        }
        if let Some(peer) = self.peers.get_mut(id) {
            peer.awaits_schema = false;
        }
        self.consider(now, id, store)
    }

    /// Tells the schema again to those who create tables from it, if it changed.
    pub(super) fn send_schema(&mut self, now: Millis, store: &mut Store) -> Result<()> {
        let wanting = self.peers_where(|_, peer| peer.wants_schema && peer.control.is_some());
        if wanting.is_empty() {
            return Ok(());
        }
        let tables = store.schema(now)?;
        wanting.iter().try_for_each(|id| self.tell_schema(id, &tables))
    }

    fn tell_schema(&mut self, id: &PeerId, tables: &[TableSchema]) -> Result<()> {
        let Some(peer) = self.peers.get_mut(id) else { return Ok(()) };
        if peer.schema_told.as_deref() == Some(tables) {
            return Ok(());
        }
        peer.schema_told = Some(tables.to_vec());
        self.send_control(id, sealed::SCHEMA, &tables)
    }

    /// Rule P11: whoever is connected is told once whenever the end or the vector moved.
    pub(super) fn announce(&mut self, now: Millis, store: &mut Store) -> Result<()> {
        let greetings = self.peers_where(|_, peer| peer.hello_due && peer.control.is_some());
        let due = now.since(self.announced_at) >= limits::ANNOUNCE_INTERVAL_MS;
        // What is still being taken in is told when all of it is.
        let due = due && !self.importing;
        if greetings.is_empty() && !(self.own_dirty && due) {
            return Ok(());
        }
        let own = store.own_state(now)?;
        for id in &greetings {
            let hello = Hello {
                features: features::DIGESTS,
                site: self.identity.site,
                name: self.config.name.clone(),
                wants_schema: store.adopts()?,
                state: self.state_for(now, id, &own, store)?,
            };
            self.send_control(id, sealed::HELLO, &hello)?;
            if let Some(peer) = self.peers.get_mut(id) {
                peer.hello_due = false;
            }
        }
        if !due {
            self.own = Some(own);
            return Ok(());
        }
        let changed = self.announced.as_ref() != Some(&own);
        if changed && !mutants::on(Mutant::NoAnnounce) {
            self.tell_state(now, &own, &greetings, store)?;
        }
        self.announced = Some(own.clone());
        self.announced_at = now;
        self.own = Some(own);
        self.own_dirty = false;
        if changed {
            self.trim_due = true;
            self.consider_all(now, store)?;
        }
        Ok(())
    }

    /// Tells everybody who got our hello, and not only now: whoever has not sent his yet would
    /// never be told.
    pub(super) fn tell_state(
        &mut self,
        now: Millis,
        own: &crate::store::state::OwnState,
        greeted: &[PeerId],
        store: &mut Store,
    ) -> Result<()> {
        let told = self.peers_where(|id, peer| {
            let congested = peer.control.is_some_and(|stream| self.congested.contains(&stream));
            peer.control.is_some() && !greeted.contains(id) && !congested
        });
        for id in told {
            let state = self.state_for(now, &id, own, store)?;
            self.send_control(&id, sealed::STATE, &state)?;
        }
        Ok(())
    }

    fn state_for(
        &mut self,
        now: Millis,
        id: &PeerId,
        own: &crate::store::state::OwnState,
        store: &mut Store,
    ) -> Result<State> {
        let mut peer = self.peers.get_mut(id);
        let cursor = match peer.as_ref().and_then(|peer| peer.known.as_ref()) {
            Some(known) => store.cursor_for(now, known.site)?,
            None => Cursor::default(),
        };
        // Streams keep the order, so what was told on this one has been heard.
        let told = peer.as_mut().and_then(|peer| peer.told.replace(own.vector.clone()));
        let (caps_told, collected_told) = match peer {
            Some(peer) => (
                peer.caps_told.replace(own.caps.clone()).unwrap_or_default(),
                peer.collected_told.replace(own.collected.clone()),
            ),
            None => Default::default(),
        };
        let collected = (collected_told.as_ref() != Some(&own.collected))
            .then(|| own.collected.iter().map(|(site, stamp)| (*site, *stamp)).collect());
        let fell = |(site, stamp): &(&SiteId, &Stamp)| caps_told.get(*site) != Some(*stamp);
        let moved = told.and_then(|told| VectorList::since(&own.vector, &told));
        Ok(State {
            boot: own.boot,
            end: own.end,
            partial: moved.is_some(),
            vector: moved.unwrap_or_else(|| VectorList::from(&own.vector)),
            applied: VectorList::from(&own.lowered),
            closed: own.closed,
            cursor,
            caps: own.caps.iter().filter(fell).map(|(site, stamp)| (*site, *stamp)).collect(),
            collected,
        })
    }

    pub(super) fn send_control<T: serde::Serialize>(
        &mut self,
        id: &PeerId,
        kind: u8,
        message: &T,
    ) -> Result<()> {
        let Some(stream) = self.peers.get(id).and_then(|peer| peer.control) else { return Ok(()) };
        self.send_sealed(stream, kind, &wire::encode(message)?)
    }

    pub(super) fn send_sealed(&mut self, id: StreamId, kind: u8, body: &[u8]) -> Result<()> {
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        let (StreamKind::Control { channel }
        | StreamKind::Again { channel }
        | StreamKind::Incoming { channel, .. }
        | StreamKind::Outgoing { channel, .. }) = &mut stream.kind
        else {
            return Ok(());
        };
        let frames = channel.seal(kind, body)?;
        let peer = stream.peer.clone();
        for frame in frames {
            if let Some(peer) = self.peers.get_mut(&peer) {
                peer.counters.bytes_out += frame.len() as u64;
            }
            self.outputs.push(Output::Send { stream: id, frame });
        }
        Ok(())
    }

    pub(super) fn send_plain<T: serde::Serialize>(&mut self, id: StreamId, kind: u8, message: &T) {
        let Ok(body) = wire::encode(message) else { return };
        let mut frame = vec![kind];
        frame.extend_from_slice(&body);
        self.outputs.push(Output::Send { stream: id, frame });
    }
}

/// Whether a stream names this session, and a number in it that is the peer's to give. A number of
/// this side's would share its keys with a stream of our own.
fn may_attach(session: &Session, attach: &Attach) -> bool {
    let named = session.id == attach.session || mutants::on(Mutant::AttachAnySession);
    let theirs = session.is_peers_number(attach.stream) || mutants::on(Mutant::AttachOwnNumber);
    named && theirs
}

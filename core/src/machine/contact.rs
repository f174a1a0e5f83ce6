//! First contact: a member that brings rows from before it joined is asked for nothing until these
//! rows were compared with those here.

use crate::Result;
use crate::ids::Millis;
use crate::machine::peer::{PeerId, StreamId};
use crate::machine::{Level, Machine};
use crate::store::Store;
use crate::store::contact::{CHOICES, describe};
use crate::store::state::OwnState;
use crate::store::vector::Vector;
use crate::wire;
use crate::wire::message::{Request, Unrelated, sealed};

/// What a contact that came to nothing was judged by: it is not tried again before that changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Judged {
    own: Vec<crate::ids::SiteId>,
    theirs: Vec<crate::ids::SiteId>,
}

/// How a catch-up may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Approach {
    /// Not now.
    Wait,
    /// Nothing here is to be compared.
    Plain,
    /// With a sample of the rows here.
    Sampled,
}

impl Machine {
    /// How to begin a catch-up with a peer. What brings rows from before joining is fetched from one
    /// member at a time, so that those of two members cannot mix unseen.
    pub(super) fn approach(
        &mut self,
        now: Millis,
        id: &PeerId,
        own: &OwnState,
        store: &mut Store,
    ) -> Result<Approach> {
        let Some(peer) = self.peers.get(id) else { return Ok(Approach::Wait) };
        let Some(known) = peer.known.as_ref() else { return Ok(Approach::Wait) };
        if own.importing {
            return Ok(Approach::Wait);
        }
        let site = known.site;
        let mut approach = Approach::Plain;
        if !own.has_met(&known.vector) {
            if self.peers.values().any(|other| other.requesting && other.first_contact) {
                return Ok(Approach::Wait);
            }
            // One back-fill in both: they have met by way of others, as somebody has decided.
            let merged = own.vector.imports().any(|import| known.vector.0.contains_key(&import));
            if own.populated && !merged && !store.folded(now, |tx| tx.contact(site))?.1 {
                let judged = judged(&own.vector, &known.vector);
                if peer.stopped.as_ref() == Some(&judged) {
                    return Ok(Approach::Wait);
                }
                approach = Approach::Sampled;
            }
        }
        if approach == Approach::Plain {
            self.resume(now, id, store)?;
        }
        Ok(approach)
    }

    /// Whether the rows that a peer had before joining are here, so that its pushes make sense.
    pub(super) fn acquainted(&self, id: &PeerId, own: &OwnState) -> bool {
        let known = self.peers.get(id).and_then(|peer| peer.known.as_ref());
        known.is_some_and(|known| own.has_met(&known.vector))
    }

    /// At a hello: what was found out before the engine or the connection ended still holds.
    pub(super) fn recall_contact(
        &mut self,
        now: Millis,
        id: &PeerId,
        store: &mut Store,
    ) -> Result<()> {
        let Some(site) = self.site_of(id) else { return Ok(()) };
        let Some(tables) = store.folded(now, |tx| tx.contact(site))?.0 else { return Ok(()) };
        if let Some(peer) = self.peers.get_mut(id) {
            peer.stopped = Some(Judged::default());
            peer.last_error = Some((describe(&[tables]), CHOICES.into()));
        }
        Ok(())
    }

    /// A requester's sample is judged. Returns whether it may have the rows.
    pub(super) fn judge(
        &mut self,
        now: Millis,
        stream: StreamId,
        request: &Request,
        store: &mut Store,
    ) -> Result<bool> {
        let id = self.streams.get(&stream).map(|entry| entry.peer.clone());
        let Some(id) = id.filter(|_| !request.sample.is_empty()) else { return Ok(true) };
        let Some(site) = self.site_of(&id) else { return Ok(true) };
        let tables = store.folded(now, |tx| {
            if tx.contact(site)?.1 { Ok(Vec::new()) } else { tx.unrelated(&request.sample) }
        })?;
        if tables.is_empty() {
            return Ok(true);
        }
        if !self.stop_contact(now, &id, &tables, store)? {
            // The user has said beforehand that the rows are the same.
            return Ok(true);
        }
        self.send_sealed(stream, sealed::UNRELATED, &wire::encode(&Unrelated { tables })?)?;
        Ok(false)
    }

    /// The responder found that our sample and its rows are different things.
    pub(super) fn unrelated(
        &mut self,
        now: Millis,
        stream: StreamId,
        unrelated: &Unrelated,
        store: &mut Store,
    ) -> Result<()> {
        let id = self.streams.get(&stream).map(|entry| entry.peer.clone());
        if let Some(id) = id {
            self.stop_contact(now, &id, &unrelated.tables, store)?;
        }
        self.close_stream(stream);
        Ok(())
    }

    /// Nothing is exchanged with a peer until the user has decided; told once. Returns `false` if
    /// that is decided already.
    fn stop_contact(
        &mut self,
        now: Millis,
        id: &PeerId,
        tables: &[String],
        store: &mut Store,
    ) -> Result<bool> {
        let Some(site) = self.site_of(id) else { return Ok(true) };
        let own = store.own_state(now)?.vector;
        let (news, accepted) = store.write(now, |tx| {
            let news = tx.set_contact(site, Some(tables))?;
            Ok((news, tx.contact(site)?.1))
        })?;
        if accepted {
            self.compare_at = Millis(0);
            return Ok(false);
        }
        let message = describe(tables);
        if let Some(peer) = self.peers.get_mut(id) {
            peer.stopped = peer.known.as_ref().map(|known| judged(&own, &known.vector));
            peer.last_error = Some((message.clone(), CHOICES.into()));
        }
        if news {
            self.event(Level::Warning, "unrelated", &message, CHOICES, Some(id));
        }
        Ok(true)
    }

    /// All is well with a peer.
    pub(super) fn resume(&mut self, now: Millis, id: &PeerId, store: &mut Store) -> Result<()> {
        if self.peers.get(id).is_none_or(|peer| peer.stopped.is_none()) {
            return Ok(());
        }
        if let Some(site) = self.site_of(id) {
            store.write(now, |tx| tx.set_contact(site, None))?;
        }
        if let Some(peer) = self.peers.get_mut(id) {
            (peer.stopped, peer.last_error) = (None, None);
        }
        Ok(())
    }

    pub(super) fn site_of(&self, id: &PeerId) -> Option<crate::ids::SiteId> {
        Some(self.peers.get(id)?.known.as_ref()?.site)
    }
}

fn judged(own: &Vector, theirs: &Vector) -> Judged {
    Judged { own: own.imports().collect(), theirs: theirs.imports().collect() }
}

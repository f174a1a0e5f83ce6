//! Pushes: a commit goes out at once to everybody connected, and on from there.

use crate::Result;
use crate::ids::{Millis, SiteId};
use crate::machine::Machine;
use crate::machine::collect::Standing;
use crate::machine::peer::PeerId;
use crate::mutants::{self, Mutant};
use crate::store::apply::PushVerdict;
use crate::store::{Push, Store};
use crate::wire::message::{PushMessage, sealed};
use crate::wire::rows::Batch;

impl Machine {
    /// Sends a commit of our own. What is too large is only announced, and fetched.
    pub(super) fn send_own_push(&mut self, push: Push) -> Result<()> {
        let Push { site, boot, prev, upto, rows } = push;
        let Some(rows) = rows else {
            // Nothing but the announcement will tell: let it go out without waiting.
            self.announced_at = Millis(0);
            return Ok(());
        };
        let count = rows.row_count() as u64;
        let sent_to = Vec::new();
        let message = PushMessage { site, boot, prev, upto, sent_to, rows: rows.encode() };
        self.spread(message, count, None)
    }

    /// A commit of some site arrived.
    pub(super) fn push(
        &mut self,
        now: Millis,
        from: &PeerId,
        message: PushMessage,
        store: &mut Store,
    ) -> Result<()> {
        let own = store.own_state(now)?;
        if message.site == self.identity.site || own.vector.get(message.site) >= message.upto {
            return Ok(());
        }
        if self.is_resyncing() {
            return Ok(());
        }
        let stale = matches!(self.standing(from, &own), Standing::Ahead | Standing::Apart);
        if stale || !self.acquainted(from, &own) {
            return self.consider_from(now, from, &message, store);
        }
        let rows = Batch::decode(&message.rows)?;
        let range = (message.prev, message.upto);
        let verdict = store
            .write_applying(now, |tx| tx.apply_push(message.site, message.boot, range, &rows))?;
        match verdict {
            PushVerdict::Known => Ok(()),
            PushVerdict::Gap => {
                assert!(!mutants::on(Mutant::GapUnexpected), "a push across a gap");
                self.consider_from(now, from, &message, store)
            }
            PushVerdict::Applied(applied) => {
                self.own_dirty = true;
                if let Some(peer) = self.peers.get_mut(from) {
                    peer.counters.rows_in += applied.rows;
                    peer.counters.last_sync = Some(now);
                    if let Some(known) = peer.known.as_mut() {
                        let entry = (message.upto, message.boot);
                        known.vector.merge(&crate::store::vector::Vector(
                            [(message.site, entry)].into_iter().collect(),
                        ));
                    }
                }
                if applied.outlived > 0 && !mutants::on(Mutant::OutlivedPassedOn) {
                    // Somebody may have forgotten the delete that a row lost to here, and would take it
                    // for a new one (rule P10e): what is here now is announced, and fetched.
                    return Ok(());
                }
                self.spread(message, applied.rows, Some(from))
            }
        }
    }

    /// Something is missing before this push: whoever sent it has it, or will say so.
    fn consider_from(
        &mut self,
        now: Millis,
        from: &PeerId,
        message: &PushMessage,
        store: &mut Store,
    ) -> Result<()> {
        if let Some(known) = self.peers.get_mut(from).and_then(|peer| peer.known.as_mut()) {
            known.vector.merge(&crate::store::vector::Vector(
                [(message.site, (message.prev, message.boot))].into_iter().collect(),
            ));
        }
        self.consider(now, from, store)
    }

    /// Sends a push to every member that is not known to have it or to be sent it by its
    /// writer. If that fails, the announcement that follows tells.
    fn spread(
        &mut self,
        mut message: PushMessage,
        rows: u64,
        except: Option<&PeerId>,
    ) -> Result<()> {
        let takers: Vec<(PeerId, SiteId)> = self
            .peers
            .iter()
            .filter_map(|(id, peer)| {
                let congested = peer.control.is_some_and(|stream| self.congested.contains(&stream));
                let known = peer.known.as_ref()?;
                let lacks = known.site != message.site
                    && known.vector.get(message.site) < message.upto
                    && !message.was_sent_to(known.site);
                let takes = Some(id) != except && !congested && lacks;
                takes.then(|| (id.clone(), known.site))
            })
            .collect();
        if message.site == self.identity.site {
            let sites: Vec<SiteId> = takers.iter().map(|(_, site)| *site).collect();
            message.name_receivers(&sites);
        }
        for (id, _) in takers {
            self.send_control(&id, sealed::PUSH, &message)?;
            if let Some(peer) = self.peers.get_mut(&id) {
                peer.counters.rows_out += rows;
            }
        }
        Ok(())
    }
}

//! Another branch of this replica's history: noticing it in what peers say, and going on under
//! another identity.

use crate::Result;
use crate::ids::{Millis, Stamp};
use crate::machine::Machine;
use crate::machine::peer::{Stream, StreamId, StreamKind};
use crate::store::Store;
use crate::store::vector::{Caps, Vector};
use crate::wire::message::State;

impl Machine {
    /// Rules P13 and P14: what a peer says of this replica, under its present site or a former one,
    /// and the caps that it knows. Returns whether this machine is over.
    pub(super) fn contradicted(
        &mut self,
        now: Millis,
        state: &State,
        vector: &Vector,
        store: &mut Store,
    ) -> Result<bool> {
        let (fell, own) = store.take_caps(now, &state.caps.iter().copied().collect())?;
        self.caps_due |= fell;
        let common = match own {
            Some(cap) => Some(cap),
            None => store.folded(now, |tx| tx.contradiction(vector, state.cursor))?,
        };
        if let Some(common) = common {
            self.renew(now, common, store)?;
            return Ok(true);
        }
        self.past_contradicted(now, vector, store)?;
        if self.caps_due {
            self.caps_fell(store.own_state(now)?.caps);
            self.caps_due = false;
        }
        Ok(false)
    }

    /// Whether a peer shows another history of a former site; nobody's claims on that one count any
    /// more above the cap.
    pub(super) fn past_contradicted(
        &mut self,
        now: Millis,
        vector: &Vector,
        store: &mut Store,
    ) -> Result<bool> {
        let fell = store.cap_past(now, vector)?;
        if fell {
            self.caps_fell(store.own_state(now)?.caps);
        }
        Ok(fell)
    }

    /// Passes that were started with higher claims are given up; what others claim is lowered.
    pub(super) fn caps_fell(&mut self, caps: Caps) {
        let running = |stream: &Stream| {
            matches!(stream.kind, StreamKind::Incoming { .. } | StreamKind::Outgoing { .. })
        };
        let passes: Vec<StreamId> =
            self.streams.iter().filter(|(_, s)| running(s)).map(|(id, _)| *id).collect();
        passes.into_iter().for_each(|id| self.close_stream(id));
        for known in self.peers.values_mut().filter_map(|peer| peer.known.as_mut()) {
            known.over.extend(known.vector.clamp(&caps));
        }
        self.own_dirty = true;
        self.openness_pending = true;
        self.compare_at = Millis(0);
    }

    /// Takes another identity; the driver starts everything again.
    pub(super) fn renew(&mut self, now: Millis, common: Stamp, store: &mut Store) -> Result<()> {
        let random = self.fresh();
        store.renew_for_peer(now, common, &random)
    }
}

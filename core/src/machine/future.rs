//! Clocks that are set, and clocks that are ahead (rule P17): releasing what is held here when its
//! time comes, and noticing that others hold back what is written here.

use crate::Result;
use crate::ids::Millis;
use crate::machine::peer::PeerId;
use crate::machine::{Level, Machine};
use crate::mutants::{self, Mutant};
use crate::store::Store;
use crate::store::vector::Vector;

impl Machine {
    /// A clock that is set back must not make everything wait that was to happen a moment later.
    pub(super) fn notice_time(&mut self, now: Millis) {
        let before = std::mem::replace(&mut self.seen_at, now);
        if now >= before {
            return;
        }
        let back = before.since(now);
        let earlier = |at: &mut Millis| at.0 = at.0.saturating_sub(back);
        let marks = [
            &mut self.announced_at,
            &mut self.last_fold,
            &mut self.compare_at,
            &mut self.collect_at,
            &mut self.trim_at,
            &mut self.check.not_before,
            &mut self.check.last,
        ];
        marks.into_iter().for_each(earlier);
        let optional = [&mut self.retry_at, &mut self.searched_at, &mut self.check.begun];
        optional.into_iter().flatten().for_each(earlier);
        for peer in self.peers.values_mut() {
            let optional = [
                &mut peer.retry_at,
                &mut peer.leaving,
                &mut peer.ask_after,
                &mut peer.asked_at,
                &mut peer.ahead_since,
                &mut peer.told_at,
            ];
            optional.into_iter().flatten().chain([&mut peer.since]).for_each(earlier);
        }
        self.streams.values_mut().for_each(|stream| earlier(&mut stream.since));
    }

    /// Applies held changes that are due, and has everybody told: they wait for that to forget
    /// deletes.
    pub(super) fn release(&mut self, now: Millis, store: &mut Store) -> Result<()> {
        let at = self.own.as_ref().and_then(|own| own.release_at);
        if at.is_none_or(|at| at > now) {
            return Ok(());
        }
        store.release(now)?;
        self.own = Some(store.own_state(now)?);
        self.own_dirty |= !mutants::on(Mutant::SilentRelease);
        Ok(())
    }

    /// A peer said what it has applied: is anything of ours missing in that?
    pub(super) fn check_held_back(&mut self, id: &PeerId, lowered: &Vector) {
        let held_back = lowered.0.contains_key(&self.identity.site);
        let Some(peer) = self.peers.get_mut(id) else { return };
        let news = held_back && !peer.held_back;
        peer.held_back = held_back;
        if news {
            let who = peer.known.as_ref().map(|known| known.name.clone()).unwrap_or_default();
            let message = format!(
                "the member '{who}' holds back what is written here: this clock is ahead of its one"
            );
            let hint = "set the clocks right; what was written is shown there when its time comes";
            let error = mutants::on(Mutant::WarningIsError);
            let level = if error { Level::Error } else { Level::Warning };
            self.event(level, "clock_ahead", &message, hint, Some(id));
        }
    }
}

//! Who is here under which tag. A tag is opaque: nothing follows from it, and nobody can list them.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use libp2p::PeerId;
use wavesync_transport::{MEET_MEMBERS_MAX, MEET_TAG_BYTES, Meet, Met};

/// Peers are asked to come again after this long, in seconds.
const AGAIN_SECONDS: u32 = 60;
/// Who did not come again for this long, in seconds, is forgotten.
const FORGOTTEN_AFTER_SECONDS: u64 = 200;

type Tag = [u8; MEET_TAG_BYTES];

/// How many may be here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    pub(crate) per_peer: usize,
    pub(crate) in_all: usize,
}

/// The meeting point.
#[derive(Debug)]
pub(crate) struct Meeting {
    room: Room,
    groups: HashMap<Tag, Vec<(PeerId, Instant)>>,
    tags_of: HashMap<PeerId, Vec<Tag>>,
    present: usize,
    /// Where the next answer starts in a group with more members than fit.
    turn: usize,
}

impl Meeting {
    pub(crate) fn new(room: Room) -> Meeting {
        Meeting { room, groups: HashMap::new(), tags_of: HashMap::new(), present: 0, turn: 0 }
    }

    /// Peers here, once for each tag.
    pub(crate) fn present(&self) -> usize {
        self.present
    }

    /// Tags with somebody here.
    pub(crate) fn groups(&self) -> usize {
        self.groups.len()
    }

    /// A peer comes, or comes again.
    pub(crate) fn arrive(&mut self, peer: PeerId, Meet(tag): Meet, now: Instant) -> Met {
        self.forget(&tag, now);
        let until = now + Duration::from_secs(FORGOTTEN_AFTER_SECONDS);
        let known = self.groups.get_mut(&tag).and_then(|group| {
            group.iter_mut().find(|(member, _)| *member == peer).map(|(_, end)| *end = until)
        });
        if known.is_none() {
            let tags = self.tags_of.get(&peer).map_or(0, Vec::len);
            if tags >= self.room.per_peer || self.present >= self.room.in_all {
                return Met { remembered: false, again_seconds: AGAIN_SECONDS, members: vec![] };
            }
            self.groups.entry(tag).or_default().push((peer, until));
            self.tags_of.entry(peer).or_default().push(tag);
            self.present += 1;
        }
        let members = self.others(&tag, &peer);
        Met { remembered: true, again_seconds: AGAIN_SECONDS, members }
    }

    /// Of a large group each answer names others.
    fn others(&mut self, tag: &Tag, peer: &PeerId) -> Vec<PeerId> {
        let Some(group) = self.groups.get(tag) else { return Vec::new() };
        let start = self.turn % group.len().max(1);
        self.turn = self.turn.wrapping_add(MEET_MEMBERS_MAX);
        let round = group.iter().cycle().skip(start).take(group.len());
        let others = round.map(|(member, _)| *member).filter(|member| member != peer);
        others.take(MEET_MEMBERS_MAX).collect()
    }

    /// The last connection to a peer is gone.
    pub(crate) fn leave(&mut self, peer: &PeerId) {
        for tag in self.tags_of.remove(peer).unwrap_or_default() {
            self.remove(&tag, |member, _| member == peer);
        }
    }

    /// Forgets who did not come again.
    pub(crate) fn forget_all(&mut self, now: Instant) {
        let tags: Vec<Tag> = self.groups.keys().copied().collect();
        tags.iter().for_each(|tag| self.forget(tag, now));
    }

    fn forget(&mut self, tag: &Tag, now: Instant) {
        for peer in self.remove(tag, |_, until| until <= now) {
            if let Some(tags) = self.tags_of.get_mut(&peer) {
                tags.retain(|own| own != tag);
                if tags.is_empty() {
                    self.tags_of.remove(&peer);
                }
            }
        }
    }

    fn remove(&mut self, tag: &Tag, gone: impl Fn(&PeerId, Instant) -> bool) -> Vec<PeerId> {
        let Some(group) = self.groups.get_mut(tag) else { return Vec::new() };
        let ended: Vec<PeerId> = group
            .iter()
            .filter(|(peer, until)| gone(peer, *until))
            .map(|(peer, _)| *peer)
            .collect();
        group.retain(|(peer, _)| !ended.contains(peer));
        self.present -= ended.len();
        if group.is_empty() {
            self.groups.remove(tag);
        }
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAG: Meet = Meet([1; MEET_TAG_BYTES]);
    const OTHER: Meet = Meet([2; MEET_TAG_BYTES]);

    fn meeting(per_peer: usize, in_all: usize) -> Meeting {
        Meeting::new(Room { per_peer, in_all })
    }

    #[test]
    fn only_who_knows_the_tag_learns_who_is_there() {
        let (a, b, c) = (PeerId::random(), PeerId::random(), PeerId::random());
        let mut meeting = meeting(4, 10);
        let now = Instant::now();
        assert!(meeting.arrive(a, TAG, now).members.is_empty());
        assert_eq!(meeting.arrive(b, TAG, now).members, vec![a]);
        assert!(meeting.arrive(c, OTHER, now).members.is_empty());
        assert_eq!(meeting.arrive(a, TAG, now).members, vec![b]);
        assert_eq!((meeting.present(), meeting.groups()), (3, 2));
        meeting.leave(&b);
        assert!(meeting.arrive(a, TAG, now).members.is_empty());
        meeting.leave(&a);
        meeting.leave(&c);
        assert_eq!((meeting.present(), meeting.groups()), (0, 0));
        assert!(meeting.tags_of.is_empty());
    }

    #[test]
    fn who_does_not_come_again_is_forgotten() {
        let (a, b) = (PeerId::random(), PeerId::random());
        let mut meeting = meeting(4, 10);
        let start = Instant::now();
        let later = |seconds| start + Duration::from_secs(seconds);
        meeting.arrive(a, TAG, start);
        meeting.arrive(b, TAG, later(100));
        assert_eq!(meeting.arrive(b, TAG, later(FORGOTTEN_AFTER_SECONDS - 1)).members, vec![a]);
        assert!(meeting.arrive(b, TAG, later(FORGOTTEN_AFTER_SECONDS)).members.is_empty());
        meeting.forget_all(later(1_000));
        assert_eq!((meeting.present(), meeting.groups(), meeting.tags_of.len()), (0, 0, 0));
    }

    #[test]
    fn there_is_room_for_so_many() {
        let mut meeting = meeting(2, 3);
        let now = Instant::now();
        let peer = PeerId::random();
        let tag = |number| Meet([number; MEET_TAG_BYTES]);
        assert!(meeting.arrive(peer, tag(1), now).remembered);
        assert!(meeting.arrive(peer, tag(2), now).remembered);
        assert!(!meeting.arrive(peer, tag(3), now).remembered, "per peer");
        assert!(meeting.arrive(PeerId::random(), tag(3), now).remembered);
        assert!(!meeting.arrive(PeerId::random(), tag(3), now).remembered, "in all");
        assert!(meeting.arrive(peer, tag(1), now).remembered, "it was here before");
    }

    #[test]
    fn an_answer_is_bounded_and_takes_turns() {
        let mut meeting = meeting(1, 1_000);
        let now = Instant::now();
        let peers: Vec<PeerId> = (0..3 * MEET_MEMBERS_MAX).map(|_| PeerId::random()).collect();
        let mut seen = std::collections::HashSet::new();
        for peer in &peers {
            meeting.arrive(*peer, TAG, now);
        }
        for _ in 0..4 {
            let members = meeting.arrive(peers[0], TAG, now).members;
            assert!(members.len() <= MEET_MEMBERS_MAX && !members.contains(&peers[0]));
            seen.extend(members);
        }
        assert!(seen.len() >= 2 * MEET_MEMBERS_MAX, "{}", seen.len());
    }
}

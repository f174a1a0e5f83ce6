//! Which addresses and members to dial and when: all that were given or found, again and again,
//! with a back-off.

use std::collections::{BTreeMap, BTreeSet};

use wavesync_core::ids::Millis;
use wavesync_core::mesh::{self, Mesh, Wish};

use crate::PeerKey;

/// First pause after a failed dial, in milliseconds; it doubles with each failure.
const RETRY_MIN_MS: u64 = 250;
/// Longest pause between two dials of one address, in milliseconds.
const RETRY_MAX_MS: u64 = 30_000;
/// A dial that is neither answered nor refused is taken up again after this long.
const ANSWER_MAX_MS: u64 = 10_000;

/// A connection on which nothing has been proven after this long, in milliseconds, is none to a member.
const PROVE_MAX_MS: u64 = 15_000;

/// When a connection to a member is lost, the one with the higher id waits this much longer, in
/// milliseconds, so that the two do not connect twice.
const GIVE_WAY_MS: u64 = 1_000;
/// Members that are remembered at a time.
const MEMBERS_MAX: usize = 1_024;
/// Addresses remembered of one member, the newest first.
const ADDRESSES_PER_MEMBER_MAX: usize = 16;
/// A connection that ends within this time counts as refused by the other side: who has to stay
/// connected with it comes back later and later.
const SHORT_MS: u64 = 10_000;
/// A member that could not be reached this often in a row is forgotten until it is found again. One that an
/// earlier engine reached may be found nowhere else: it is tried less often then.
const MEMBER_FAILURES_MAX: u32 = 20;
/// Pause between two dials of such a one, in milliseconds.
const RECALLED_RETRY_MS: u64 = 300_000;

/// The addresses and members that this replica stays connected with.
pub struct Dialer {
    targets: Vec<Target>,
    members: BTreeMap<PeerKey, Member>,
    /// And since when.
    connected: BTreeMap<PeerKey, Millis>,
    /// Those of them that have proven to be members: whoever has not counts for nothing.
    proven: BTreeSet<PeerKey>,
    /// Connected members whose addresses were given, and since when: they are never parted from.
    kept: BTreeMap<PeerKey, Millis>,
    mesh: Mesh<PeerKey>,
}

/// A member that was found in the local network or at a relay.
struct Member {
    addresses: Vec<String>,
    next_try: Millis,
    failures: u32,
    untried: bool,
    /// A dial is neither answered nor refused yet.
    dialing: bool,
    /// An earlier engine reached it.
    recalled: bool,
}

struct Target {
    address: String,
    next_try: Millis,
    failures: u32,
    /// The reason of the last failure that was reported.
    reported: Option<String>,
    /// No dial has been answered or refused yet.
    untried: bool,
    /// Who answers there, once known.
    peer: Option<PeerKey>,
    /// How many connections in a row were short.
    short: u32,
}

impl Dialer {
    /// `seed` decides which members are chosen in a large group.
    pub fn new(addresses: &[String], seed: u64, now: Millis) -> Self {
        let mut dialer = Self {
            targets: Vec::new(),
            members: BTreeMap::new(),
            connected: BTreeMap::new(),
            proven: BTreeSet::new(),
            kept: BTreeMap::new(),
            mesh: Mesh::new(seed),
        };
        addresses.iter().for_each(|address| dialer.add(address, now));
        dialer
    }

    pub fn add(&mut self, address: &str, now: Millis) {
        if let Some(target) = self.targets.iter_mut().find(|target| target.address == address) {
            target.start_afresh(now);
            return;
        }
        self.targets.push(Target {
            address: address.to_owned(),
            next_try: now,
            failures: 0,
            reported: None,
            untried: true,
            peer: None,
            short: 0,
        });
    }

    /// All of them.
    pub fn addresses(&self) -> Vec<String> {
        self.targets.iter().map(|target| target.address.clone()).collect()
    }

    /// When the next dial is due.
    pub fn next_try(&self) -> Millis {
        let targets = self.targets.iter().map(|target| target.next_try);
        let (known, settled) = (self.known(), self.is_settled());
        // In a group that all of them are connected in, there is nobody to part from.
        let crowded = self.proven.len() > mesh::NEIGHBOURS_MAX;
        if crowded && known > mesh::FULL_MESH_MAX_MEMBERS && !settled {
            return Millis(0);
        }
        let away = |(peer, _): &(&PeerKey, &Member)| !self.connected.contains_key(*peer);
        let coming = |(peer, member): &(&PeerKey, &Member)| {
            !self.proven.contains(*peer) && (member.dialing || self.connected.contains_key(*peer))
        };
        let coming = self.members.iter().filter(coming).count();
        // With enough dials under way, only their end gives more to do.
        let enough = mesh::is_settled(known, self.proven.len() + coming);
        let away = self
            .members
            .iter()
            .filter(away)
            .filter(|(_, member)| !settled && (member.dialing || !enough));
        targets.chain(away.map(|(_, member)| member.next_try)).min().unwrap_or(Millis(u64::MAX))
    }

    /// A member was found; what is known of it already stays.
    pub fn found(&mut self, peer: PeerKey, addresses: &[String], now: Millis) {
        let room = self.members.len() < MEMBERS_MAX;
        let member = match self.members.entry(peer) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) if room => entry.insert(Member {
                addresses: Vec::new(),
                next_try: now,
                failures: 0,
                untried: true,
                dialing: false,
                recalled: false,
            }),
            std::collections::btree_map::Entry::Vacant(_) => return,
        };
        for address in addresses {
            if !member.addresses.contains(address) {
                member.addresses.insert(0, address.clone());
                // Nobody has tried this way yet.
                (member.failures, member.next_try) = (0, now);
            }
        }
        member.addresses.truncate(ADDRESSES_PER_MEMBER_MAX);
        // It was just seen.
        member.next_try = member.next_try.min(now.plus(RETRY_MIN_MS << member.failures.min(6)));
    }

    /// A member that an earlier engine reached. Nobody waits for it: it may be switched off.
    pub fn recall(&mut self, peer: PeerKey, addresses: &[String], now: Millis) {
        self.found(peer.clone(), addresses, now);
        if let Some(member) = self.members.get_mut(&peer) {
            (member.untried, member.recalled) = (false, true);
        }
    }

    /// There are as many neighbours as there should be, or nobody to part from.
    fn is_settled(&self) -> bool {
        let crowded = self.proven.len() > mesh::NEIGHBOURS_MAX;
        mesh::is_settled(self.known(), self.proven.len())
            || crowded && self.proven.iter().all(|peer| self.is_kept(peer))
    }

    /// Its address was given here; or it came by itself and was not found anywhere, so this may
    /// be the only member that it knows.
    fn is_kept(&self, peer: &PeerKey) -> bool {
        self.kept.contains_key(peer) || !self.members.contains_key(peer)
    }

    /// Members that are known, this one included.
    fn known(&self) -> usize {
        let away = self.members.keys().filter(|peer| !self.proven.contains(*peer)).count();
        away + self.proven.len() + 1
    }

    /// Members to dial now, at all their addresses at once, and members to part from.
    pub fn due_members(&mut self, now: Millis) -> (Vec<(PeerKey, Vec<String>)>, Vec<PeerKey>) {
        let (mut dials, mut parts) = (Vec::new(), Vec::new());
        if self.is_settled() {
            return (dials, parts);
        }
        let mut busy = self.proven.clone();
        // What has not proven anything yet may be a member on its way, for a while.
        let coming = |(peer, since): &(&PeerKey, &Millis)| {
            self.members.contains_key(*peer) && now.since(**since) < PROVE_MAX_MS
        };
        busy.extend(self.connected.iter().filter(coming).map(|(peer, _)| peer.clone()));
        let mut reachable = BTreeSet::new();
        for (peer, member) in &self.members {
            if self.connected.contains_key(peer) {
                continue;
            }
            if member.next_try <= now {
                reachable.insert(peer.clone());
            } else if member.dialing {
                busy.insert(peer.clone());
            }
        }
        let kept = self.proven.iter().filter(|peer| self.is_kept(peer)).cloned().collect();
        let most = self.proven.len().saturating_sub(mesh::NEIGHBOURS_MAX);
        for wish in self.mesh.plan(now, self.known(), &reachable, &busy, &kept) {
            match wish {
                Wish::Dial(peer) => {
                    let Some(member) = self.members.get_mut(&peer) else { continue };
                    (member.next_try, member.dialing) = (now.plus(ANSWER_MAX_MS), true);
                    dials.push((peer, member.addresses.clone()));
                }
                // It counts as gone from here on: the next plan is not to part from others for it.
                // Only for more members than there should be, not for those who may become some.
                Wish::Part(peer) if parts.len() < most && self.proven.remove(&peer) => {
                    self.connected.remove(&peer);
                    parts.push(peer);
                }
                Wish::Part(_) => {}
            }
        }
        (dials, parts)
    }

    /// Addresses to dial now. Dialing an address that is connected does nothing.
    pub fn due(&mut self, now: Millis) -> Vec<String> {
        let due = self.targets.iter_mut().filter(|target| target.next_try <= now);
        due.map(|target| {
            target.next_try = now.plus(ANSWER_MAX_MS);
            target.address.clone()
        })
        .collect()
    }

    /// Some first dial is neither answered nor refused yet.
    pub fn is_trying(&self) -> bool {
        let away = |peer: &PeerKey| !self.connected.contains_key(peer);
        self.targets.iter().any(|target| target.untried)
            || !self.is_settled()
                && self.members.iter().any(|(peer, member)| member.untried && away(peer))
    }

    pub fn connected(&mut self, peer: &PeerKey, address: &str, now: Millis) {
        self.connected.entry(peer.clone()).or_insert(now);
        if let Some(member) = self.members.get_mut(peer) {
            (member.failures, member.untried, member.dialing) = (0, false, false);
        }
        for target in self.targets.iter_mut().filter(|target| same(&target.address, address)) {
            (target.failures, target.reported, target.untried) = (0, None, false);
            target.next_try = now.plus(ANSWER_MAX_MS);
            target.peer = Some(peer.clone());
            self.kept.entry(peer.clone()).or_insert(now);
        }
    }

    /// A peer has proven to be a member: so it is connected, also where it was parted from just now and had
    /// made another connection by then.
    pub fn proven(&mut self, peer: &PeerKey, now: Millis) {
        self.connected.entry(peer.clone()).or_insert(now);
        self.proven.insert(peer.clone());
    }

    /// A dial of this address has led somewhere, perhaps to a peer that had come by itself before.
    pub fn reached(&mut self, address: &str, now: Millis) {
        for target in self.targets.iter_mut().filter(|target| same(&target.address, address)) {
            (target.failures, target.reported, target.untried) = (0, None, false);
            target.next_try = now.plus(ANSWER_MAX_MS);
        }
    }

    /// A connection is gone; which address it had does not matter, because dialing one that is
    /// connected does nothing.
    pub fn disconnected(&mut self, peer: &PeerKey, own: &PeerKey, now: Millis) {
        self.connected.remove(peer);
        self.proven.remove(peer);
        let lasted = self.kept.remove(peer).map_or(SHORT_MS, |since| now.since(since));
        if let Some(member) = self.members.get_mut(peer) {
            let give_way = if own < peer { 0 } else { GIVE_WAY_MS };
            member.next_try = now.plus(RETRY_MIN_MS + give_way);
        }
        for target in self.targets.iter_mut().filter(|target| target.failures == 0) {
            let its_own = target.peer.as_ref() == Some(peer);
            if its_own && lasted < SHORT_MS {
                target.next_try = now.plus(pause(target.short, &target.address));
                target.short += 1;
                continue;
            }
            if its_own {
                target.short = 0;
            }
            target.next_try = target.next_try.min(now.plus(RETRY_MIN_MS));
        }
    }

    /// A member could not be reached. That is no news: it may simply be switched off.
    pub fn member_failed(&mut self, peer: &PeerKey, now: Millis) {
        let Some(member) = self.members.get_mut(peer) else { return };
        (member.untried, member.dialing) = (false, false);
        self.mesh.rest(now, peer);
        member.next_try = now.plus(pause(member.failures, peer.as_bytes()));
        member.failures += 1;
        if member.failures < MEMBER_FAILURES_MAX {
            return;
        }
        if member.recalled {
            member.next_try = now.plus(RECALLED_RETRY_MS);
        } else {
            self.members.remove(peer);
        }
    }

    /// Whether this address is one to stay connected with.
    pub fn has_target(&self, address: &str) -> bool {
        self.targets.iter().any(|target| same(&target.address, address))
    }

    /// Notes a failure; returns whether it is news.
    pub fn failed(&mut self, address: &str, reason: &str, now: Millis) -> bool {
        let Some(target) = self.targets.iter_mut().find(|target| same(&target.address, address))
        else {
            return true;
        };
        target.untried = false;
        target.next_try = now.plus(pause(target.failures, &target.address));
        target.failures = target.failures.saturating_add(1);
        let news = target.reported.as_deref() != Some(reason);
        target.reported = Some(reason.to_owned());
        news
    }

    pub fn restart(&mut self, now: Millis) {
        for target in &mut self.targets {
            target.start_afresh(now);
        }
        for member in self.members.values_mut() {
            (member.next_try, member.failures) = (now, 0);
        }
    }

    /// Every connection is gone.
    pub fn all_disconnected(&mut self) {
        self.connected.clear();
        self.proven.clear();
        self.kept.clear();
    }
}

impl Target {
    /// It is tried now, and has not failed yet.
    fn start_afresh(&mut self, now: Millis) {
        (self.next_try, self.failures, self.short, self.reported) = (now, 0, 0, None);
    }
}

/// How long to wait after so many failures in a row, in milliseconds: spread by the address, so
/// that members that lost one peer do not return in step.
fn pause(failures: u32, address: impl AsRef<[u8]>) -> u64 {
    let pause = RETRY_MIN_MS.saturating_mul(1 << failures.min(16)).min(RETRY_MAX_MS);
    let spread = address.as_ref().iter().fold(0u64, |sum, byte| sum * 31 % 997 + u64::from(*byte));
    pause + pause * (spread % 100) / 400
}

/// Whether two addresses lead to one place, with or without a peer id at the end.
fn same(a: &str, b: &str) -> bool {
    let place = |address: &str| address.split("/p2p/").next().map(str::to_owned);
    place(a) == place(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dialed(dialer: &mut Dialer, now: Millis) -> Vec<(PeerKey, Vec<String>)> {
        let (dials, parts) = dialer.due_members(now);
        assert!(parts.is_empty());
        dials
    }

    /// Ids with a proper multihash of 32 bytes that differ in their last byte.
    fn crowd(size: u8) -> Vec<PeerKey> {
        let id = |last: u8| {
            let mut bytes = vec![0x12, 0x20];
            bytes.extend([7; 31]);
            bytes.push(last);
            PeerKey::from_bytes(&bytes).expect("a peer id")
        };
        (0..size).map(id).collect()
    }

    fn joined(dialer: &mut Dialer, peer: &PeerKey, now: Millis) {
        dialer.connected(peer, "", now);
        dialer.proven(peer, now);
    }

    /// Whoever has proven nothing takes no member's place, and nobody is parted from for it.
    #[test]
    fn strangers_count_for_nothing() {
        let mut dialer = Dialer::new(&[], 1, Millis(0));
        let (members, strangers) = (crowd(60), crowd(200).split_off(100));
        let address = vec!["/ip4/192.0.2.7/tcp/1".to_owned()];
        members[..4].iter().for_each(|it| dialer.found(it.clone(), &address, Millis(0)));
        dialed(&mut dialer, Millis(0));
        members[..3].iter().for_each(|member| joined(&mut dialer, member, Millis(1)));
        strangers.iter().for_each(|stranger| dialer.connected(stranger, "", Millis(2)));
        // One of the four is away, and is tried again.
        dialer.member_failed(&members[3], Millis(3));
        let next = dialer.next_try();
        assert!(next > Millis(3) && next < Millis(ANSWER_MAX_MS), "{next:?}");
        assert_eq!(dialed(&mut dialer, next).len(), 1);
    }

    /// A relay may name peers that come and prove nothing.
    #[test]
    fn those_who_were_named_and_prove_nothing_keep_nobody_out() {
        let mut dialer = Dialer::new(&[], 1, Millis(0));
        let peers = crowd(40);
        let (members, named) = (&peers[..6], &peers[10..32]);
        let address = vec!["/ip4/192.0.2.7/tcp/1".to_owned()];
        peers[..32].iter().for_each(|it| dialer.found(it.clone(), &address, Millis(0)));
        members[..4].iter().for_each(|member| joined(&mut dialer, member, Millis(1)));
        named.iter().for_each(|peer| dialer.connected(peer, "", Millis(1)));
        let (_, parts) = dialer.due_members(Millis(2));
        assert!(parts.is_empty(), "a member is parted from for those who may become some");
        let (dials, parts) = dialer.due_members(Millis(2 + PROVE_MAX_MS));
        assert!(parts.is_empty());
        let due: BTreeSet<PeerKey> = dials.into_iter().map(|(peer, _)| peer).collect();
        assert!(members[4..].iter().all(|member| due.contains(member)), "{due:?}");
        assert!(named.iter().all(|peer| !due.contains(peer)));
    }

    #[test]
    fn who_was_reached_by_an_earlier_engine_is_never_given_up() {
        let mut dialer = Dialer::new(&[], 1, Millis(0));
        let [peer, _] = peers();
        dialer.recall(peer.clone(), &["/ip4/192.0.2.7/tcp/1".to_owned()], Millis(0));
        let mut now = Millis(0);
        for _ in 0..100 {
            now = now.max(dialer.next_try());
            assert_eq!(dialed(&mut dialer, now).len(), 1, "at {now:?}");
            dialer.member_failed(&peer, now);
        }
        assert!(now.0 > 50 * RECALLED_RETRY_MS && now.0 < 100 * RECALLED_RETRY_MS);
    }

    /// In a group of up to 16 nobody is parted from, however many are connected.
    #[test]
    fn one_who_is_away_from_a_full_mesh_is_waited_for() {
        let mut dialer = Dialer::new(&[], 1, Millis(0));
        let members = crowd(15);
        let address = vec!["/ip4/192.0.2.7/tcp/1".to_owned()];
        members.iter().for_each(|member| dialer.found(member.clone(), &address, Millis(0)));
        assert_eq!(dialed(&mut dialer, Millis(0)).len(), 15);
        members[..14].iter().for_each(|member| joined(&mut dialer, member, Millis(1)));
        assert!(dialed(&mut dialer, Millis(2)).is_empty());
        assert!(dialer.next_try() > Millis(2), "it spins");
        dialer.member_failed(&members[14], Millis(3));
        assert!(dialer.next_try() > Millis(3), "it spins");
    }

    #[test]
    fn in_a_large_group_a_bounded_number_is_dialed_and_kept() {
        let mut dialer = Dialer::new(&[], 1, Millis(0));
        let members = crowd(60);
        let address = vec!["/ip4/192.0.2.7/tcp/1".to_owned()];
        members.iter().for_each(|member| dialer.found(member.clone(), &address, Millis(0)));
        let first = dialed(&mut dialer, Millis(0));
        assert_eq!(first.len(), mesh::NEIGHBOURS_WANTED);
        assert!(dialed(&mut dialer, Millis(1)).is_empty(), "those are awaited");
        assert_eq!(dialer.next_try(), Millis(ANSWER_MAX_MS), "and until then nothing is due");
        dialer.member_failed(&first[0].0, Millis(2));
        let instead = dialed(&mut dialer, Millis(3));
        assert_eq!(instead.len(), 0, "nine are under way");
        for (peer, _) in &first[1..] {
            joined(&mut dialer, peer, Millis(4));
        }
        assert!(dialed(&mut dialer, Millis(5_000)).is_empty());
        assert_eq!(dialer.next_try(), Millis(u64::MAX), "nothing is left to do");
        assert!(!dialer.is_trying());
        // Others come by themselves.
        let others = members.iter().filter(|member| first.iter().all(|(peer, _)| peer != *member));
        for peer in others.take(5) {
            joined(&mut dialer, peer, Millis(6_000));
        }
        assert_eq!(dialer.next_try(), Millis(0));
        let (dials, parts) = dialer.due_members(Millis(6_001));
        assert!(dials.is_empty());
        assert_eq!(parts.len(), 9 + 5 - mesh::NEIGHBOURS_MAX);
        // The connections end a little later; until then nobody else has to go.
        assert_eq!(dialer.due_members(Millis(6_002)), (Vec::new(), Vec::new()));
        // One of them had made another connection by then, and has to go as well.
        dialer.proven(&parts[0], Millis(6_003));
        assert_eq!(dialer.due_members(Millis(6_004)).1.len(), 1);
    }

    #[test]
    fn an_address_that_leads_to_a_peer_who_came_by_itself_is_tried() {
        let address = "/ip4/127.0.0.1/tcp/9".to_owned();
        let mut dialer = Dialer::new(std::slice::from_ref(&address), 1, Millis(0));
        let peer = crowd(1).remove(0);
        assert_eq!(dialer.due(Millis(0)), vec![address.clone()]);
        dialer.connected(&peer, "/ip4/127.0.0.1/tcp/40000", Millis(1));
        assert!(dialer.is_trying());
        dialer.reached(&address, Millis(2));
        assert!(!dialer.is_trying());
    }

    #[test]
    fn failures_back_off_and_a_connection_starts_afresh() {
        let address = "/ip4/127.0.0.1/tcp/9".to_owned();
        let mut dialer = Dialer::new(std::slice::from_ref(&address), 1, Millis(0));
        let mut now = Millis(0);
        let mut pauses = Vec::new();
        for _ in 0..12 {
            assert_eq!(dialer.due(now), vec![address.clone()]);
            dialer.failed(&address, "refused", now);
            pauses.push(dialer.next_try().since(now));
            now = dialer.next_try();
        }
        assert!(pauses.windows(2).all(|pair| pair[0] <= pair[1]), "{pauses:?}");
        assert!(pauses.iter().all(|pause| *pause <= RETRY_MAX_MS * 5 / 4));
        let [peer, own] = peers();
        dialer.connected(&peer, "/ip4/127.0.0.1/tcp/9/p2p/x", now);
        dialer.disconnected(&peer, &own, now);
        assert_eq!(dialer.next_try(), now.plus(pause(0, &address)));
    }

    fn peers() -> [PeerKey; 2] {
        let texts = [
            "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN",
            "12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp",
        ];
        let mut peers = texts.map(|text| text.parse::<PeerKey>().expect("a peer id"));
        peers.sort();
        peers
    }

    #[test]
    fn who_came_without_being_found_is_not_parted_from() {
        let mut hub = Dialer::new(&[], 1, Millis(0));
        let members = crowd(40);
        for peer in &members[..30] {
            joined(&mut hub, peer, Millis(1));
        }
        assert_eq!(hub.due_members(Millis(2)), (vec![], vec![]), "it is all that they know");
        assert_eq!(hub.next_try(), Millis(u64::MAX), "nothing is due, not even at once");
        // Others were found, too: the group knows ways around this member.
        for peer in &members[30..] {
            hub.found(peer.clone(), &["/ip4/192.0.2.7/tcp/1".to_owned()], Millis(3));
            joined(&mut hub, peer, Millis(3));
        }
        let (dials, parts) = hub.due_members(Millis(4));
        assert!(dials.is_empty());
        assert_eq!(parts.len(), 10);
        assert!(parts.iter().all(|peer| members[30..].contains(peer)));
        assert_eq!(hub.next_try(), Millis(u64::MAX));
    }

    #[test]
    fn who_is_parted_from_again_and_again_returns_later_and_later() {
        let address = "/ip4/127.0.0.1/tcp/9".to_owned();
        let mut dialer = Dialer::new(std::slice::from_ref(&address), 1, Millis(0));
        let [peer, own] = peers();
        let mut now = Millis(0);
        let mut pauses = Vec::new();
        for _ in 0..12 {
            assert_eq!(dialer.due(now), vec![address.clone()]);
            dialer.connected(&peer, &address, now);
            now = now.plus(20);
            dialer.disconnected(&peer, &own, now);
            pauses.push(dialer.next_try().since(now));
            now = dialer.next_try();
        }
        assert!(pauses.windows(2).all(|pair| pair[0] <= pair[1]), "{pauses:?}");
        assert!(pauses[0] < 2 * RETRY_MIN_MS && pauses[11] >= RETRY_MAX_MS, "{pauses:?}");
        // One that held ends the series.
        dialer.connected(&peer, &address, now);
        dialer.disconnected(&peer, &own, now.plus(SHORT_MS));
        assert!(dialer.next_try() <= now.plus(SHORT_MS + RETRY_MIN_MS));
    }

    #[test]
    fn a_member_that_was_found_is_dialed_until_it_is_connected() {
        let [lower, higher] = peers();
        let mut dialer = Dialer::new(&[], 1, Millis(0));
        let circuit = vec!["/ip4/127.0.0.1/tcp/9/p2p/r/p2p-circuit".to_owned()];
        dialer.found(higher.clone(), &circuit, Millis(5));
        assert!(dialer.is_trying());
        assert_eq!(dialed(&mut dialer, Millis(5)), vec![(higher.clone(), circuit.clone())]);
        assert!(dialed(&mut dialer, Millis(6)).is_empty(), "one dial at a time");
        dialer.member_failed(&higher, Millis(7));
        assert!(!dialer.is_trying());
        let again = dialer.next_try();
        assert!(again > Millis(7) && again < Millis(1_000));
        let direct = vec!["/ip4/192.0.2.7/tcp/1".to_owned()];
        dialer.found(higher.clone(), &direct, Millis(8));
        let both = vec![direct[0].clone(), circuit[0].clone()];
        assert_eq!(dialed(&mut dialer, Millis(8)), vec![(higher.clone(), both)]);
        dialer.connected(&higher, "", Millis(9));
        assert!(dialed(&mut dialer, Millis(100_000)).is_empty());
        assert_eq!(dialer.next_try(), Millis(u64::MAX));
        // Both lost the connection; the lower id comes first.
        dialer.disconnected(&higher, &lower, Millis(10));
        assert_eq!(dialer.next_try(), Millis(10 + RETRY_MIN_MS));
        dialer.connected(&higher, "", Millis(11));
        let highest = lower.clone().max(higher.clone());
        dialer.found(lower.clone(), &circuit, Millis(12));
        dialer.connected(&lower, "", Millis(12));
        dialer.disconnected(&lower, &highest, Millis(13));
        assert_eq!(dialer.next_try(), Millis(13 + RETRY_MIN_MS + GIVE_WAY_MS));
    }

    #[test]
    fn who_is_never_reached_is_forgotten() {
        let [peer, _] = peers();
        let mut dialer = Dialer::new(&[], 1, Millis(0));
        dialer.found(peer.clone(), &["/ip4/192.0.2.7/tcp/1".to_owned()], Millis(0));
        let mut now = Millis(0);
        let mut dials = 0;
        while dialer.next_try() < Millis(u64::MAX) {
            now = dialer.next_try();
            dials += dialed(&mut dialer, now).len();
            dialer.member_failed(&peer, now);
        }
        assert_eq!(dials, MEMBER_FAILURES_MAX as usize);
        assert!(now > Millis(300_000), "with pauses: {now:?}");
    }
}

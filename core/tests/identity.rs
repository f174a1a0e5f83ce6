//! Identity on real files: copies, old copies restored, and what peers can prove (rules P13, P14).
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use wavesync_core::ids::{Boot, Cursor, Millis, SiteId, Stamp};
use wavesync_core::store::Store;
use wavesync_core::store::apply::Reach;
use wavesync_core::store::group::Join;
use wavesync_core::store::identity::{FileIdentity, Identity};
use wavesync_core::store::scan::Place;
use wavesync_core::store::vector::Vector;
use wavesync_core::{Error, wire::rows::Batch};

/// 2023-11-14.
const NOW: Millis = Millis(1_700_000_000_000);
const SQL: &str =
    "CREATE TABLE t(id TEXT PRIMARY KEY, x); CREATE TABLE n(id INTEGER PRIMARY KEY, x)";

/// A replica whose engine is a store, on a file.
struct Site {
    store: Store,
    identity: Identity,
    path: PathBuf,
    file: String,
    number: u8,
}

impl Site {
    fn start(path: &Path, file: &str, number: u8) -> Self {
        let mut store = Store::open(Connection::open(path).unwrap()).unwrap();
        let (name, file) = (file.to_string(), FileIdentity(file.into()));
        let group = Join { topic: "t".into(), ..Join::default() };
        store.join(NOW, &group, &file, &[number; 64]).unwrap();
        let identity = store.start(NOW, &file, &[number; 64]).unwrap();
        while store.backfill_block(NOW).unwrap() {}
        Self { store, identity, path: path.into(), file: name, number }
    }

    fn new(dir: &Path, number: u8) -> Self {
        let path = dir.join(format!("{number}.db"));
        Connection::open(&path).unwrap().execute_batch(SQL).unwrap();
        Self::start(&path, &format!("file {number}"), number)
    }

    /// A write of an application that is folded at once.
    fn put(&mut self, id: &str, x: i64) {
        let app = Connection::open(&self.path).unwrap();
        app.execute("INSERT OR REPLACE INTO t VALUES(?1, ?2)", rusqlite::params![id, x]).unwrap();
        self.store.write(NOW, |_| Ok(())).unwrap();
    }

    fn rows(&self) -> BTreeMap<String, i64> {
        let mut statement = self.store.connection().prepare("SELECT id, x FROM t").unwrap();
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        rows.map(Result::unwrap).collect()
    }

    fn site(&self) -> SiteId {
        self.store.site_id().unwrap().unwrap()
    }

    fn vector(&mut self) -> Vector {
        self.store.folded(NOW, |tx| tx.vector()).unwrap()
    }

    /// What this replica would say about another one, and whether that one has to change for it.
    fn proves(&mut self, other: &mut Site) -> Option<Stamp> {
        let cursor = self.store.cursor_for(NOW, other.site()).unwrap();
        let vector = self.vector();
        other.store.folded(NOW, |tx| tx.contradiction(&vector, cursor)).unwrap()
    }

    /// One catch-up with caps, as the machine does it.
    fn pull(&mut self, from: &mut Site) {
        let caps = from.store.own_state(NOW).unwrap().caps;
        if let (_, Some(cap)) = self.store.take_caps(NOW, &caps).unwrap() {
            let next = self.number + 50;
            self.store.renew_identity(cap, &[next; 64]).unwrap();
            *self = Self::start(&self.path.clone(), &self.file.clone(), next);
        }
        from.store.cap_past(NOW, &self.vector()).unwrap();
        let other = from.site();
        let mut cursor = self.store.cursor_for(NOW, other).unwrap();
        let vector = self.vector();
        let mut place = Place::from(cursor.seq);
        loop {
            let piece = from.store.folded(NOW, |tx| tx.read_piece(place, &vector)).unwrap();
            let batch = Batch::decode(&piece.rows.encode()).unwrap();
            cursor = Cursor { boot: from.identity.boot, seq: piece.to, high: piece.high };
            let last = piece.last.then_some(&piece.vector);
            let reach = Reach { cursor, ordered: piece.ordered, last, ..Reach::default() };
            self.store.write_applying(NOW, |tx| tx.apply_piece(other, &batch, &reach)).unwrap();
            if piece.last {
                return;
            }
            place = piece.next;
        }
    }
}

fn backup(site: &Site, to: &Path) {
    let sql = format!("VACUUM INTO '{}'", to.display());
    Connection::open(&site.path).unwrap().execute_batch(&sql).unwrap();
}

/// Puts another content into the file itself: the inode stays.
fn restore(from: &Path, path: &Path) {
    std::fs::copy(from, path).unwrap();
}

fn together(sites: &mut [&mut Site]) {
    for _ in 0..3 {
        for at in 0..sites.len() {
            for other in 0..sites.len() {
                if at < other {
                    let (head, tail) = sites.split_at_mut(other);
                    head[at].pull(tail[0]);
                    tail[0].pull(head[at]);
                }
            }
        }
    }
    let first = sites[0].rows();
    sites.iter().for_each(|site| assert_eq!(site.rows(), first));
}

#[test]
fn p13_a_copy_of_the_file_is_another_replica() {
    let dir = tempfile::tempdir().unwrap();
    let (mut a, mut b) = (Site::new(dir.path(), 1), Site::new(dir.path(), 2));
    a.put("one", 1);
    b.pull(&mut a);
    let copy = dir.path().join("copy.db");
    // Rows that nobody has folded yet are in the copy, too; and it goes on before it joins.
    let app = Connection::open(&a.path).unwrap();
    app.execute_batch("INSERT INTO n VALUES(1, 'both'); INSERT INTO t VALUES('both', 7)").unwrap();
    backup(&a, &copy);
    let app = Connection::open(&copy).unwrap();
    app.execute_batch("INSERT INTO t VALUES('c', 3); INSERT INTO n VALUES(2, 'c')").unwrap();
    let mut c = Site::start(&copy, "file 3", 3);
    assert!(c.site() != a.site() && c.identity.secret != a.identity.secret);
    a.put("two", 2);
    c.put("three", 3);
    assert_eq!((a.proves(&mut c), c.proves(&mut a), b.proves(&mut a)), (None, None, None));
    together(&mut [&mut a, &mut b, &mut c]);
    assert_eq!(a.rows().len(), 5);
    for site in [&a, &b, &c] {
        let numbers = "SELECT group_concat(id || x, ' ') FROM (SELECT * FROM n ORDER BY id)";
        let numbers = site.store.connection().query_row(numbers, [], |row| row.get(0));
        assert_eq!(numbers, Ok("1both 2c".to_string()), "no row came twice");
    }
}

#[test]
fn p13_peers_prove_that_an_old_copy_was_restored() {
    let dir = tempfile::tempdir().unwrap();
    // What the peer holds of the restored replica: a vector entry, a cursor, or both.
    for writes_after in [0, 1, 30] {
        for restarts in [0, 2] {
            let inner = tempfile::tempdir_in(dir.path()).unwrap();
            let (mut a, mut b) = (Site::new(inner.path(), 1), Site::new(inner.path(), 2));
            a.put("one", 1);
            a.put("two", 1);
            b.pull(&mut a);
            let old = inner.path().join("old.db");
            backup(&a, &old);
            for restart in 0..restarts {
                a = Site::start(&a.path.clone(), "file 1", 10 + restart);
                a.put(&format!("boot {restart}"), 1);
            }
            a.put("lost", 2);
            a.put("one", 2);
            b.pull(&mut a);
            assert_eq!(b.proves(&mut a), None);
            let before = a.site();
            let path = a.path.clone();
            drop(a);
            restore(&old, &path);
            let mut a = Site::start(&path, "file 1", 20);
            for n in 0..writes_after {
                a.put(&format!("restored {n}"), n);
                a.put("two", 100 + n);
            }
            assert_eq!(a.site(), before, "by itself the file looks the same");
            let common = b.proves(&mut a).expect("stamps and positions that a never gave");
            a.store.renew_identity(common, &[30; 64]).unwrap();
            assert!(a.store.take_effects().new_site);
            let mut a = Site::start(&path, "file 1", 40);
            assert_ne!(a.site(), before);
            assert_eq!(b.proves(&mut a), None);
            let mut c = Site::new(inner.path(), 3);
            together(&mut [&mut a, &mut b, &mut c]);
            let rows = c.rows();
            assert_eq!((rows["one"], rows["lost"]), (2, 2), "the others had it");
            assert_eq!(rows.len() as i64, 3 + writes_after + i64::from(restarts));
            if writes_after > 0 {
                assert_eq!(rows["two"], 100 + writes_after - 1, "written in the old copy");
            }
        }
    }
}

/// The restored file takes another site before it meets anybody who knows more of the former one: by
/// a table that is untracked, or because it is copied.
#[test]
fn p13_what_others_know_of_a_former_site_is_compared() {
    for copied in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (mut a, mut b) = (Site::new(dir.path(), 1), Site::new(dir.path(), 2));
        a.put("one", 1);
        let app = Connection::open(&a.path).unwrap();
        app.execute_batch("INSERT INTO n VALUES(1, 'untracked later')").unwrap();
        drop(app);
        b.pull(&mut a);
        let old = dir.path().join("old.db");
        backup(&a, &old);
        (2..5).for_each(|n| a.put("lost", n));
        b.pull(&mut a);
        let (former, path) = (a.site(), a.path.clone());
        drop(a);
        restore(&old, &path);
        // With the same clock, so under stamps that the other history has given, too.
        let mut a = Site::start(&path, "file 1", 10);
        a.put("restored", 3);
        let mut a = if copied {
            let copy = dir.path().join("copy.db");
            backup(&a, &copy);
            drop(a);
            Site::start(&copy, "file 3", 20)
        } else {
            a.store.untrack(NOW, "n").unwrap();
            drop(a);
            Site::start(&path, "file 1", 20)
        };
        assert_ne!(a.site(), former);
        assert_eq!(b.proves(&mut a), None, "nothing speaks against its present site");
        let known = b.vector().get(former);
        together(&mut [&mut a, &mut b]);
        assert_eq!(b.rows().into_keys().collect::<Vec<_>>(), ["lost", "one", "restored"]);
        assert!(b.vector().get(former) < known, "the former site is capped");
        assert_eq!(a.site(), Site::start(&a.path.clone(), &a.file.clone(), 30).site());
    }
}

/// A file that changed its site again and again, and whose every history is the one that others know.
#[test]
fn p13_a_former_site_that_nobody_contradicts_is_not_capped() {
    let dir = tempfile::tempdir().unwrap();
    let (mut a, mut b) = (Site::new(dir.path(), 1), Site::new(dir.path(), 2));
    for round in 0..4_u8 {
        a.put("one", i64::from(round));
        b.pull(&mut a);
        a.put("two", i64::from(round));
        let app = Connection::open(&a.path).unwrap();
        app.execute_batch(&format!("INSERT OR REPLACE INTO n VALUES({round}, 'x')")).unwrap();
        drop(app);
        let path = a.path.clone();
        if round % 2 == 0 {
            a.store.untrack(NOW, "n").unwrap();
            a.store.track(NOW, "n").unwrap();
            drop(a);
            // A call while no engine runs.
            Store::open(Connection::open(&path).unwrap()).unwrap().untrack(NOW, "t").unwrap();
            let mut calls = Store::open(Connection::open(&path).unwrap()).unwrap();
            calls.track(NOW, "t").unwrap();
            while calls.backfill_block(NOW).unwrap() {}
            a = Site::start(&path, "file 1", 10 + round);
        } else {
            b.pull(&mut a);
            let copy = dir.path().join(format!("copy {round}.db"));
            backup(&a, &copy);
            let mut original = a;
            original.put("original", i64::from(round));
            b.pull(&mut original);
            a = Site::start(&copy, &format!("file {round}"), 10 + round);
            // What it runs under from now on is the name of its file.
            let restarted = Site::start(&copy, &format!("file {round}"), 20 + round);
            drop(std::mem::replace(&mut a, restarted));
        }
        let file = a.file.clone();
        together(&mut [&mut a, &mut b]);
        assert_eq!(a.store.own_state(NOW).unwrap().caps, BTreeMap::new(), "round {round}");
        a = Site::start(&a.path.clone(), &file, 40 + round);
    }
}

#[test]
fn p13_a_running_engine_notices_that_its_file_was_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let (mut a, mut b) = (Site::new(dir.path(), 1), Site::new(dir.path(), 2));
    a.put("one", 1);
    let old = dir.path().join("old.db");
    backup(&a, &old);
    a.put("lost", 2);
    b.pull(&mut a);
    let (own, path) = (a.site(), a.path.clone());
    restore(&old, &path);
    Connection::open(&path).unwrap().execute_batch("INSERT INTO t VALUES('new', 3)").unwrap();
    let noticed = a.store.write(NOW, |_| Ok(()));
    assert!(matches!(noticed, Err(Error::Replaced)), "{noticed:?}");
    assert!(matches!(a.store.own_state(NOW), Err(Error::Replaced)));
    a.store.renew_after_replacement(own, &[30; 64]).unwrap();
    let mut a = Site::start(&path, "file 1", 40);
    assert_ne!(a.site(), own);
    together(&mut [&mut a, &mut b]);
    assert_eq!(b.rows().into_keys().collect::<Vec<_>>(), ["lost", "new", "one"]);
}

#[test]
fn p14_caps_fall_only_and_bound_the_vector_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let (mut a, mut b) = (Site::new(dir.path(), 1), Site::new(dir.path(), 2));
    a.put("one", 1);
    b.pull(&mut a);
    let (site, high) = (a.site(), b.vector().get(a.site()));
    let cap = |stamp| [(site, stamp)].into_iter().collect();
    let low = Stamp(high.0 - 5);
    assert_eq!(b.store.take_caps(NOW, &cap(low)).unwrap(), (true, None));
    assert_eq!(b.store.cursor_for(NOW, site).unwrap().seq.0, 0, "read again");
    assert_ne!(b.store.cursor_for(NOW, site).unwrap().boot, Boot(0), "the evidence stays");
    assert_eq!(b.store.take_caps(NOW, &cap(high)).unwrap(), (false, None));
    b.pull(&mut a);
    assert_eq!(b.vector().get(site), low);
    assert_eq!(a.store.take_caps(NOW, &cap(low)).unwrap(), (true, Some(low)), "a has to change");
}

/// What a copy holds unfolded is folded under the former identity, by the start that gives it another.
#[test]
fn p14_a_copy_with_unfolded_rows_starts() {
    let dir = tempfile::tempdir().unwrap();
    let a = Site::new(dir.path(), 1);
    let app = Connection::open(&a.path).unwrap();
    app.execute("INSERT INTO t VALUES('unfolded', 1)", []).unwrap();
    let path = dir.path().join("copy.db");
    backup(&a, &path);
    let mut copy = Store::open(Connection::open(&path).unwrap()).unwrap();
    let identity = copy.start(NOW, &FileIdentity("copy".into()), &[9; 64]).unwrap();
    assert_ne!(identity.site, a.site());
    assert_eq!(copy.own_state(NOW).unwrap().boot, identity.boot);
}

#[cfg(feature = "mutants")]
#[test]
fn p13_a_fork_of_a_former_site_that_is_not_seen_is_noticed() {
    use wavesync_core::mutants::{Mutant, set};
    set(Some(Mutant::PastUnseen));
    let broken = std::panic::catch_unwind(p13_what_others_know_of_a_former_site_is_compared);
    set(None);
    assert!(broken.is_err());
}

//! The replicas of a case: each the production store and machine, and beside it the reference
//! model over a plain database. After every step both must hold the same.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::Connection;
use rusqlite::config::DbConfig;
use wavesync_core::auth::GroupKey;
use wavesync_core::ids::{Dot, Millis, Seq, SiteId};
use wavesync_core::limits::{Bounds, SCHEMA_SETTLE_MS};
use wavesync_core::machine::{Config, Input, Machine, Output, PeerId};
use wavesync_core::store::Store;
use wavesync_core::store::contact::Existing;
use wavesync_core::store::group::Join;
use wavesync_core::store::identity::FileIdentity;
use wavesync_core::store::key::pack;

use crate::check;
use crate::dice::Dice;
use crate::follow::{joined, name_events, rename, take_over};
use crate::image::Image;
use crate::net::{Item, Net};
use crate::plain::Plain;
use crate::reference::{Key, Operation, Rows, unnamed};
use crate::rule::{self, Outcome};
use crate::schema::Table;
use crate::script::{Script, Step};

/// 2023-11-14.
const START: u64 = 1_700_000_000_000;
/// Without a frame for this long, a group is quiet.
const QUIET_MS: u64 = 300;
/// More frames than this in one step are a storm.
const FRAMES_MAX: u64 = 20_000;

pub struct Replica {
    store: Option<Store>,
    machine: Machine,
    peer: PeerId,
    skew: i64,
    file: FileIdentity,
    pub tables: Vec<Table>,
    /// Changes of the schema that are done here.
    upgrades: usize,
    pub plain: Plain,
    pub model: BTreeMap<String, Rows>,
    pub outcome: Outcome,
}

impl Replica {
    pub fn conn(&self) -> &Connection {
        self.store.as_ref().expect("a replica has its store").connection()
    }

    pub fn store(&mut self) -> &mut Store {
        self.store.as_mut().expect("a replica has its store")
    }

    fn site(&self) -> SiteId {
        self.store.as_ref().and_then(|store| store.site_id().unwrap()).unwrap()
    }

    fn columns(&self, table: &str) -> BTreeSet<String> {
        let table = self.tables.iter().find(|known| known.name == table).unwrap();
        table.columns.iter().map(|column| column.name.clone()).collect()
    }

    /// Brings the plain database to what the rule says.
    pub fn refill(&mut self, enforced: bool) {
        self.outcome = rule::fill(&self.plain.conn, &self.tables, enforced, &self.model);
    }
}

pub struct Group<'a> {
    script: &'a Script,
    dice: Dice,
    pub now: u64,
    pub replicas: Vec<Replica>,
    net: Net,
}

impl<'a> Group<'a> {
    pub fn new(script: &'a Script) -> Self {
        let dice = Dice::new(script.seed);
        let net = Net::default();
        let mut group = Self { script, dice, now: START, replicas: Vec::new(), net };
        for at in 0..script.replicas {
            group.now += 20;
            group.add(at, script.skews[at], &script.existing[at]);
        }
        group
    }

    fn enforced(&self) -> bool {
        self.script.schema.enforced
    }

    fn clock(&self, at: usize) -> Millis {
        Millis(self.now.saturating_add_signed(self.replicas[at].skew))
    }

    /// A database with rows that joins.
    fn add(&mut self, at: usize, skew: i64, existing: &[String]) {
        let tables = self.script.schema.tables.clone();
        let plain = Plain::new(&tables);
        let (_, _) = plain.run(existing, &tables, self.enforced(), true);
        let conn = Connection::open_in_memory().unwrap();
        for sql in tables.iter().flat_map(Table::all) {
            conn.execute_batch(&sql).unwrap();
        }
        conn.pragma_update(None, "foreign_keys", self.enforced()).unwrap();
        existing.iter().for_each(|sql| {
            let _ = conn.execute_batch(sql);
        });
        let mut store = Store::open(conn).unwrap();
        store.set_bounds(Bounds {
            chunk_rows: self.dice.within(1, 5) as usize,
            chunk_scan_entries: self.dice.within(3, 9) as usize,
            push_rows: if self.dice.percent(30) { 2 } else { 256 },
            backfill_rows: self.dice.within(1, 5) as usize,
            open_test_entries: self.dice.within(2, 6) as usize,
            fold_run_rows: self.dice.within(1, 5) as usize,
            log_keep_rows: 1_000,
            log_trim_rows: 1_000,
            bulk_rows: 2,
            identity_changes: usize::MAX,
            ..Bounds::default()
        });
        let now = Millis(self.now.saturating_add_signed(skew));
        let join = Join {
            topic: "model".into(),
            adopt_schema: Some(false),
            // Rows of before joining are the same rows, as the model has it.
            existing: Some(Existing::Same),
            foreign_keys: self.enforced(),
            ..Join::default()
        };
        let file = FileIdentity(format!("file {at}"));
        store.join(now, &join, &file, &self.dice.bytes()).unwrap();
        let peer = PeerId(vec![at as u8]);
        let machine = start(&mut store, now, &file, &peer, &mut self.dice);
        while store.backfill_block(now).unwrap() {}
        let image = Image::read(store.connection());
        let model = joined(&plain, &tables, &image);
        let (store, outcome) = (Some(store), Outcome::default());
        let upgrades = 0;
        self.replicas.push(Replica {
            store,
            machine,
            peer,
            skew,
            file,
            tables,
            upgrades,
            plain,
            model,
            outcome,
        });
        let enforced = self.enforced();
        self.replicas[at].refill(enforced);
        check::same(&self.replicas[at], &image, at);
    }

    pub fn step(&mut self, step: &Step) {
        self.now += self.dice.within(1, 60);
        match step {
            Step::Write { at, recursive, statements } => self.write(*at, *recursive, statements),
            Step::Connect { a, b, cuts } => self.connect(*a, *b, *cuts),
            Step::Disconnect { a, b } => self.disconnect(*a, *b),
            Step::Carry { from, to } => self.carry(*from, *to),
            Step::Restart { at } => self.restart(*at),
            Step::Upgrade { at } => self.upgrade(*at),
            Step::Recreate { at, table } => self.recreate(*at, *table),
        }
        self.meet();
    }

    /// Everybody gets every change of the schema and everything from everybody.
    pub fn complete(&mut self) {
        for at in 0..self.replicas.len() {
            while self.replicas[at].upgrades < self.script.changes.len() {
                self.upgrade(at);
            }
        }
        for at in 1..self.replicas.len() {
            let other = self.dice.index(at);
            self.connect(other, at, 0);
        }
        self.meet();
        check::all_equal(&self.replicas);
        for at in 0..self.replicas.len() {
            check::sound(self.replicas[at].conn(), self.enforced(), at);
        }
        self.newcomer();
    }

    /// Who joins last and gets everything by hand, twice, holds the same.
    fn newcomer(&mut self) {
        let now = Millis(self.now + 200_000);
        let blob = self.replicas[0].store().export(now, Seq(0)).unwrap();
        let tables = self.replicas[0].tables.clone();
        let conn = Connection::open_in_memory().unwrap();
        for sql in tables.iter().flat_map(Table::all) {
            conn.execute_batch(&sql).unwrap();
        }
        let mut store = Store::open(conn).unwrap();
        let join = Join {
            topic: "model".into(),
            adopt_schema: Some(false),
            // Rows of before joining are the same rows, as the model has it.
            existing: Some(Existing::Same),
            foreign_keys: self.enforced(),
            ..Join::default()
        };
        store.join(now, &join, &FileIdentity("late".into()), &self.dice.bytes()).unwrap();
        store.import(now, &blob).unwrap();
        let image = Image::read(store.connection());
        check::same(&self.replicas[0], &image, 99);
        assert_eq!(store.import(now, &blob).unwrap().changed, 0, "an import twice is none");
        store.forget().unwrap();
        let left = "SELECT count(*) FROM sqlite_schema WHERE sql LIKE '%wavesync%'";
        let left: i64 = store.connection().query_row(left, [], |row| row.get(0)).unwrap();
        assert_eq!(left, 0, "nothing of ours is left");
    }

    fn write(&mut self, at: usize, recursive: bool, statements: &[String]) {
        let time = self.clock(at).0 as i64;
        let enforced = self.enforced();
        let replica = &self.replicas[at];
        let conn = replica.conn();
        let end = "SELECT coalesce(max(seq), 0) FROM __wavesync_log";
        let before: i64 = conn.query_row(end, [], |row| row.get(0)).unwrap();
        application(conn, enforced, recursive);
        let done: Vec<bool> =
            statements.iter().map(|sql| conn.execute_batch(sql).is_ok()).collect();
        if !conn.is_autocommit() {
            conn.execute_batch("ROLLBACK").unwrap();
        }
        engine(conn);
        conn.execute("UPDATE __wavesync_log SET at = ?1 WHERE seq > ?2", [time, before]).unwrap();
        let (expected, operations) =
            replica.plain.run(statements, &replica.tables, enforced, recursive);
        assert_eq!(done, expected, "statements succeed as without wavesync: {statements:?}");
        self.record(at, operations);
    }

    /// The engine folds, and the model names its write events after those of the replica.
    fn record(&mut self, at: usize, operations: Vec<Operation>) {
        let now = self.clock(at);
        let enforced = self.enforced();
        let replica = &mut self.replicas[at];
        let hlc = Image::read(replica.conn()).hlc;
        replica.store().write(now, |_| Ok(())).unwrap();
        let mut touched: BTreeSet<(String, Key)> = BTreeSet::new();
        for (number, operation) in operations.iter().enumerate() {
            let (Operation::Insert { table, key }
            | Operation::Update { table, key, .. }
            | Operation::Delete { table, key }) = operation;
            let local = replica.columns(table);
            let rows = replica.model.get_mut(table).unwrap();
            rows.write(operation, &local, unnamed(number as i64));
            touched.insert((table.clone(), key.clone()));
        }
        let image = Image::read(replica.conn());
        for (table, key) in &touched {
            let site = replica.site();
            let fresh = |dot: Dot| dot.site == site && dot.stamp.0 > hlc;
            let shape = replica.tables.iter().find(|known| known.name == *table).unwrap();
            let shown = replica.plain.shown(shape);
            let Some(row) = replica.model.get_mut(table).unwrap().rows.get_mut(key) else {
                continue;
            };
            let real = image.tables[&table.to_ascii_lowercase()].rows.get(&pack(key));
            let real = real.unwrap_or_else(|| panic!("r{at}: {table} {key:?} has no clock"));
            name_events(row, real, shown.get(&pack(key)), &fresh)
                .unwrap_or_else(|what| panic!("r{at}: {table} {key:?}: {what}: {row:?} {real:?}"));
        }
        take_over(replica, &image, &touched);
        replica.refill(enforced);
        check::same(replica, &image, at);
        self.feed(at, Input::Committed);
    }

    fn connect(&mut self, a: usize, b: usize, cuts: u64) {
        for _ in 0..cuts {
            self.link(a, b);
            let frames = self.dice.within(1, 40);
            self.pump(Some(frames));
            self.disconnect(a, b);
        }
        self.link(a, b);
    }

    fn link(&mut self, a: usize, b: usize) {
        if !self.net.links.insert((a.min(b), a.max(b))) {
            return;
        }
        for (at, other) in [(a, b), (b, a)] {
            let peer = self.replicas[other].peer.clone();
            self.feed(at, Input::Connected { peer, address: String::new(), relayed: false });
        }
    }

    fn disconnect(&mut self, a: usize, b: usize) {
        if !self.net.linked(a, b) {
            return;
        }
        self.net.cut(a, b);
        for (at, other) in [(a, b), (b, a)] {
            let peer = self.replicas[other].peer.clone();
            self.feed(at, Input::Disconnected { peer });
        }
    }

    fn carry(&mut self, from: usize, to: usize) {
        let now = [self.clock(from), self.clock(to)];
        let blob = self.replicas[from].store().export(now[0], Seq(0)).unwrap();
        self.replicas[to].store().import(now[1], &blob).unwrap();
        let theirs = self.replicas[from].model.clone();
        meet(&mut self.replicas[to].model, &theirs);
        self.feed(to, Input::Committed);
    }

    fn restart(&mut self, at: usize) {
        let others: Vec<usize> =
            (0..self.replicas.len()).filter(|other| self.net.linked(at, *other)).collect();
        for other in &others {
            self.net.cut(at, *other);
            let peer = self.replicas[at].peer.clone();
            self.feed(*other, Input::Disconnected { peer });
        }
        let now = self.clock(at);
        let replica = &mut self.replicas[at];
        let store = replica.store.take().expect("a replica has its store");
        let mut store = Store::open(store.into_connection()).unwrap();
        replica.machine = start(&mut store, now, &replica.file, &replica.peer, &mut self.dice);
        replica.store = Some(store);
        others.into_iter().for_each(|other| self.link(at, other));
    }

    fn upgrade(&mut self, at: usize) {
        let Some(change) = self.script.changes.get(self.replicas[at].upgrades) else { return };
        if !change.at_once() {
            return self.upgrade_one(at);
        }
        for (a, b) in self.net.links.clone() {
            self.disconnect(a, b);
        }
        let to = self.replicas[at].upgrades + 1;
        for other in 0..self.replicas.len() {
            while self.replicas[other].upgrades < to {
                self.upgrade_one(other);
            }
        }
    }

    fn upgrade_one(&mut self, at: usize) {
        let replica = &mut self.replicas[at];
        let change = &self.script.changes[replica.upgrades];
        replica.upgrades += 1;
        let statements = change.statements(&replica.tables);
        replica.plain.unwatch();
        let all = statements.join("; ");
        let expected = replica.plain.conn.execute_batch(&all);
        let now = Millis(self.now.saturating_add_signed(replica.skew));
        let done = if let crate::schema::Change::DropColumn { .. } = change {
            replica.store().alter(now, &all).map_err(|error| error.to_string())
        } else {
            engine(replica.conn());
            replica.conn().execute_batch(&all).map_err(|error| error.to_string())
        };
        let (a, b) = (expected.map_err(|error| error.to_string()), done);
        assert_eq!(a.is_ok(), b.is_ok(), "{all}: {a:?} {b:?}");
        assert!(a.is_ok(), "{all}: {a:?}");
        change.apply(&mut replica.tables);
        replica.plain.watch(&replica.tables);
        rename(&mut replica.model, change);
        self.record(at, Vec::new());
    }

    fn recreate(&mut self, at: usize, table: usize) {
        let enforced = self.enforced();
        let replica = &mut self.replicas[at];
        let table = replica.tables[table].clone();
        if !table.free || !table.extras.iter().all(|text| text.contains("INDEX")) {
            return;
        }
        let mut all = vec![format!("DROP TABLE {}", crate::schema::quoted(&table.name))];
        all.extend(table.all());
        let all = all.join("; ");
        replica.plain.unwatch();
        replica.plain.conn.execute_batch(&all).unwrap();
        replica.plain.watch(&replica.tables);
        replica.conn().execute_batch(&all).unwrap();
        // What stood there is forgotten; what was parked for it, and what was deleted, is not.
        let parked = replica.outcome.parked.clone();
        if let Some(rows) = replica.model.get_mut(&table.name) {
            rows.rows.retain(|key, row| {
                !row.alive() || parked.contains(&(table.name.clone(), pack(key)))
            });
        }
        let now = Millis(self.now.saturating_add_signed(replica.skew) + SCHEMA_SETTLE_MS);
        replica.store().write(now, |_| Ok(())).unwrap();
        replica.refill(enforced);
        self.feed(at, Input::Committed);
    }

    /// Delivers everything, and joins the models of those who reach each other.
    fn meet(&mut self) {
        self.pump(None);
        let enforced = self.enforced();
        for group in self.net.groups(self.replicas.len()) {
            if group.len() > 1 {
                let mut all = BTreeMap::new();
                group.iter().for_each(|at| meet(&mut all, &self.replicas[*at].model));
                // Rows that moved may meet others where they are now.
                for _ in 0..2 {
                    let again = all.clone();
                    meet(&mut all, &again);
                }
                group.iter().for_each(|at| meet(&mut self.replicas[*at].model, &all));
            }
            for at in group {
                self.replicas[at].refill(enforced);
                let image = Image::read(self.replicas[at].conn());
                check::same(&self.replicas[at], &image, at);
            }
        }
    }

    /// Lets frames arrive and time pass until it is quiet, or that many frames have arrived.
    fn pump(&mut self, most: Option<u64>) {
        let mut arrived = 0;
        let mut quiet_at = self.now + QUIET_MS;
        self.net.frames = 0;
        loop {
            assert!(self.net.frames < FRAMES_MAX, "a storm of frames");
            if most.is_some_and(|most| arrived >= most) {
                return;
            }
            let Some((at, from, stream, item)) = self.net.next(&mut self.dice) else {
                let wakes = self.replicas.iter().enumerate().map(|(at, replica)| {
                    let wake = replica.machine.next_wake().0.saturating_add_signed(-replica.skew);
                    (wake.max(self.now + 1), at)
                });
                let Some((wake, at)) = wakes.min().filter(|(wake, _)| *wake <= quiet_at) else {
                    return;
                };
                self.now = wake;
                self.feed(at, Input::Timer);
                continue;
            };
            arrived += 1;
            if self.dice.percent(30) {
                self.now += 1;
            }
            quiet_at = self.now + QUIET_MS;
            let peer = self.replicas[from].peer.clone();
            let input = match item {
                Item::Opened { token } => Input::Opened { peer, stream, token },
                Item::Frame(bytes) => Input::Frame { stream, bytes },
                Item::Closed => Input::Closed { stream },
            };
            self.feed(at, input);
        }
    }

    fn feed(&mut self, at: usize, input: Input) {
        let now = self.clock(at);
        let replica = &mut self.replicas[at];
        let store = replica.store.as_mut().expect("a replica has its store");
        replica.machine.handle(now, input, store);
        for output in replica.machine.take_outputs() {
            match output {
                Output::OpenStream { peer, token } => {
                    self.net.open(at, usize::from(peer.0[0]), token);
                }
                Output::Send { stream, frame } => self.net.send(stream, Item::Frame(frame)),
                Output::Close { stream } | Output::Abandon { stream } => {
                    self.net.send(stream, Item::Closed)
                }
                Output::Proven { .. } => {}
                Output::Disconnect { peer } => self.disconnect(at, usize::from(peer.0[0])),
                Output::Event(event) => assert!(
                    event.level != wavesync_core::machine::Level::Error,
                    "r{at} reports {}: {}",
                    event.code,
                    event.message
                ),
                Output::Restart => return self.restart(at),
            }
        }
    }
}

fn application(conn: &Connection, enforced: bool, recursive: bool) {
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, true).unwrap();
    conn.pragma_update(None, "foreign_keys", enforced).unwrap();
    conn.pragma_update(None, "recursive_triggers", recursive).unwrap();
}

fn engine(conn: &Connection) {
    conn.pragma_update(None, "foreign_keys", false).unwrap();
    conn.pragma_update(None, "recursive_triggers", false).unwrap();
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false).unwrap();
}

fn start(
    store: &mut Store,
    now: Millis,
    file: &FileIdentity,
    peer: &PeerId,
    dice: &mut Dice,
) -> Machine {
    let identity = store.start(now, file, &dice.bytes()).unwrap();
    let config = Config {
        key: GroupKey::from_secret([9; 32]),
        own_peer: peer.clone(),
        name: "replica".into(),
    };
    let mut own = Dice::new(dice.next());
    Machine::new(config, identity, Box::new(move |bytes| own.fill(bytes)))
}

/// All that another replica holds.
fn meet(ours: &mut BTreeMap<String, Rows>, theirs: &BTreeMap<String, Rows>) {
    for (name, rows) in theirs {
        let empty = || Rows { integer: rows.integer, ..Rows::default() };
        ours.entry(name.clone()).or_insert_with(empty).meet(rows);
    }
}

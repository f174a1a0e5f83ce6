//! The schema changes while rows are parked: whatever the change, nothing is lost, replicas stay equal,
//! and what was parked comes back when it can, with all its values.
#![allow(clippy::unwrap_used)]

mod site;

use site::{NOW, Site, content};
use wavesync_core::ids::Millis;
use wavesync_core::limits::SCHEMA_SETTLE_MS;
use wavesync_core::store::report::conflicts;
use wavesync_core::value::Value;

const USER: &str = "(id TEXT PRIMARY KEY NOT NULL, name TEXT UNIQUE, mail TEXT, note TEXT)";
const LOOSE: &str = "(id TEXT PRIMARY KEY NOT NULL, name TEXT, mail TEXT, note TEXT)";

fn tables() -> String {
    format!(
        "CREATE TABLE user{USER};
         CREATE UNIQUE INDEX user_mail ON user(mail);
         CREATE TABLE letter(id TEXT PRIMARY KEY NOT NULL, uid TEXT REFERENCES user(id), text TEXT)"
    )
}

/// A change of the schema, and what it comes to.
struct Change {
    name: &'static str,
    /// Statements, each its own transaction unless they say otherwise.
    sql: Vec<String>,
    /// By `wavesync_alter`.
    alter: bool,
    /// What the table is called afterwards, and its columns.
    table: &'static str,
    columns: [&'static str; 3],
    /// Users that stand with it, of 1 to 4.
    users: &'static str,
    /// Notes can be seen with it.
    notes: bool,
}

fn rebuild(columns: &str, indexes: &str) -> String {
    format!(
        "PRAGMA foreign_keys=OFF; BEGIN; CREATE TABLE new_user{columns};
         INSERT INTO new_user SELECT * FROM user; DROP TABLE user;
         ALTER TABLE new_user RENAME TO user; {indexes}; COMMIT; PRAGMA foreign_keys=ON"
    )
}

fn changes() -> Vec<Change> {
    let index = "CREATE UNIQUE INDEX user_mail ON user(mail)";
    let of = |name, sql: &[&str]| Change {
        name,
        sql: sql.iter().map(|sql| (*sql).to_string()).collect(),
        alter: false,
        table: "user",
        columns: ["name", "mail", "note"],
        users: "1,4",
        notes: true,
    };
    let drop = "PRAGMA foreign_keys=OFF; DROP TABLE user; PRAGMA foreign_keys=ON";
    let create = format!("CREATE TABLE user{USER}; {index}");
    vec![
        of("add a column", &["ALTER TABLE user ADD COLUMN extra TEXT DEFAULT 'd'"]),
        Change {
            columns: ["name", "post", "note"],
            ..of("rename a unique column", &["ALTER TABLE user RENAME COLUMN mail TO post"])
        },
        Change {
            columns: ["name", "mail", "remark"],
            ..of("rename a column", &["ALTER TABLE user RENAME COLUMN note TO remark"])
        },
        Change {
            table: "person",
            ..of("rename the table", &["ALTER TABLE user RENAME TO person"])
        },
        of("rebuild", &[&rebuild(USER, index)]),
        Change { users: "1,2,4", ..of("rebuild without UNIQUE", &[&rebuild(LOOSE, index)]) },
        Change { users: "1,3,4", ..of("drop the index", &["DROP INDEX user_mail"]) },
        of("a further index", &["CREATE UNIQUE INDEX user_note ON user(note, mail)"]),
        Change {
            columns: ["name", "mail", "id"],
            alter: true,
            notes: false,
            ..of("drop a column", &["ALTER TABLE user DROP COLUMN note"])
        },
        of("drop and create", &[drop, &create]),
        of("drop and create at once", &[&format!("{drop}; {create}")]),
    ]
}

struct World {
    sites: Vec<Site>,
    time: u64,
}

impl World {
    /// Two users have one name, two one mail; one letter is to one of those that stay out.
    fn new() -> Self {
        let sites = (1..=3).map(|number| Site::enforcing(number, &tables(), true)).collect();
        let mut world = Self { sites, time: 0 };
        world.write(0, "INSERT INTO user VALUES('1', 'bob', 'm1', 'n1')");
        world.write(1, "INSERT INTO user VALUES('2', 'bob', 'm2', 'n2')");
        world.write(2, "INSERT INTO user VALUES('3', 'eve', 'm1', 'n3')");
        world.write(1, "INSERT INTO user VALUES('4', 'dan', 'm4', 'n4')");
        world.write(1, "INSERT INTO letter VALUES('to 2', '2', 'x'), ('to 4', '4', 'y')");
        world.exchange();
        for at in 0..3 {
            assert_eq!(world.users(at, "user"), "1,4");
            assert_eq!(world.parked(at), "2,3,to 2");
        }
        world
    }

    fn now(&mut self) -> Millis {
        self.time += 1;
        NOW.plus(self.time)
    }

    fn write(&mut self, at: usize, sql: &str) {
        let now = self.now();
        self.sites[at].run(sql);
        self.fold(at, now);
    }

    /// As an engine does: a dropped table may be about to be replaced, so it looks again later.
    fn fold(&mut self, at: usize, now: Millis) {
        let site = &mut self.sites[at];
        if site.store.write(now, |_| Ok(())).is_err() {
            self.time += SCHEMA_SETTLE_MS;
            site.fold(now.plus(SCHEMA_SETTLE_MS));
        }
        while self.sites[at].store.backfill_block(NOW.plus(self.time)).unwrap() {}
    }

    fn exchange(&mut self) {
        for _ in 0..2 {
            for (to, from) in [(0, 1), (1, 2), (2, 0), (1, 0), (2, 1), (0, 2)] {
                let now = self.now();
                let [to, from] = self.sites.get_disjoint_mut([to, from]).unwrap();
                to.pull(from, now);
            }
        }
    }

    fn change(&mut self, at: usize, change: &Change, running: bool) {
        for sql in &change.sql {
            let now = self.now();
            if change.alter {
                self.sites[at].store.alter(now, sql).unwrap();
            } else {
                self.sites[at].run(sql);
            }
            if running {
                self.fold(at, now);
            }
        }
        if !running {
            self.sites[at].restart();
            let now = self.now();
            self.fold(at, now);
        }
    }

    fn text(&self, at: usize, sql: &str) -> String {
        self.sites[at]
            .app
            .query_row(sql, [], |row| row.get::<_, Option<String>>(0))
            .unwrap()
            .unwrap_or_default()
    }

    fn users(&self, at: usize, table: &str) -> String {
        self.text(at, &format!("SELECT group_concat(id) FROM (SELECT id FROM {table} ORDER BY 1)"))
    }

    /// Keys of rows that are not in their tables.
    fn parked(&self, at: usize) -> String {
        let sql = "SELECT group_concat(k) FROM (SELECT k FROM __wavesync_parked
                   WHERE NOT in_table ORDER BY k)";
        self.text(at, sql)
    }

    fn assert_equal(&self, what: &str) {
        let first = content(&self.sites[0].image());
        for site in &self.sites[1..] {
            assert_eq!(content(&site.image()), first, "{what}");
        }
    }
}

/// What is parked with the rows that stand with a change.
fn out(users: &str) -> &'static str {
    match users {
        "1,4" => "2,3,to 2",
        "1,2,4" => "3",
        _ => "2,to 2",
    }
}

fn each(engines: &[bool], mut body: impl FnMut(&Change, &mut World, &str)) {
    for change in changes() {
        for &running in engines {
            let mut world = World::new();
            let what = format!("{}, engine running: {running}", change.name);
            world.change(0, &change, running);
            // The others have the former schema for a while, and one of them longer.
            world.exchange();
            world.change(1, &change, !running);
            world.exchange();
            world.change(2, &change, running);
            world.exchange();
            world.assert_equal(&what);
            for at in 0..3 {
                assert_eq!(world.users(at, change.table), change.users, "site {at}, {what}");
                assert_eq!(world.parked(at), out(change.users), "site {at}, {what}");
            }
            body(&change, &mut world, &what);
        }
    }
}

#[test]
fn what_is_parked_comes_back_with_all_its_values() {
    each(&[true, false], |change, world, what| {
        let [name, mail, note] = change.columns;
        let table = change.table;
        world.write(0, &format!("UPDATE {table} SET {name} = 'ann', {mail} = 'm9' WHERE id = '1'"));
        world.exchange();
        world.assert_equal(what);
        for at in 0..3 {
            assert_eq!(world.users(at, table), "1,2,3,4", "site {at}, {what}");
            assert_eq!(world.parked(at), "", "site {at}, {what}");
            let values = format!(
                "SELECT group_concat(v) FROM (SELECT {name} || {mail} || {note} AS v FROM {table}
                 WHERE id IN ('2', '3') ORDER BY id)"
            );
            let values = world.text(at, &values);
            let expected = if change.notes { "bobm2n2,evem1n3" } else { "bobm22,evem13" };
            assert_eq!(values, expected, "site {at}, {what}");
            assert_eq!(world.text(at, "SELECT text FROM letter WHERE id = 'to 2'"), "x");
        }
    });
}

#[test]
fn what_is_parked_can_be_restored() {
    each(&[false], |change, world, what| {
        let listed = conflicts(&world.sites[2].app).unwrap();
        let parked = listed.iter().find(|conflict| {
            conflict.parked && conflict.key == Value::text("3") && conflict.kind == "unique"
        });
        let now = world.now();
        if let Some(parked) = parked {
            world.sites[2].store.restore(now, parked.id).unwrap();
        }
        world.exchange();
        world.assert_equal(what);
        for at in 0..3 {
            // With user 1 out, nobody has the name of user 2.
            let users = if change.users == "1,3,4" { "1,3,4" } else { "2,3,4" };
            assert_eq!(world.users(at, change.table), users, "site {at}, {what}");
        }
    });
}

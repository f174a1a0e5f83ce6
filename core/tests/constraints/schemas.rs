//! The schemas of the property test: every kind of rule that SQLite knows, small pools of values.

/// A foreign key: columns, parent, its columns, action.
pub type Key = (&'static [&'static str], &'static str, &'static [&'static str], Action);

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Park,
    SetNull,
    /// The default, as text.
    SetDefault(&'static str),
}

pub struct Table {
    pub name: &'static str,
    /// Columns beside `id`, with the literals from which values are drawn; `@t` is an id of t.
    pub columns: &'static [(&'static str, &'static [&'static str])],
    pub keys: &'static [Key],
}

pub struct Schema {
    pub name: &'static str,
    pub sql: &'static str,
    pub tables: &'static [Table],
    /// Parents first.
    pub strata: &'static [&'static [&'static str]],
}

impl Schema {
    /// Whether the rows of a table can move to another key.
    pub fn integer_key(&self, table: &str) -> bool {
        self.sql.contains(&format!("CREATE TABLE {table}(id INTEGER PRIMARY KEY"))
    }

    /// Whether any can.
    pub fn moves(&self) -> bool {
        self.tables.iter().any(|table| self.integer_key(table.name))
    }
}

pub const UNIQ: Schema = Schema {
    name: "uniq",
    sql:
        "CREATE TABLE u(id TEXT PRIMARY KEY NOT NULL, email TEXT COLLATE NOCASE UNIQUE, handle TEXT,
            org TEXT, no INT, UNIQUE(org, no)) WITHOUT ROWID;
          CREATE UNIQUE INDEX u1 ON u(handle) WHERE org IS NOT NULL;
          CREATE UNIQUE INDEX u2 ON u(lower(handle || '-' || no));",
    tables: &[Table {
        name: "u",
        columns: &[
            ("email", &["'x'", "'X'", "'y'", "'z'", "NULL"]),
            ("handle", &["'h'", "'H'", "'k'", "NULL"]),
            ("org", &["'o'", "NULL"]),
            ("no", &["1", "2", "NULL"]),
        ],
        keys: &[],
    }],
    strata: &[&["u"]],
};

pub const FK: Schema = Schema {
    name: "fk",
    sql: "CREATE TABLE p(id TEXT PRIMARY KEY NOT NULL, name TEXT UNIQUE);
          CREATE TABLE c(id TEXT PRIMARY KEY NOT NULL, pid TEXT REFERENCES p(id) ON DELETE CASCADE,
            slug TEXT UNIQUE);
          CREATE TABLE g(id TEXT PRIMARY KEY NOT NULL, cid TEXT NOT NULL REFERENCES c(id), w TEXT,
            UNIQUE(cid, w));",
    tables: &[
        Table { name: "p", columns: &[("name", &["'n'", "'m'", "'k'"])], keys: &[] },
        Table {
            name: "c",
            columns: &[("pid", &["@p", "@p", "NULL"]), ("slug", &["'s'", "'t'", "'v'"])],
            keys: &[(&["pid"], "p", &["id"], Action::Park)],
        },
        Table {
            name: "g",
            columns: &[("cid", &["@c"]), ("w", &["'a'", "'b'"])],
            keys: &[(&["cid"], "c", &["id"], Action::Park)],
        },
    ],
    strata: &[&["p"], &["c"], &["g"]],
};

pub const SETNULL: Schema = Schema {
    name: "setnull",
    sql: "CREATE TABLE p(id TEXT PRIMARY KEY NOT NULL, name TEXT UNIQUE);
          CREATE TABLE c(id TEXT PRIMARY KEY NOT NULL, pid TEXT REFERENCES p(id) ON DELETE SET NULL,
            slug TEXT, UNIQUE(pid, slug));
          CREATE TABLE g(id TEXT PRIMARY KEY NOT NULL,
            cid TEXT DEFAULT 'c0' REFERENCES c(id) ON DELETE SET DEFAULT, w TEXT);",
    tables: &[
        Table { name: "p", columns: &[("name", &["'n'", "'m'"])], keys: &[] },
        Table {
            name: "c",
            columns: &[("pid", &["@p", "@p", "NULL"]), ("slug", &["'s'", "'t'"])],
            keys: &[(&["pid"], "p", &["id"], Action::SetNull)],
        },
        Table {
            name: "g",
            columns: &[("cid", &["@c", "@c", "NULL"]), ("w", &["'a'", "'b'"])],
            keys: &[(&["cid"], "c", &["id"], Action::SetDefault("c0"))],
        },
    ],
    strata: &[&["p"], &["c"], &["g"]],
};

pub const TREE: Schema = Schema {
    name: "tree",
    sql: "CREATE TABLE n(id TEXT PRIMARY KEY NOT NULL, par TEXT REFERENCES n(id) ON DELETE CASCADE,
            name TEXT, code TEXT UNIQUE, UNIQUE(par, name));",
    tables: &[Table {
        name: "n",
        columns: &[
            ("par", &["@n", "@n", "NULL"]),
            ("name", &["'s'", "'t'"]),
            ("code", &["'1'", "'2'", "'3'"]),
        ],
        keys: &[(&["par"], "n", &["id"], Action::Park)],
    }],
    strata: &[&["n"]],
};

pub const CYCLE: Schema = Schema {
    name: "cycle",
    sql: "CREATE TABLE x(id TEXT PRIMARY KEY NOT NULL,
            yid TEXT REFERENCES y(id) DEFERRABLE INITIALLY DEFERRED, k TEXT UNIQUE);
          CREATE TABLE y(id TEXT PRIMARY KEY NOT NULL,
            xid TEXT REFERENCES x(id) ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED, k TEXT UNIQUE);",
    tables: &[
        Table {
            name: "x",
            columns: &[("yid", &["@y", "NULL"]), ("k", &["'1'", "'2'", "'3'"])],
            keys: &[(&["yid"], "y", &["id"], Action::Park)],
        },
        Table {
            name: "y",
            columns: &[("xid", &["@x", "NULL"]), ("k", &["'1'", "'2'", "'3'"])],
            keys: &[(&["xid"], "x", &["id"], Action::Park)],
        },
    ],
    strata: &[&["x", "y"]],
};

pub const CHECK: Schema = Schema {
    name: "check",
    sql:
        "CREATE TABLE e(id TEXT PRIMARY KEY NOT NULL, a INT NOT NULL, b INT NOT NULL CHECK(b <> 13),
            t TEXT, u TEXT UNIQUE, s INT AS (a + 1) STORED, CHECK(a < b),
            CHECK(s <> 7 OR t IS NOT NULL));",
    tables: &[Table {
        name: "e",
        columns: &[
            ("a", &["1", "3", "5", "6"]),
            ("b", &["2", "4", "6", "13"]),
            ("t", &["'q'", "NULL"]),
            ("u", &["'1'", "'2'", "'3'"]),
        ],
        keys: &[],
    }],
    strata: &[&["e"]],
};

pub const COMPFK: Schema = Schema {
    name: "compfk",
    sql: "CREATE TABLE p(id TEXT PRIMARY KEY NOT NULL, o TEXT, code TEXT, UNIQUE(o, code));
          CREATE TABLE c(id TEXT PRIMARY KEY NOT NULL, o TEXT, code TEXT, k TEXT UNIQUE,
            FOREIGN KEY(o, code) REFERENCES p(o, code) ON UPDATE CASCADE ON DELETE CASCADE);",
    tables: &[
        Table {
            name: "p",
            columns: &[("o", &["'1'", "'2'", "NULL"]), ("code", &["'a'", "'b'"])],
            keys: &[],
        },
        Table {
            name: "c",
            columns: &[
                ("o", &["'1'", "'2'", "NULL"]),
                ("code", &["'a'", "'b'"]),
                ("k", &["'1'", "'2'", "'3'"]),
            ],
            keys: &[(&["o", "code"], "p", &["o", "code"], Action::Park)],
        },
    ],
    strata: &[&["p"], &["c"]],
};

pub const MOVES: Schema = Schema {
    name: "moves",
    sql: "CREATE TABLE p(id INTEGER PRIMARY KEY, name TEXT UNIQUE);
          CREATE TABLE c(id INTEGER PRIMARY KEY, pid INTEGER REFERENCES p(id) ON DELETE CASCADE,
            slug TEXT UNIQUE);
          CREATE TABLE g(id TEXT PRIMARY KEY NOT NULL,
            cid INTEGER REFERENCES c(id) ON DELETE SET NULL, pid INTEGER NOT NULL REFERENCES p(id),
            w TEXT, UNIQUE(cid, w));",
    tables: &[
        Table { name: "p", columns: &[("name", &["'n'", "'m'", "'k'"])], keys: &[] },
        Table {
            name: "c",
            columns: &[("pid", &["@p", "@p", "NULL"]), ("slug", &["'s'", "'t'", "'v'"])],
            keys: &[(&["pid"], "p", &["id"], Action::Park)],
        },
        Table {
            name: "g",
            columns: &[("cid", &["@c", "@c", "NULL"]), ("pid", &["@p"]), ("w", &["'a'", "'b'"])],
            keys: &[
                (&["cid"], "c", &["id"], Action::SetNull),
                (&["pid"], "p", &["id"], Action::Park),
            ],
        },
    ],
    strata: &[&["p"], &["c"], &["g"]],
};

pub const MOVING_TREE: Schema = Schema {
    name: "moving tree",
    sql: "CREATE TABLE n(id INTEGER PRIMARY KEY, par INTEGER REFERENCES n(id) ON DELETE CASCADE,
            name TEXT, code TEXT UNIQUE, UNIQUE(par, name));",
    tables: &[Table {
        name: "n",
        columns: &[
            ("par", &["@n", "@n", "NULL"]),
            ("name", &["'s'", "'t'"]),
            ("code", &["'1'", "'2'", "'3'"]),
        ],
        keys: &[(&["par"], "n", &["id"], Action::Park)],
    }],
    strata: &[&["n"]],
};

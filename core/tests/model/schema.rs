//! Random schemas: every kind of key and column, and rules that contend under a merge.

use std::collections::BTreeSet;

use crate::dice::Dice;

/// What a missing parent means for a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Park,
    SetNull,
    /// The default, a text.
    SetDefault(String),
}

/// A declared reference of one column to the key of a table.
#[derive(Clone, Debug)]
pub struct Reference {
    pub column: String,
    pub parent: String,
    pub parent_column: String,
    pub action: Action,
}

/// A column outside the key that is stored.
#[derive(Clone, Debug)]
pub struct Column {
    pub name: String,
    /// Its type and rules.
    pub decl: String,
    /// The literals from which its values are drawn.
    pub pool: Vec<&'static str>,
    /// Nothing else in the schema names it.
    pub free: bool,
}

#[derive(Clone, Debug)]
pub struct Table {
    pub name: String,
    pub integer: bool,
    /// Key columns in the order of the key, with their pools.
    pub key: Vec<(String, Vec<&'static str>)>,
    /// The text of the key's columns and, for a key of several, of its rule.
    key_texts: Vec<String>,
    pub columns: Vec<Column>,
    /// Generated columns and rules of the table.
    rules: Vec<String>,
    options: &'static str,
    /// Indexes and triggers, `{t}` standing for the table.
    pub extras: Vec<String>,
    pub groups: Vec<BTreeSet<String>>,
    pub references: Vec<Reference>,
    /// It can be renamed, rebuilt and dropped: no other object names it.
    pub free: bool,
}

pub fn quoted(name: &str) -> String {
    format!("\"{name}\"")
}

impl Table {
    pub fn create(&self, name: &str) -> String {
        let columns = self.columns.iter().map(|c| format!("{} {}", quoted(&c.name), c.decl));
        // A key of several columns is a rule, and rules come last.
        let (keys, last) = self.key_texts.split_at(self.key.len());
        let parts = keys.iter().cloned().chain(columns).chain(self.rules.iter().cloned());
        let parts: Vec<String> = parts.chain(last.iter().cloned()).collect();
        format!("CREATE TABLE {}({}){}", quoted(name), parts.join(", "), self.options)
    }

    pub fn extras(&self) -> impl Iterator<Item = String> {
        self.extras.iter().map(|text| text.replace("{t}", &quoted(&self.name)))
    }

    pub fn all(&self) -> Vec<String> {
        std::iter::once(self.create(&self.name)).chain(self.extras()).collect()
    }

    /// All columns that a write of these counts as written.
    pub fn coupled(&self, columns: &BTreeSet<String>) -> BTreeSet<String> {
        let hit = self.groups.iter().filter(|group| !group.is_disjoint(columns));
        columns.iter().cloned().chain(hit.flatten().cloned()).collect()
    }

    fn column(&mut self, name: &str, decl: String, pool: &[&'static str], free: bool) {
        self.columns.push(Column { name: name.into(), decl, pool: pool.to_vec(), free });
    }
}

/// The tables of a case, parents first.
#[derive(Clone, Debug)]
pub struct Schema {
    pub tables: Vec<Table>,
    /// Declared foreign keys are enforced.
    pub enforced: bool,
}

const NAMES: [&str; 6] = ["plain", "two words", "select", "größe", "rowid t", "x.y"];
const COLUMNS: [&str; 5] = ["a", "b c", "from", "ü", "rowid"];
const INTEGERS: &[&str] = &["1", "2", "3", "7", "13", "NULL"];
const TEXTS: &[&str] = &["'x'", "'X'", "'y'", "''", "'k0'", "NULL"];
const REALS: &[&str] = &["0.5", "1", "-2.25", "1e300", "NULL"];
const BLOBS: &[&str] = &["x'00'", "x''", "x'ff00'", "NULL"];
const ANYTHING: &[&str] = &["1", "1.0", "'1'", "x'31'", "NULL", "'y'"];

pub fn random(dice: &mut Dice) -> Schema {
    let first = dice.index(NAMES.len());
    let count = dice.within(1, 3) as usize;
    let mut tables: Vec<Table> = Vec::new();
    for at in 0..count {
        let name = NAMES[(first + at) % NAMES.len()];
        let table = random_table(dice, name, &tables);
        for reference in &table.references {
            for parent in tables.iter_mut().filter(|t| t.name == reference.parent) {
                parent.free = false;
            }
        }
        tables.push(table);
    }
    let enforced = dice.percent(60);
    if dice.percent(25) {
        add_audit(&mut tables);
    }
    if dice.percent(25) {
        add_touched(dice, &mut tables);
    }
    Schema { tables, enforced }
}

fn random_table(dice: &mut Dice, name: &str, parents: &[Table]) -> Table {
    let strict = dice.percent(15);
    let mut table = Table {
        name: name.into(),
        integer: false,
        key: Vec::new(),
        key_texts: Vec::new(),
        columns: Vec::new(),
        rules: Vec::new(),
        options: if strict { " STRICT" } else { "" },
        extras: Vec::new(),
        groups: Vec::new(),
        references: Vec::new(),
        free: true,
    };
    random_key(dice, &mut table, strict);
    let columns = dice.within(0, 4) as usize;
    let first = dice.index(COLUMNS.len());
    for at in 0..columns {
        random_column(dice, &mut table, COLUMNS[(first + at) % COLUMNS.len()], strict);
    }
    random_rules(dice, &mut table);
    random_reference(dice, &mut table, parents);
    table
}

fn random_key(dice: &mut Dice, table: &mut Table, strict: bool) {
    let texts: &[&str] = &["'k0'", "'k1'", "'K1'", "'k2'", "''"];
    let (name, text, pool): (&str, &str, &[&'static str]) = match dice.below(8) {
        0 => ("id", "INTEGER PRIMARY KEY", &["1", "2", "3", "4"]),
        1 => ("id", "INTEGER PRIMARY KEY NOT NULL", &["1", "2", "3", "NULL"]),
        2 => ("a key", "INTEGER PRIMARY KEY AUTOINCREMENT", &["1", "2", "3"]),
        3 => ("k", "TEXT PRIMARY KEY", texts),
        4 => ("order", "BLOB PRIMARY KEY NOT NULL", &["x'00'", "x''", "x'6b'"]),
        5 => ("r", "REAL PRIMARY KEY", &["0.5", "1.0", "-2.25"]),
        _ => {
            let (x, y) = ("INTEGER NOT NULL", "TEXT NOT NULL");
            table.key_texts = vec![
                format!("\"x\" {x}"),
                format!("\"the y\" {y}"),
                "PRIMARY KEY(\"the y\", \"x\")".into(),
            ];
            table.key = vec![("the y".into(), texts.to_vec()), ("x".into(), vec!["1", "2"])];
            if dice.percent(60) {
                table.options = if strict { " STRICT, WITHOUT ROWID" } else { " WITHOUT ROWID" };
            }
            return;
        }
    };
    table.integer = text.starts_with("INTEGER");
    table.key = vec![(name.into(), pool.to_vec())];
    table.key_texts = vec![format!("{} {text}", quoted(name))];
    if text == "TEXT PRIMARY KEY" && dice.percent(40) {
        table.options = if strict { " STRICT, WITHOUT ROWID" } else { " WITHOUT ROWID" };
    }
}

fn random_column(dice: &mut Dice, table: &mut Table, name: &str, strict: bool) {
    let (kind, pool) = match dice.below(6) {
        0 => ("INTEGER", INTEGERS),
        1 => ("TEXT", TEXTS),
        2 => ("REAL", REALS),
        3 => ("BLOB", BLOBS),
        4 if strict => ("ANY", ANYTHING),
        4 => ("", ANYTHING),
        _ => ("TEXT", TEXTS),
    };
    let mut decl = kind.to_owned();
    match dice.below(12) {
        0 => decl.push_str(" UNIQUE"),
        1 if kind == "TEXT" => decl.push_str(" COLLATE NOCASE UNIQUE"),
        2 if kind == "TEXT" => decl.push_str(" NOT NULL DEFAULT 'dft'"),
        3 if kind == "INTEGER" => decl.push_str(" NOT NULL"),
        4 if kind == "INTEGER" => decl.push_str(&format!(" CHECK({} <> 13)", quoted(name))),
        5 if kind == "TEXT" => decl.push_str(" DEFAULT 'k0'"),
        6 if kind == "TEXT" => decl.push_str(" COLLATE NOCASE"),
        _ => {}
    }
    let free = !decl.contains("CHECK") && !decl.contains("UNIQUE");
    table.column(name, decl, pool, free);
}

fn random_rules(dice: &mut Dice, table: &mut Table) {
    if table.columns.is_empty() {
        return;
    }
    let one = dice.index(table.columns.len());
    let two = dice.index(table.columns.len());
    let name = |at: usize| quoted(&table.columns[at].name);
    let mut coupled = vec![one, two];
    match dice.below(8) {
        0 if one != two => table.rules.push(format!("UNIQUE({}, {})", name(one), name(two))),
        1 if one != two => table.rules.push(format!(
            "CHECK({} IS NULL OR {} IS NULL OR typeof({}) = 'blob' OR {} <> {})",
            name(one),
            name(two),
            name(one),
            name(one),
            name(two)
        )),
        2 if one != two => table.extras.push(format!(
            "CREATE UNIQUE INDEX \"ui {}\" ON {{t}}({}) WHERE {} IS NOT NULL",
            table.name,
            name(one),
            name(two)
        )),
        3 | 4 => {
            let stored = if dice.percent(50) { "STORED" } else { "VIRTUAL" };
            let text = format!("\"gen\" TEXT AS (coalesce({}, '-') || '!') {stored}", name(one));
            table.rules.push(text);
            table.columns[one].free = false;
            coupled.clear();
        }
        _ => coupled.clear(),
    }
    if !coupled.is_empty() {
        table.groups.push(coupled.iter().map(|at| table.columns[*at].name.clone()).collect());
        coupled.iter().for_each(|at| table.columns[*at].free = false);
    }
}

fn random_reference(dice: &mut Dice, table: &mut Table, parents: &[Table]) {
    let single = |t: &&Table| t.key.len() == 1 && t.key_texts[0].contains("TEXT PRIMARY KEY");
    let mut choices: Vec<&Table> = parents.iter().filter(single).collect();
    let own = table.clone();
    if single(&&own) && dice.percent(40) {
        choices.push(&own);
    }
    if choices.is_empty() || dice.percent(30) {
        return;
    }
    let parent = choices[dice.index(choices.len())];
    let (key, pool) = parent.key[0].clone();
    let (action, text) = match dice.below(6) {
        0 => (Action::Park, "ON DELETE CASCADE"),
        1 => (Action::Park, "ON DELETE CASCADE ON UPDATE CASCADE"),
        2 => (Action::Park, "DEFERRABLE INITIALLY DEFERRED"),
        3 => (Action::SetNull, "ON DELETE SET NULL"),
        4 => (Action::SetDefault("k0".into()), "ON DELETE SET DEFAULT"),
        _ => (Action::Park, "ON DELETE RESTRICT"),
    };
    let default = if action == Action::SetDefault("k0".into()) { " DEFAULT 'k0'" } else { "" };
    let column = "parent";
    let decl =
        format!("TEXT{default} REFERENCES {}({}) {text}", quoted(&parent.name), quoted(&key));
    let pool: Vec<&str> = pool.into_iter().chain(["NULL"]).collect();
    table.references.push(Reference {
        column: column.into(),
        parent: parent.name.clone(),
        parent_column: key,
        action,
    });
    table.free &= parent.name != table.name;
    table.column(column, decl, &pool, false);
}

/// A trigger of the application that counts in another tracked table.
fn add_audit(tables: &mut Vec<Table>) {
    let table = &mut tables[0];
    table.extras.push(
        "CREATE TRIGGER \"app audit\" AFTER INSERT ON {t} BEGIN INSERT INTO audit(what, n) \
         VALUES('row', 1) ON CONFLICT(what) DO UPDATE SET n = n + 1; END"
            .into(),
    );
    table.free = false;
    let mut audit = Table {
        name: "audit".into(),
        integer: false,
        key: vec![("what".into(), vec!["'row'", "'other'"])],
        key_texts: vec!["\"what\" TEXT PRIMARY KEY NOT NULL".into()],
        columns: Vec::new(),
        rules: Vec::new(),
        options: "",
        extras: Vec::new(),
        groups: Vec::new(),
        references: Vec::new(),
        free: false,
    };
    audit.column("n", "INTEGER".into(), &["1", "2"], false);
    tables.push(audit);
}

/// A trigger of the application that writes its own row.
fn add_touched(dice: &mut Dice, tables: &mut [Table]) {
    let at = dice.index(tables.len());
    let table = &mut tables[at];
    let Some(column) = table.columns.iter().find(|column| column.name != "n").cloned() else {
        return;
    };
    let same: Vec<String> =
        table.key.iter().map(|(name, _)| format!("{0} IS NEW.{0}", quoted(name))).collect();
    table.extras.push(format!(
        "CREATE TRIGGER \"app touched\" AFTER UPDATE OF {} ON {{t}} BEGIN UPDATE {{t}} SET \
         touched = 'touched' || coalesce(hex(NEW.{}), '') WHERE {}; END",
        quoted(&column.name),
        quoted(&column.name),
        same.join(" AND ")
    ));
    table.columns.iter_mut().filter(|c| c.name == column.name).for_each(|c| c.free = false);
    table.column("touched", "TEXT".into(), TEXTS, false);
    table.free = false;
}

/// A change of the schema.
#[derive(Clone, Debug)]
pub enum Change {
    AddColumn { table: String, column: Column },
    RenameColumn { table: String, from: String, to: String },
    RenameTable { from: String, to: String },
    Rebuild { table: String },
    DropColumn { table: String, column: String },
}

impl Change {
    /// One that fits the schema as it is; numbered to keep names apart.
    pub fn random(dice: &mut Dice, tables: &[Table], number: usize) -> Option<Self> {
        let table = &tables[dice.index(tables.len())];
        let name = table.name.clone();
        let free = table.columns.iter().find(|column| column.free).map(|c| c.name.clone());
        Some(match dice.below(6) {
            0 | 1 => {
                let decl = if dice.percent(50) { "TEXT DEFAULT 'k0'" } else { "INTEGER" };
                let pool = if decl == "INTEGER" { INTEGERS } else { TEXTS };
                let column = Column {
                    name: format!("new {number}"),
                    decl: decl.into(),
                    pool: pool.to_vec(),
                    free: true,
                };
                Self::AddColumn { table: name, column }
            }
            2 => Self::RenameColumn { table: name, from: free?, to: format!("renamed {number}") },
            3 if table.free => Self::RenameTable { from: name, to: format!("renamed {number}") },
            4 if table.free => Self::Rebuild { table: name },
            5 => Self::DropColumn { table: name, column: free? },
            _ => return None,
        })
    }

    /// It has to happen at everybody before they meet again.
    pub fn at_once(&self) -> bool {
        matches!(self, Self::RenameColumn { .. } | Self::RenameTable { .. })
    }

    /// What to run, before it is applied to the description.
    pub fn statements(&self, tables: &[Table]) -> Vec<String> {
        match self {
            Self::AddColumn { table, column } => vec![format!(
                "ALTER TABLE {} ADD COLUMN {} {}",
                quoted(table),
                quoted(&column.name),
                column.decl
            )],
            Self::RenameColumn { table, from, to } => vec![format!(
                "ALTER TABLE {} RENAME COLUMN {} TO {}",
                quoted(table),
                quoted(from),
                quoted(to)
            )],
            Self::RenameTable { from, to } => {
                vec![format!("ALTER TABLE {} RENAME TO {}", quoted(from), quoted(to))]
            }
            Self::DropColumn { table, column } => {
                vec![format!("ALTER TABLE {} DROP COLUMN {}", quoted(table), quoted(column))]
            }
            Self::Rebuild { table } => {
                let Some(known) = tables.iter().find(|known| known.name == *table) else {
                    return Vec::new();
                };
                let columns = known.key.iter().map(|(name, _)| quoted(name));
                let columns = columns.chain(known.columns.iter().map(|c| quoted(&c.name)));
                let columns = columns.collect::<Vec<_>>().join(", ");
                let mut all = vec![
                    "BEGIN".into(),
                    known.create("interim"),
                    format!(
                        "INSERT INTO interim({columns}) SELECT {columns} FROM {}",
                        quoted(table)
                    ),
                    format!("DROP TABLE {}", quoted(table)),
                    format!("ALTER TABLE interim RENAME TO {}", quoted(table)),
                ];
                all.extend(known.extras());
                all.push("COMMIT".into());
                all
            }
        }
    }

    pub fn apply(&self, tables: &mut [Table]) {
        let named = |tables: &mut [Table], name: &str, with: &mut dyn FnMut(&mut Table)| {
            tables.iter_mut().filter(|table| table.name == name).for_each(with);
        };
        match self {
            Self::AddColumn { table, column } => {
                named(tables, table, &mut |table| table.columns.push(column.clone()));
            }
            Self::RenameColumn { table, from, to } => named(tables, table, &mut |table| {
                let columns = table.columns.iter_mut().filter(|column| column.name == *from);
                columns.for_each(|column| column.name.clone_from(to));
            }),
            Self::RenameTable { from, to } => {
                named(tables, from, &mut |table| table.name.clone_from(to));
            }
            Self::DropColumn { table, column } => {
                named(tables, table, &mut |table| table.columns.retain(|c| c.name != *column));
            }
            Self::Rebuild { .. } => {}
        }
    }
}

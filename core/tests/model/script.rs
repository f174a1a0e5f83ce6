//! Random scripts: what applications and people do to the replicas of a case, as data, so that a
//! script that fails can be made shorter.

use std::fmt;

use crate::dice::Dice;
use crate::schema::{Change, Schema, Table, quoted};

/// One thing that happens.
#[derive(Clone, Debug)]
pub enum Step {
    /// A transaction of an application, with this `PRAGMA recursive_triggers`.
    Write {
        at: usize,
        recursive: bool,
        statements: Vec<String>,
    },
    /// A replica is connected to another one and stays so; cut a few times on the way, it comes
    /// back.
    Connect {
        a: usize,
        b: usize,
        cuts: u64,
    },
    Disconnect {
        a: usize,
        b: usize,
    },
    /// An export travels by hand.
    Carry {
        from: usize,
        to: usize,
    },
    Restart {
        at: usize,
    },
    /// The next change of the schema that is not done here yet.
    Upgrade {
        at: usize,
    },
    /// A table is dropped and created again.
    Recreate {
        at: usize,
        table: usize,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write { at, recursive, statements } => {
                let pragma = if *recursive { " (recursive_triggers)" } else { "" };
                write!(f, "r{at}{pragma}: {}", statements.join("; "))
            }
            other => write!(f, "{other:?}"),
        }
    }
}

/// A whole case.
#[derive(Clone, Debug)]
pub struct Script {
    pub schema: Schema,
    pub replicas: usize,
    /// Clocks, in milliseconds beside the true time.
    pub skews: Vec<i64>,
    /// Rows before joining.
    pub existing: Vec<Vec<String>>,
    pub changes: Vec<Change>,
    pub steps: Vec<Step>,
    /// For what the network does.
    pub seed: u64,
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for text in self.schema.tables.iter().flat_map(Table::all) {
            writeln!(f, "{text};")?;
        }
        let enforced = self.schema.enforced;
        writeln!(f, "foreign_keys={enforced} replicas={} {:?}", self.replicas, self.skews)?;
        for (at, rows) in self.existing.iter().enumerate().filter(|(_, rows)| !rows.is_empty()) {
            writeln!(f, "before joining, r{at}: {}", rows.join("; "))?;
        }
        for (at, change) in self.changes.iter().enumerate() {
            writeln!(f, "change {at}: {change:?}")?;
        }
        for (at, step) in self.steps.iter().enumerate() {
            writeln!(f, "{at:>3} {step}")?;
        }
        Ok(())
    }
}

impl Script {
    pub fn random(seed: u64) -> Self {
        let mut dice = Dice::new(seed ^ 0x006d_6f64_656c);
        let schema = crate::schema::random(&mut dice);
        let replicas = dice.within(2, 4) as usize;
        let equal = dice.percent(60);
        let skew = |dice: &mut Dice| dice.within(0, 120_000) as i64 - 60_000;
        let skews = (0..replicas).map(|_| if equal { 0 } else { skew(&mut dice) }).collect();
        let changes = random_changes(&mut dice, &schema);
        let mut script = Self {
            existing: random_existing(&mut dice, &schema, replicas),
            replicas,
            skews,
            steps: Vec::new(),
            seed: dice.next(),
            changes,
            schema,
        };
        script.fill(&mut dice);
        script
    }

    fn fill(&mut self, dice: &mut Dice) {
        let mut here = vec![(0, self.schema.tables.clone()); self.replicas];
        for _ in 0..dice.within(6, 26) {
            let at = dice.index(self.replicas);
            let other = (at + 1 + dice.index(self.replicas - 1)) % self.replicas;
            let step = match dice.below(100) {
                0..=57 => Step::Write {
                    at,
                    recursive: dice.percent(50),
                    statements: transaction(dice, &here[at].1, self.schema.enforced),
                },
                58..=71 => {
                    let cuts = if dice.percent(30) { dice.within(1, 4) } else { 0 };
                    Step::Connect { a: at.min(other), b: at.max(other), cuts }
                }
                72..=83 => Step::Disconnect { a: at.min(other), b: at.max(other) },
                84..=88 => Step::Carry { from: at, to: other },
                89..=91 => Step::Restart { at },
                92..=93 => Step::Recreate { at, table: dice.index(self.schema.tables.len()) },
                _ => {
                    // A rename happens to everybody.
                    let all = 0..self.replicas;
                    let next = here[at].0;
                    let Some(change) = self.changes.get(next) else { continue };
                    let who = all.filter(|other| *other == at || change.at_once());
                    for other in who {
                        while here[other].0 <= next {
                            let (done, tables) = &mut here[other];
                            self.changes[*done].apply(tables);
                            *done += 1;
                        }
                    }
                    Step::Upgrade { at }
                }
            };
            self.steps.push(step);
        }
    }
}

fn random_changes(dice: &mut Dice, schema: &Schema) -> Vec<Change> {
    let mut tables = schema.tables.clone();
    let mut changes = Vec::new();
    for number in 0..dice.below(5) as usize {
        if let Some(change) = Change::random(dice, &tables, number) {
            change.apply(&mut tables);
            changes.push(change);
        }
    }
    changes
}

fn random_existing(dice: &mut Dice, schema: &Schema, replicas: usize) -> Vec<Vec<String>> {
    let table_rows = |dice: &mut Dice, count: u64| -> Vec<String> {
        let tables = schema.tables.iter().filter(|table| table.name != "audit");
        let tables: Vec<&Table> = tables.collect();
        (0..count).map(|at| insert(dice, tables[at as usize % tables.len()], "INSERT")).collect()
    };
    let count = dice.below(7);
    let common = if dice.percent(40) { table_rows(dice, count) } else { Vec::new() };
    (0..replicas)
        .map(|_| {
            let own = if dice.percent(30) { dice.within(1, 4) } else { 0 };
            let mut rows = if dice.percent(80) { common.clone() } else { Vec::new() };
            rows.extend(table_rows(dice, own));
            rows
        })
        .collect()
}

fn transaction(dice: &mut Dice, tables: &[Table], enforced: bool) -> Vec<String> {
    let mut all = Vec::new();
    let several = dice.percent(45);
    let count = if several { dice.within(2, 6) } else { 1 };
    let deferred = enforced
        && tables.iter().any(|table| table.create(&table.name).contains("INITIALLY DEFERRED"));
    for _ in 0..count {
        let table = &tables[dice.index(tables.len())];
        let one = statement(dice, table);
        if several && !deferred && dice.percent(15) {
            let end = if dice.percent(60) { "ROLLBACK TO s" } else { "RELEASE s" };
            all.extend(["SAVEPOINT s".into(), one, end.into()]);
            if end.starts_with("ROLLBACK") {
                all.push("RELEASE s".into());
            }
        } else {
            all.push(one);
        }
    }
    if several {
        all.insert(0, "BEGIN".into());
        all.push(if dice.percent(15) { "ROLLBACK".into() } else { "COMMIT".into() });
    }
    all
}

fn value(dice: &mut Dice, pool: &[&'static str]) -> String {
    let one = pool[dice.index(pool.len())];
    // NULL is in most pools; fewer of it break NOT NULL.
    if one == "NULL" && dice.percent(50) { pool[0].into() } else { one.into() }
}

fn some_columns(dice: &mut Dice, table: &Table) -> Vec<usize> {
    let all = table.columns.len();
    if dice.percent(70) || all == 0 {
        return (0..all).collect();
    }
    (0..all).filter(|_| dice.percent(60)).collect()
}

fn row(dice: &mut Dice, table: &Table, columns: &[usize]) -> String {
    let key = table.key.iter().map(|(_, pool)| pool).collect::<Vec<_>>();
    let mut values: Vec<String> =
        key.into_iter().map(|pool| pool[dice.index(pool.len())].to_owned()).collect();
    values.extend(columns.iter().map(|at| value(dice, &table.columns[*at].pool)));
    format!("({})", values.join(", "))
}

fn insert(dice: &mut Dice, table: &Table, verb: &str) -> String {
    let columns = some_columns(dice, table);
    let names = table.key.iter().map(|(name, _)| quoted(name));
    let names: Vec<String> =
        names.chain(columns.iter().map(|at| quoted(&table.columns[*at].name))).collect();
    let rows = if dice.percent(20) { dice.within(2, 3) } else { 1 };
    let rows: Vec<String> = (0..rows).map(|_| row(dice, table, &columns)).collect();
    format!("{verb} INTO {}({}) VALUES {}", quoted(&table.name), names.join(", "), rows.join(", "))
}

fn matches(dice: &mut Dice, table: &Table) -> String {
    if table.integer && dice.percent(15) {
        // One that moved.
        let key = quoted(&table.key[0].0);
        let name = quoted(&table.name);
        return format!("{key} = (SELECT min({key}) FROM {name} WHERE {key} < 0)");
    }
    let parts: Vec<String> = table
        .key
        .iter()
        .map(|(name, pool)| format!("{} = {}", quoted(name), pool[dice.index(pool.len())]))
        .collect();
    parts.join(" AND ")
}

fn assignments(dice: &mut Dice, table: &Table) -> String {
    let count = if dice.percent(65) { 1 } else { 2 };
    let first = dice.index(table.columns.len());
    let all = table.columns.iter().cycle().skip(first).take(count.min(table.columns.len()));
    let parts: Vec<String> =
        all.map(|c| format!("{} = {}", quoted(&c.name), value(dice, &c.pool))).collect();
    parts.join(", ")
}

fn statement(dice: &mut Dice, table: &Table) -> String {
    let name = quoted(&table.name);
    let update = !table.columns.is_empty();
    match dice.below(24) {
        0..=5 => insert(dice, table, "INSERT"),
        6 | 7 => insert(dice, table, "INSERT OR IGNORE"),
        8 | 9 => insert(dice, table, "INSERT OR REPLACE"),
        10 if update => {
            let insert = insert(dice, table, "INSERT");
            format!("{insert} ON CONFLICT DO UPDATE SET {}", assignments(dice, table))
        }
        10 => format!("{} ON CONFLICT DO NOTHING", insert(dice, table, "INSERT")),
        11..=15 if update => {
            let verb = ["UPDATE", "UPDATE", "UPDATE OR REPLACE", "UPDATE OR IGNORE"][dice.index(4)];
            format!("{verb} {name} SET {} WHERE {}", assignments(dice, table), matches(dice, table))
        }
        16 if update => format!("UPDATE {name} SET {}", assignments(dice, table)),
        17 => {
            // The key changes.
            let verb = ["UPDATE", "UPDATE OR REPLACE", "UPDATE OR IGNORE"][dice.index(3)];
            let key: Vec<String> = table
                .key
                .iter()
                .map(|(name, pool)| format!("{} = {}", quoted(name), pool[dice.index(pool.len())]))
                .filter(|text| !text.ends_with("NULL"))
                .collect();
            let mut set = key.join(", ");
            if update && dice.percent(30) {
                set = format!("{set}, {}", assignments(dice, table));
            }
            format!("{verb} {name} SET {set} WHERE {}", matches(dice, table))
        }
        18 if table.integer => copies(table),
        19 if dice.percent(30) => format!("DELETE FROM {name}"),
        _ => format!("DELETE FROM {name} WHERE {}", matches(dice, table)),
    }
}

/// Rows made of rows, under keys that SQLite chooses.
fn copies(table: &Table) -> String {
    let key = quoted(&table.key[0].0);
    let name = quoted(&table.name);
    let names: Vec<String> = table.columns.iter().map(|c| quoted(&c.name)).collect();
    let list = |first: &str| {
        std::iter::once(first.to_owned()).chain(names.clone()).collect::<Vec<_>>().join(", ")
    };
    format!(
        "INSERT OR IGNORE INTO {name}({}) SELECT {} FROM {name} WHERE {key} > 0 ORDER BY {key} \
         LIMIT 2",
        list(&key),
        list(&format!("{key} + 4"))
    )
}

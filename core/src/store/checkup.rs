//! What a look at a database finds that its user may want to mend: one finding for each, with the
//! remedy. Only reads.

use rusqlite::Connection;

use crate::Result;
use crate::store::identity::FileIdentity;
use crate::store::report::{self, TableReport};
use crate::store::shape::{self, KeyForm, Shape};
use crate::store::sql::ident;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Something does not sync, or data is at risk.
    Error,
    /// Something waits, or may go wrong.
    Warning,
    /// Worth knowing.
    Info,
}

impl Severity {
    /// The word that users see.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Info => "info",
        }
    }
}

/// Something that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// A stable word.
    pub code: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// What is there.
    pub detail: String,
    /// What to do about it.
    pub fix: String,
}

impl Finding {
    /// A finding of these four.
    pub fn new(
        code: &'static str,
        severity: Severity,
        detail: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self { code, severity, detail: detail.into(), fix: fix.into() }
    }
}

/// Looks at the main database of a connection. `file` is what the host knows about its file now,
/// if it does. Reads whole tables where a key may be NULL or foreign keys are declared.
///
/// # Errors
/// If SQLite fails.
pub fn database(conn: &Connection, file: Option<&FileIdentity>) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let shapes: Vec<Shape> = shape::survey(conn)?.into_iter().flatten().collect();
    dangling_references(conn, &shapes, &mut findings)?;
    if !report::is_joined(conn)? {
        return Ok(findings);
    }
    copied_file(conn, file, &mut findings)?;
    let reports = report::tables(conn)?;
    findings.extend(reports.iter().filter_map(not_synced));
    let synced = |shape: &&Shape| reports.iter().any(|r| r.tracked && r.name == shape.name);
    for shape in shapes.iter().filter(synced) {
        null_keys(conn, shape, &mut findings)?;
        missing_triggers(conn, shape, &mut findings)?;
    }
    waiting_rows(conn, &mut findings)?;
    Ok(findings)
}

fn number(conn: &Connection, sql: &str) -> Result<i64> {
    Ok(conn.query_row(sql, [], |row| row.get(0))?)
}

/// `1 row`, `2 rows`.
fn rows(count: i64) -> String {
    format!("{count} row{}", if count == 1 { "" } else { "s" })
}

fn dangling_references(
    conn: &Connection,
    shapes: &[Shape],
    findings: &mut Vec<Finding>,
) -> Result<()> {
    for shape in shapes.iter().filter(|shape| !shape.foreign.is_empty()) {
        let check = "SELECT count(*), min(parent) FROM pragma_foreign_key_check(?1, 'main')";
        // A declaration that no table fulfils is an error of its own, which SQLite words.
        let found = conn.query_row(check, [&shape.name], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, Option<String>>(1)?))
        });
        let detail = match found {
            Ok((0, _)) => continue,
            Ok((count, parent)) => format!(
                "table {}: {} to rows that are not there, first of all in {}",
                shape.name,
                if count == 1 { "1 reference".into() } else { format!("{count} references") },
                parent.unwrap_or_default()
            ),
            Err(error) => format!("table {}: {error}", shape.name),
        };
        findings.push(Finding::new(
            "dangling_reference",
            Severity::Warning,
            detail,
            "SELECT * FROM pragma_foreign_key_check lists them; add the rows that are meant, or \
             change the references",
        ));
    }
    Ok(())
}

fn copied_file(
    conn: &Connection,
    file: Option<&FileIdentity>,
    findings: &mut Vec<Finding>,
) -> Result<()> {
    let bound: Option<String> = super::meta(conn, "file")?;
    if let (Some(bound), Some(file)) = (bound, file)
        && bound != file.0
    {
        findings.push(Finding::new(
            "copied_file",
            Severity::Info,
            "this file is a copy of another replica's file, or was restored from one",
            "nothing: the next wavesync_join() gives it an identity of its own",
        ));
    }
    Ok(())
}

fn not_synced(table: &TableReport) -> Option<Finding> {
    if table.tracked || table.reason.is_empty() {
        return None;
    }
    let detail = format!("table {}: {}", table.name, table.reason);
    if let Some((what, fix)) = table.reason.split_once("; rebuild it") {
        let detail = format!("table {}: {what}", table.name);
        let fix = format!("rebuild it{fix}");
        return Some(Finding::new("table_without_key", Severity::Warning, detail, fix));
    }
    if table.reason.starts_with("not tracked") {
        let fix = format!("SELECT wavesync_track('{}')", table.name.replace('\'', "''"));
        return Some(Finding::new("table_not_tracked", Severity::Info, detail, fix));
    }
    None
}

fn null_keys(conn: &Connection, shape: &Shape, findings: &mut Vec<Finding>) -> Result<()> {
    if shape.form == KeyForm::Rowid {
        return Ok(());
    }
    let table = ident(&shape.name)?;
    let parts: Result<Vec<String>> =
        shape.key.iter().map(|part| Ok(format!("{} IS NULL", ident(&part.name)?))).collect();
    let nowhere = parts?.join(" OR ");
    let count = number(conn, &format!("SELECT count(*) FROM main.{table} WHERE {nowhere}"))?;
    if count > 0 {
        findings.push(Finding::new(
            "null_key",
            Severity::Warning,
            format!(
                "table {}: rows with NULL in the key stay in this database: {count}",
                shape.name
            ),
            format!(
                "give them keys: UPDATE {table} SET … WHERE {nowhere}; and declare the key NOT NULL"
            ),
        ));
    }
    Ok(())
}

fn missing_triggers(conn: &Connection, shape: &Shape, findings: &mut Vec<Finding>) -> Result<()> {
    let number: Option<i64> = super::optional(conn.query_row(
        "SELECT num FROM __wavesync_table WHERE here AND tracked AND name = ?1",
        [&shape.name],
        |row| row.get(0),
    ))?;
    let Some(number) = number else { return Ok(()) };
    let letters = if shape.rivals().next().is_none() { "iukd" } else { "iukdpqrs" };
    let there = conn.query_row(
        "SELECT count(*) FROM main.sqlite_schema WHERE type = 'trigger' AND tbl_name = ?1
           AND name GLOB '__wavesync_?_' || ?2",
        rusqlite::params![shape.name, number],
        |row| row.get::<_, u32>(0).map(|count| count as usize),
    )?;
    if there < letters.len() {
        findings.push(Finding::new(
            "triggers_missing",
            Severity::Error,
            format!(
                "table {}: {} of {} triggers of wavesync are gone, so changes are not recorded",
                shape.name,
                letters.len() - there,
                letters.len()
            ),
            "call wavesync_join(topic, passphrase): the engine creates them again and looks for \
             rows that came or went meanwhile",
        ));
    }
    Ok(())
}

/// What a parked row of some kind waits for.
fn remedy(kind: &str) -> &'static str {
    match kind {
        "unique" => "wavesync_restore(id) takes the values over, or change the row that has them",
        "check" | "not_null" => {
            "make the constraint here as wide as that of the members who wrote them, or correct \
             the rows there"
        }
        "foreign_key" => "add the rows that they refer to; they come back by themselves",
        "trigger" => "mend what the trigger complains of, then call wavesync_retry()",
        "unknown_table" | "unknown_column" => {
            "create what other members have (wavesync_tables names the tables), or join with \
             {\"adopt_schema\":true}"
        }
        "incomplete" => "connect to members that have the rest; it comes by itself",
        "future" => {
            "set the clock of the device that wrote them; they come in when the time is reached"
        }
        _ => "see wavesync_conflicts",
    }
}

fn waiting_rows(conn: &Connection, findings: &mut Vec<Finding>) -> Result<()> {
    let conflicts = report::conflicts(conn)?;
    let mut kinds: Vec<(&str, i64, &str)> = Vec::new();
    for conflict in conflicts.iter().filter(|conflict| conflict.parked) {
        match kinds.iter_mut().find(|(kind, _, _)| *kind == conflict.kind) {
            Some((_, count, _)) => *count += 1,
            None => kinds.push((&conflict.kind, 1, &conflict.reason)),
        }
    }
    for (kind, count, reason) in kinds {
        let code = if kind == "future" { "future_rows" } else { "parked_rows" };
        let wait = if count == 1 { "waits" } else { "wait" };
        findings.push(Finding::new(
            code,
            Severity::Warning,
            format!("{} {wait} ({kind}), for example: {reason}", rows(count)),
            remedy(kind),
        ));
    }
    let moved = conflicts.iter().filter(|conflict| conflict.kind == "key_collision").count();
    if moved > 0 {
        findings.push(Finding::new(
            "keys_collided",
            Severity::Info,
            format!(
                "{} used an INTEGER PRIMARY KEY that another device had used, and got another",
                rows(i64::try_from(moved).unwrap_or(i64::MAX))
            ),
            "insert with wavesync_id() as the key, or use a TEXT key with a uuid",
        ));
    }
    let inserted = number(conn, "SELECT count(*) FROM __wavesync_inbox")?;
    if inserted > 0 {
        findings.push(Finding::new(
            "changes_waiting",
            Severity::Info,
            format!(
                "{} inserted into wavesync_changes {} for the rest of what belongs to it",
                rows(inserted),
                if inserted == 1 { "waits" } else { "wait" }
            ),
            "insert all rows of wavesync_changes that have the same table and pk, or start the \
             engine with wavesync_join()",
        ));
    }
    Ok(())
}

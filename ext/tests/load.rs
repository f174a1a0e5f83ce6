//! The extension in real hosts: the sqlite3 shell and Debian's python3. Other hosts (apsw, old
//! versions of SQLite) need a download or a compiler and are the business of `load.sh`.
//!
//! Run it as `cargo test -p wavesync`: with `--test load` alone cargo does not rebuild the
//! second extension (`plumbing`, an example), and these tests would see an old one.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A directory with the libraries under the names by which users load them.
struct Workplace(tempfile::TempDir);

impl Workplace {
    fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        // This program is target/<profile>/deps/load-…; cargo builds the libraries beside it.
        let program = std::env::current_exe().unwrap();
        let profile = program.parent().and_then(Path::parent).unwrap();
        let library = program.parent().unwrap().join("libwavesync.so");
        for name in ["wavesync.so", "libwavesync.so"] {
            std::fs::copy(&library, place.path().join(name)).unwrap();
        }
        let plumbing = profile.join("examples/libplumbing.so");
        std::fs::copy(plumbing, place.path().join("plumbing.so")).unwrap();
        Self(place)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Output {
        Command::new(program)
            .args(arguments)
            .current_dir(self.0.path())
            .env("RUST_BACKTRACE", "0")
            .output()
            .unwrap_or_else(|error| panic!("{program} is needed for this test: {error}"))
    }

    /// Runs each statement in one shell that goes on after errors; output and error lines.
    fn shell(&self, database: &str, script: &[&str]) -> (Vec<String>, Vec<String>) {
        let mut arguments = vec!["-batch", database];
        arguments.extend_from_slice(script);
        let output = self.run("sqlite3", &arguments);
        assert!(output.status.code().is_some(), "the shell was killed: {output:?}");
        (lines(&output.stdout), lines(&output.stderr))
    }

    /// What one statement prints after both libraries were loaded; it must not fail.
    fn ask(&self, database: &str, sql: &str) -> String {
        let (answer, errors) = self.shell(database, &[".load ./wavesync", ".load ./plumbing", sql]);
        assert!(errors.is_empty(), "{sql}: {errors:?}");
        answer.join("\n")
    }

    /// The error of one statement, after which the shell must still answer.
    fn refusal(&self, sql: &str) -> String {
        let script = [".load ./wavesync", ".load ./plumbing", sql, "SELECT 'the host lives'"];
        let (answer, errors) = self.script(&script);
        assert_eq!(answer.last().map(String::as_str), Some("the host lives"), "{errors:?}");
        assert!(!errors.is_empty(), "{sql} did not fail but said {answer:?}");
        errors.join("\n")
    }

    /// As `shell`, but through a file, since the shell stops at the first failing argument.
    fn script(&self, script: &[&str]) -> (Vec<String>, Vec<String>) {
        let text: String = script
            .iter()
            .map(|line| format!("{line}{}\n", if line.starts_with('.') { "" } else { ";" }))
            .collect();
        std::fs::write(self.path("script.sql"), text).unwrap();
        let output = self.run("sqlite3", &["-batch", ":memory:", ".read script.sql"]);
        assert!(output.status.code().is_some(), "the shell was killed: {output:?}");
        (lines(&output.stdout), lines(&output.stderr))
    }
}

fn lines(bytes: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(bytes).lines().map(str::to_owned).collect()
}

#[test]
fn it_loads_under_either_file_name() {
    let place = Workplace::new();
    for name in [".load ./wavesync", ".load ./libwavesync", ".load ./wavesync.so"] {
        let (answer, errors) = place.shell(":memory:", &[name, "SELECT wavesync_version()"]);
        assert_eq!((answer, errors), (vec![env!("CARGO_PKG_VERSION").to_owned()], vec![]));
    }
}

#[test]
fn loading_writes_nothing() {
    let place = Workplace::new();
    place.shell("t.db", &["CREATE TABLE t(a)"]);
    let before = std::fs::read(place.path("t.db")).unwrap();
    place.shell("t.db", &[".load ./wavesync", ".load ./wavesync", "SELECT wavesync_version()"]);
    assert_eq!(before, std::fs::read(place.path("t.db")).unwrap());
}

#[test]
fn loading_again_is_harmless_even_from_a_running_statement() {
    let place = Workplace::new();
    let again = "SELECT load_extension('./plumbing'), load_extension('./plumbing')";
    let (answer, errors) = place.shell(
        ":memory:",
        &[".load ./plumbing", ".load ./plumbing", again, "SELECT plumbing_counts()"],
    );
    assert_eq!(errors, Vec::<String>::new());
    assert_eq!(answer, ["|", "0 1 0 1 0"], "one handle open, none closed");
}

#[test]
fn a_load_that_fails_half_way_leaves_no_dangling_function() {
    let place = Workplace::new();
    // SQLite unloads a library whose entry point failed; what it had registered stays callable.
    let (answer, errors) = place.script(&[
        ".load ./plumbing sqlite3_broken_init",
        "SELECT broken_answer()",
        ".load ./plumbing",
        "SELECT plumbing_echo(43)",
    ]);
    assert_eq!(answer, ["42", "43"]);
    assert!(errors.join(" ").contains("wavesync: SQLite refused to register xxx"), "{errors:?}");
}

#[test]
fn only_the_entry_point_is_exported() {
    let place = Workplace::new();
    let output = place.run("nm", &["-D", "--defined-only", "wavesync.so"]);
    let symbols: Vec<String> = lines(&output.stdout)
        .iter()
        .filter_map(|line| line.split_whitespace().last().map(str::to_owned))
        .collect();
    assert_eq!(symbols, ["sqlite3_wavesync_init"]);
}

#[test]
fn a_wrong_number_of_arguments_shows_the_usage() {
    let place = Workplace::new();
    let too_many = place.refusal("SELECT wavesync_version(1, 2)");
    assert!(too_many.contains("called with 2 arguments. Usage: wavesync_version()"), "{too_many}");
    let too_few = place.refusal("SELECT plumbing_echo()");
    assert!(too_few.contains("Usage: plumbing_echo(value [, ignored])"), "{too_few}");
}

#[test]
fn a_panic_is_an_error_and_the_host_lives() {
    let place = Workplace::new();
    let function = place.refusal("SELECT plumbing_panic()");
    assert!(function.contains("wavesync: internal error in plumbing_panic: planted."));
    let table = place.refusal("SELECT * FROM plumbing_panics");
    assert!(table.contains("wavesync: internal error in plumbing_panics: planted in row 3."));
}

#[test]
fn refusals_reach_the_user_word_for_word() {
    let place = Workplace::new();
    let function = place.refusal("SELECT plumbing_refuse('wavesync: give a topic')");
    assert!(function.ends_with(": wavesync: give a topic"), "{function}");
    let table = place.refusal("SELECT * FROM plumbing_refuses");
    assert!(table.ends_with(": not joined yet; call wavesync_join"), "{table}");
    let narrow = place.refusal("SELECT b FROM plumbing_narrow");
    assert!(narrow.contains("a row of 1 values for 2 columns"), "{narrow}");
}

#[test]
fn values_pass_unchanged() {
    let place = Workplace::new();
    let values = [
        "NULL",
        "0",
        "-9223372036854775808",
        "9223372036854775807",
        "1.0",
        "-0.5",
        "9e999",
        "''",
        "'ä€𝄞'",
        "'a' || char(0) || 'b'",
        "x''",
        "x'00ff00'",
        "zeroblob(3)",
    ];
    for value in values {
        let sql = format!(
            "SELECT plumbing_echo({value}) IS {value}, \
             typeof(plumbing_echo({value})) = typeof({value}), \
             hex(plumbing_echo({value})) = hex({value})"
        );
        assert_eq!(place.ask(":memory:", &sql), "1|1|1", "{value}");
    }
    let bad = place.refusal("SELECT plumbing_echo(CAST(x'61ff' AS TEXT))");
    assert!(bad.contains("argument 1 of plumbing_echo is text that is not valid UTF-8"), "{bad}");
}

#[test]
fn a_database_file_cannot_call_us() {
    let place = Workplace::new();
    for schema in [
        "CREATE VIEW hostile AS SELECT plumbing_echo(1); SELECT * FROM hostile",
        "CREATE VIEW hostile AS SELECT * FROM plumbing_words; SELECT * FROM hostile",
        "CREATE TABLE t(a); CREATE TRIGGER hostile AFTER INSERT ON t BEGIN \
         SELECT plumbing_echo(1); END; INSERT INTO t VALUES (1)",
        "CREATE TABLE t(a); CREATE TRIGGER hostile AFTER INSERT ON t BEGIN \
         INSERT INTO plumbing_inbox VALUES (1); END; INSERT INTO t VALUES (1)",
    ] {
        let error = place.refusal(schema);
        assert!(error.contains("unsafe use of"), "{error}");
    }
}

#[test]
fn tables_have_any_column_name_and_rowids_that_follow_from_the_row() {
    let place = Workplace::new();
    let sql = "SELECT \"table\", \"select\" IS NULL, \"odd \"\"name\"\"\" FROM plumbing_words";
    assert_eq!(place.ask(":memory:", sql), "10|1|x\n11|1|x\n12|1|x");
    let sql = "SELECT count(DISTINCT rowid), count(*) FROM plumbing_words";
    assert_eq!(place.ask(":memory:", sql), "3|3");
    let sql = "SELECT \"table\" FROM plumbing_words WHERE rowid = (SELECT rowid FROM plumbing_words \
               WHERE \"table\" = 11)";
    assert_eq!(place.ask(":memory:", sql), "11");
    let error = place.refusal("DELETE FROM plumbing_words");
    assert!(error.contains("may not be modified"), "{error}");
}

#[test]
fn a_query_pages_by_the_seek_column() {
    let place = Workplace::new();
    // The second column shows where the scan was told to begin.
    for (query, rows) in [
        ("n > 999998", "999999|999998\n1000000|999998"),
        ("n >= 999999", "999999|999998\n1000000|999998"),
        ("n = 7", "7|6"),
        ("n BETWEEN 5 AND 6", "5|4\n6|4"),
        ("n > 3 AND n < 6", "4|3\n5|3"),
        ("n > 4.5 AND n <= 6.5", "5|4\n6|4"),
        ("n >= '999999'", "999999|\n1000000|"),
        ("n = 2.5", ""),
        ("n > NULL", ""),
        ("n > 9223372036854775807", ""),
        ("n > 10 ORDER BY n LIMIT 2", "11|10\n12|10"),
        ("n < 3 ORDER BY n DESC", "2|\n1|"),
        ("n IN (9, 2, 5) ORDER BY n", "2|1\n5|4\n9|8"),
        ("n > (SELECT 999999)", "1000000|999999"),
    ] {
        let sql = format!("SELECT * FROM plumbing_numbers WHERE {query}");
        assert_eq!(place.ask(":memory:", &sql), rows, "{query}");
    }
    let plan = "EXPLAIN QUERY PLAN SELECT * FROM plumbing_numbers WHERE n > 1 ORDER BY n";
    assert!(!place.ask(":memory:", plan).contains("TEMP B-TREE"), "order is given, not sorted");
    let joined =
        "SELECT count(*) FROM plumbing_words w JOIN plumbing_numbers n ON n.n = w.\"table\"";
    assert_eq!(place.ask(":memory:", joined), "3");
    let scans = "SELECT n FROM plumbing_numbers LIMIT 1; SELECT plumbing_counts()";
    assert!(place.ask(":memory:", scans).ends_with(" 0"), "no scan stays behind");
}

#[test]
fn an_insert_takes_part_in_the_transaction_of_the_host() {
    let place = Workplace::new();
    let sql = "CREATE TABLE lines(line); INSERT INTO plumbing_inbox VALUES ('a'), (x'00'); \
               BEGIN; INSERT INTO plumbing_inbox VALUES ('gone'); ROLLBACK; \
               SELECT count(*), group_concat(hex(line)) FROM lines";
    assert_eq!(place.ask(":memory:", sql), "2|61,00");
    for (sql, verb) in [
        ("DELETE FROM plumbing_inbox", "not DELETE"),
        ("UPDATE plumbing_inbox SET line = 1", "not UPDATE"),
        ("INSERT INTO plumbing_inbox VALUES (1)", "no such table: lines"),
    ] {
        let error = place.refusal(sql);
        assert!(error.contains(verb), "{error}");
    }
}

#[test]
fn the_context_tells_the_truth_about_the_host() {
    let place = Workplace::new();
    let facts = "SELECT plumbing_facts()";
    place.shell("t.db", &["CREATE TABLE t(a)"]);
    let file = format!("file {}", place.path("t.db").canonicalize().unwrap().display());
    assert_eq!(place.ask("t.db", facts), format!("{file} 0 0 0"));
    assert_eq!(place.ask("file:t.db?mode=ro", facts), format!("{file} 1 0 0"));
    let inside = "PRAGMA foreign_keys = ON; BEGIN; SELECT plumbing_facts()";
    assert_eq!(place.ask("t.db", inside), format!("{file} 0 1 1"));
    assert_eq!(place.ask(":memory:", facts), "memory - 0 0 0");
    assert_eq!(place.ask("file::memory:?cache=shared", facts), "memory - 0 0 0");
    assert_eq!(place.ask("", facts), "temporary - 0 0 0");
}

#[test]
fn a_second_connection_opens_through_the_host_and_can_switch_triggers_off() {
    let place = Workplace::new();
    let answer = place.ask(":memory:", "SELECT plumbing_second('second.db')");
    assert_eq!(answer, "rows 1,2 seen 1 enabled false false");
}

#[test]
fn python_opens_and_closes_a_thousand_handles() {
    let place = Workplace::new();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/host.py");
    let directory = place.0.path().to_str().unwrap();
    let output = place.run("/usr/bin/python3", &[script, "sqlite3", directory]);
    assert!(output.status.success(), "{output:?}");
}

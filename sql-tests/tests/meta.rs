//! The harness itself: what must fail is reported as failed, what holds passes. Plain shells only.
#![allow(clippy::unwrap_used)]

use wavesync_sql_tests::parse::parse;
use wavesync_sql_tests::report::{Case, Totals, run_all};
use wavesync_sql_tests::settings::Settings;

fn report(text: &str) -> (Totals, String) {
    run(Case::scenario("meta", &format!("title: meta\nlimit 20s\nreplica a\n{text}")))
}

fn run(case: Case) -> (Totals, String) {
    let settings = Settings::from_environment().unwrap();
    let mut output = Vec::new();
    let totals = run_all(&settings, vec![case], &mut output).unwrap();
    (totals, String::from_utf8(output).unwrap())
}

#[track_caller]
fn passes(text: &str) {
    let (totals, output) = report(text);
    assert_eq!((totals.passed, totals.failed), (1, 0), "{output}");
    assert!(output.ends_with("1 passed, 0 failed\n"), "{output}");
}

#[track_caller]
fn fails(text: &str, reason: &str) {
    let (totals, output) = report(text);
    assert_eq!((totals.passed, totals.failed), (0, 1), "{output}");
    assert!(output.contains("FAILED"), "{output}");
    assert!(output.contains(reason), "{output}");
    assert!(output.ends_with("0 passed, 1 failed\n"), "{output}");
}

#[test]
fn statements_variables_and_errors() {
    passes(
        "shell s on a plain\n\
         s> CREATE TABLE t(id INTEGER PRIMARY KEY, x);\n\
         repeat 3 s> INSERT INTO t VALUES(${i}, NULL);\n\
         s> INSERT INTO t VALUES(1, 2);\n  error: UNIQUE constraint failed\n\
         s> SELECT * FROM t;\n  1|NULL\n  …\n\
         let n = s> SELECT count(*) FROM t;\n\
         s> SELECT ${n} + 1;\n  4\n\
         s> SELECT 1\n  ...> + 1;\n  2\n\
         start s> SELECT 'later';\nfinish s\n  later\n\
         close s within 3s\nintegrity a\n",
    );
}

#[test]
fn a_mismatch_is_a_failure() {
    fails("shell s on a plain\ns> SELECT 1;\n  2\n", "expected:\n    2\n  printed:\n    1");
    fails("shell s on a plain\ns> SELECT 1;\n", "expected: nothing");
    fails("shell s on a plain\ns> SELECT bad;\n  NULL\n", "error: no such column: bad");
    fails("shell s on a plain\ns> SELECT 1;\n  error: 1\n", "expected");
}

#[test]
fn a_condition_that_never_holds_is_a_failure() {
    fails("shell s on a plain\nuntil 300ms s> SELECT 1;\n  2\n", "printed:\n    1");
}

#[test]
fn a_condition_is_awaited() {
    passes(
        "shell s on a plain\ns> CREATE TABLE t(x);\n\
         until 5s s> INSERT INTO t VALUES(1) RETURNING (SELECT count(*) FROM t) >= 3;\n  1\n",
    );
}

#[test]
fn a_statement_that_does_not_end_is_a_failure() {
    let endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) \
                   SELECT count(*) FROM n;";
    fails(&format!("shell s on a plain\nwithin 1s s> {endless}\n  1\n"), "did not answer in time");
    let text = format!("shell s on a plain\nstart s> {endless}\nclose s within 500ms\n");
    fails(&text, "had not ended");
}

#[test]
fn a_dead_shell_is_a_failure() {
    fails("shell s on a plain\ns> .exit 3\ns> SELECT 1;\n  1\n", "ended by itself");
    fails("shell s on a plain\nkill s\ns> SELECT 1;\n  1\n", "no open shell s");
}

#[test]
fn files_are_compared() {
    let two = "replica b\nshell s on a plain\nshell r on b plain\n\
               s> CREATE TABLE t(id INTEGER PRIMARY KEY, x); INSERT INTO t VALUES(1, 1.0);\n\
               r> CREATE TABLE t(id INTEGER PRIMARY KEY, x);\n";
    passes(&format!("{two}r> INSERT INTO t VALUES(1, 1.0);\nequal a b\n"));
    fails(&format!("{two}r> INSERT INTO t VALUES(1, 1);\nequal a b within 1s\n"), "only in b");
    fails(&format!("{two}equal a b within 1s\n"), "1 rows in a, 0 in b");
}

#[test]
fn the_bytes_of_a_file_are_compared() {
    let start = "shell s on a plain\ns> CREATE TABLE t(x);\nremember a\n";
    passes(&format!("{start}s> SELECT count(*) FROM t;\n  0\nunchanged a\n"));
    fails(&format!("{start}s> INSERT INTO t VALUES(1);\nunchanged a\n"), "changed");
}

#[test]
fn a_broken_foreign_key_is_found_at_the_end() {
    fails(
        "shell s on a plain\n\
         s> CREATE TABLE p(id INTEGER PRIMARY KEY); CREATE TABLE c(p REFERENCES p);\n\
         s> INSERT INTO c VALUES(7);\n",
        "foreign_key_check",
    );
}

#[test]
fn a_file_that_cannot_be_parsed_is_a_failure() {
    fails("nonsense\n", "not a line of the scenario format");
}

#[test]
fn every_scenario_file_can_be_parsed() {
    let directory = Settings::from_environment().unwrap().root.join("sql-tests/scenarios");
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let parsed = parse(&std::fs::read_to_string(&path).unwrap());
        assert!(parsed.is_ok_and(|scenario| !scenario.steps.is_empty()), "{}", path.display());
    }
}

#[test]
fn the_sample_database_is_as_described() {
    passes(
        "replica s sample\nshell s on s plain\n\
         s> SELECT count(*) FROM sqlite_master WHERE type = 'table';\n  10\n\
         s> SELECT count(*) FROM harvest;\n  1815\nintegrity s\n",
    );
}

#[test]
fn documents_are_run() {
    let text = "```sql terminal=1\n$ sqlite3 a.db\nsqlite> CREATE TABLE t(x);\n\
                sqlite> INSERT INTO t VALUES (1);\n```\n\
                ```sql terminal=2 eventually\n$ sqlite3 a.db\nsqlite> SELECT x FROM t;\n1\n```\n\
                ```sql terminal=1\nsqlite> SELECT nope;\nError: …nope\n```\n\
                ```sh readme\ntest -f a.db\nmake demo DB=a.db\n```\n";
    let (totals, output) = run(Case::document("text", text));
    assert_eq!((totals.passed, totals.failed), (1, 0), "{output}");
}

#[test]
fn a_document_that_is_wrong_is_a_failure() {
    for (text, reason) in [
        ("```sql\n$ sqlite3 a.db\nsqlite> SELECT 1;\n2\n```\n", "the document says:"),
        ("```sh readme\nfalse\n```\n", "ended with"),
        ("```sh readme\nmake a-target-that-is-not\n```\n", "does not run `make a-target"),
        ("```sh\nfalse\n```\n", "no test runs this sh block"),
    ] {
        let (totals, output) = run(Case::document("text", text));
        assert_eq!((totals.passed, totals.failed), (0, 1), "{output}");
        assert!(output.contains(reason), "{output}");
    }
}

#[test]
fn a_case_that_is_left_out_is_skipped_with_the_reason() {
    let mut settings = Settings::from_environment().unwrap();
    settings.left_out.insert("meta".into(), "it cannot be played".into());
    let case =
        Case::scenario("meta", "title: meta\nreplica a\nshell s on a plain\ns> SELECT nonsense;\n");
    let mut output = Vec::new();
    let totals = run_all(&settings, vec![case], &mut output).unwrap();
    assert_eq!(totals, Totals { skipped: 1, ..Totals::default() });
    let output = String::from_utf8(output).unwrap();
    assert!(output.contains("SKIPPED meta (it cannot be played)"), "{output}");
}

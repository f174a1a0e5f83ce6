//! The scenario format, by example: what each line means, and what is refused.
#![allow(clippy::unwrap_used)]

use super::*;

fn actions(text: &str) -> Vec<Action> {
    let scenario = parse(&format!("title: x\n{text}")).unwrap();
    scenario.steps.into_iter().map(|step| step.action).collect()
}

fn refused(text: &str) -> String {
    parse(&format!("title: x\n{text}")).unwrap_err()
}

fn sql(text: &str) -> Sql {
    match actions(text).remove(0) {
        Action::Sql(sql) => sql,
        other => panic!("not SQL: {other:?}"),
    }
}

#[test]
fn the_head_of_a_file() {
    let scenario = parse("# why\ntitle: two shells\nlimit 90s\nneeds chinook\n").unwrap();
    assert_eq!(scenario.title, "two shells");
    assert_eq!(scenario.limit, Duration::from_secs(90));
    assert_eq!(scenario.needs, [Need::Chinook]);
    assert!(parse("replica a\n").is_err(), "a title is needed");
    assert!(refused("needs luck").starts_with("line 2"));
}

#[test]
fn a_statement_with_its_output() {
    let parsed = sql("a1> SELECT 1, '>' ;\n  1|>\n  \n   two\n\nport P");
    assert_eq!(parsed.shell, "a1");
    assert_eq!(parsed.text, "SELECT 1, '>' ;");
    assert_eq!(parsed.expected, ["1|>", "", " two"]);
    assert_eq!(parsed.manner, Manner::Now);
}

#[test]
fn a_statement_over_several_lines() {
    let parsed = sql("a> CREATE TABLE t(\n ...> id INTEGER PRIMARY KEY\n ...> );\n  error: x");
    assert_eq!(parsed.text, "CREATE TABLE t(\nid INTEGER PRIMARY KEY\n);");
    assert_eq!(parsed.expected, ["error: x"]);
}

#[test]
fn words_before_the_shell() {
    assert_eq!(
        sql("until 500ms a> SELECT 1;\n  1").manner,
        Manner::Until(Duration::from_millis(500))
    );
    assert_eq!(sql("within 2s a> SELECT 1;").manner, Manner::Within(Duration::from_secs(2)));
    let burst = sql("start repeat 200 a> INSERT INTO t VALUES(${i});");
    assert_eq!((burst.manner, burst.repeat), (Manner::Start, 200));
    assert_eq!(sql("let x = a> SELECT 1;").keep.as_deref(), Some("x"));
}

#[test]
fn directives() {
    let parsed = actions(
        "replica a sample\nreplica b copy of a\nport P\nshell a1 on a plain readonly\n\
         shell m on :memory:\nclose a1 within 1s\nequal a b within 9s\nkill m",
    );
    let plain = Mode { plain: true, readonly: true, ..Mode::default() };
    let expected = [
        Action::Replica { name: "a".into(), source: Source::Sample },
        Action::Replica { name: "b".into(), source: Source::CopyOf("a".into()) },
        Action::Port("P".into()),
        Action::Shell { name: "a1".into(), place: Place::File("a".into()), mode: plain },
        Action::Shell { name: "m".into(), place: Place::Memory, mode: Mode::default() },
        Action::Close { shell: "a1".into(), within: Duration::from_secs(1) },
        Action::Equal { replicas: vec!["a".into(), "b".into()], within: Duration::from_secs(9) },
        Action::Kill("m".into()),
    ];
    assert_eq!(parsed, expected);
}

#[test]
fn what_could_pass_by_accident_is_refused() {
    assert!(refused("a> SELECT 1").contains("ends with `;`"));
    assert!(refused("until 1s a> SELECT 1;").contains("needs the output"));
    assert!(refused("port P\n  5").contains("prints nothing"));
    assert!(refused("  5").contains("without a statement"));
    assert!(refused("unknown line").contains("not a line"));
    assert!(refused("soon a> SELECT 1;").contains("unknown word `soon`"));
    assert!(refused("equal a").contains("not a line"));
    assert!(refused("shell a on b loud").contains("plain, readonly and bare"));
    assert!(refused("until 5 a> SELECT 1;\n  1").contains("not a time"));
    assert!(refused("let x = a> SELECT 1;\n  1").contains("expects none"));
}

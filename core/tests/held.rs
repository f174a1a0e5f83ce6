//! Rule P17 without a machine: rows from clocks that are ahead.
#![allow(clippy::unwrap_used)]

mod site;

use site::{NOW, Site, TABLES, batch, row};
use wavesync_core::ids::{Boot, Cursor, Dot, Millis, Seq, SiteId, Stamp};
use wavesync_core::limits::{Bounds, FUTURE_LIMIT_MS};
use wavesync_core::merge::{Ended, moved_key};
use wavesync_core::store::apply::Reach;
use wavesync_core::store::report;
use wavesync_core::store::scan::Place;
use wavesync_core::store::vector::Vector;
use wavesync_core::value::Value;
use wavesync_core::wire::rows::{Batch, Row, TableRows};

const AHEAD: SiteId = SiteId([7; 16]);

fn dot(millis: u64) -> Dot {
    Dot { stamp: Stamp::at((NOW.0 + millis) as i64), site: AHEAD }
}

/// The row of [`row`] with all its cells, born at a time.
fn born(key: &str, millis: u64) -> Row {
    let birth = dot(millis);
    let cells = row(key).cells.into_iter().map(|(at, _, value)| (at, birth, value));
    Row { birth, cells: cells.collect(), ..row(key) }
}

fn patch(key: &str, birth: Dot, cells: &[(usize, u64, i64)]) -> Row {
    let cells = cells.iter().map(|(at, millis, v)| (*at, dot(*millis), Value::Integer(*v)));
    Row { birth, whole: false, cells: cells.collect(), ..row(key) }
}

fn apply(site: &mut Site, rows: Vec<Row>, upto: u64) {
    apply_batch(site, &batch(rows), upto);
}

fn apply_batch(site: &mut Site, rows: &Batch, upto: u64) {
    let cursor = Cursor { boot: Boot(1), seq: Seq(1), high: Seq(1) };
    let mut vector = Vector::default();
    vector.0.insert(AHEAD, (dot(upto).stamp, Boot(1)));
    let reach = Reach { cursor, last: Some(&vector), ..Reach::default() };
    site.store.write_applying(NOW, |tx| tx.apply_piece(AHEAD, rows, &reach)).unwrap();
}

fn shown(site: &Site, key: &str) -> Option<(Value, Value)> {
    let image = site.image();
    let row = image.tables["txt"].shown.get(&Value::text(key))?;
    Some((row["a"].clone(), row["b"].clone()))
}

fn held(site: &Site) -> usize {
    site.image().tables["txt"].held.len()
}

#[test]
fn what_is_exactly_at_the_limit_is_applied_and_what_is_above_is_held() {
    let mut site = Site::new(1, TABLES);
    let above = FUTURE_LIMIT_MS + 1;
    apply(&mut site, vec![born("at", FUTURE_LIMIT_MS), born("above", above)], above);
    assert!(shown(&site, "at").is_some() && shown(&site, "above").is_none());
    let hlc = site.image().hlc;
    assert_eq!(hlc, dot(FUTURE_LIMIT_MS).stamp.0, "the clock follows what was applied");
    let own = site.store.own_state(NOW).unwrap();
    assert_eq!(own.vector.get(AHEAD), dot(above).stamp, "the vector covers what is held");
    assert_eq!(own.lowered.get(AHEAD).0, dot(above).stamp.0 - 1, "as applied it does not");
    assert_eq!(own.release_at, Some(Millis(NOW.0 + 1)));
    site.store.release(NOW).unwrap();
    assert_eq!(held(&site), 1, "not yet");
    site.restart();
    site.store.release(Millis(NOW.0 + 1)).unwrap();
    assert!(shown(&site, "above").is_some() && held(&site) == 0);
    let own = site.store.own_state(Millis(NOW.0 + 1)).unwrap();
    assert!(own.lowered.0.is_empty() && own.release_at.is_none());
}

#[test]
fn of_a_row_that_is_here_only_the_cells_that_are_ahead_wait() {
    let mut site = Site::new(1, TABLES);
    apply(&mut site, vec![born("k", 0)], 0);
    let year = 31_536_000_000;
    let cells = [(0, 1, 10), (1, year, 20)];
    apply(&mut site, vec![patch("k", dot(0), &cells)], year);
    assert_eq!(shown(&site, "k"), Some((Value::Integer(10), Value::Null)));
    site.run("UPDATE txt SET b = 30");
    site.store.release(Millis(NOW.0 + year)).unwrap();
    assert_eq!(shown(&site, "k"), Some((Value::Integer(10), Value::Integer(20))), "by time");
    site.run("UPDATE txt SET b = 31");
    let push = site.fold(NOW).pop().unwrap();
    assert!(push.upto > dot(year).stamp, "a later local write wins, whatever the clock says");
}

#[test]
fn a_patch_waits_for_the_row_that_it_patches() {
    let mut site = Site::new(1, TABLES);
    let (hour, two) = (3_600_000, 7_200_000);
    // The row has a cell that is further ahead than the patch of another cell.
    let mut whole = born("k", hour);
    whole.cells[0].1 = dot(two);
    apply(&mut site, vec![whole], two);
    apply(&mut site, vec![patch("k", dot(hour), &[(1, hour + 1, 5)])], two);
    assert_eq!(held(&site), 2);
    let late = |millis: u64| Millis(NOW.0 + millis - FUTURE_LIMIT_MS);
    site.store.release(late(two - 1)).unwrap();
    assert!(shown(&site, "k").is_none() && held(&site) == 2, "nothing of it, rather than a part");
    site.store.release(late(two)).unwrap();
    assert_eq!(shown(&site, "k"), Some((Value::Integer(1), Value::Integer(5))));
}

#[test]
fn a_local_insert_stands_when_what_was_held_comes() {
    let mut site = Site::new(1, TABLES);
    let hour = 3_600_000;
    apply(&mut site, vec![born("k", hour)], hour);
    let mut tombstone = born("dead", hour);
    (tombstone.length, tombstone.cells) = (2, Vec::new());
    apply(&mut site, vec![tombstone], hour);
    // Also where a long run of inserts is folded in bulk.
    site.store.set_bounds(Bounds { fold_run_rows: 1, ..Bounds::default() });
    site.run("INSERT INTO txt VALUES('k', 'here', 'here'), ('dead', 'here', 'here')");
    site.fold(NOW);
    let length = |site: &Site, key| site.image().tables["txt"].rows[&Value::text(key)].length;
    assert_eq!((length(&site, "k"), length(&site, "dead")), (3, 3));
    site.store.release(Millis(NOW.0 + hour)).unwrap();
    let here = Some((Value::text("here"), Value::text("here")));
    assert_eq!((shown(&site, "k"), shown(&site, "dead"), held(&site)), (here.clone(), here, 0));
}

#[test]
fn a_held_row_is_kept_once_and_passed_on() {
    let mut site = Site::new(1, TABLES);
    let hour = 3_600_000;
    for _ in 0..3 {
        apply(&mut site, vec![born("k", hour)], hour);
    }
    assert_eq!(held(&site), 1);
    let conflicts = report::conflicts(&site.app).unwrap();
    assert_eq!((conflicts.len(), conflicts[0].kind.as_str()), (1, "future"));
    for rows in [1, 1000] {
        let mut other = Site::new(2, TABLES);
        let sent: Vec<_> = site.pieces(rows);
        sent.iter().for_each(|rows| {
            other.apply(AHEAD, rows).unwrap();
        });
        assert_eq!((held(&other), shown(&other, "k")), (1, None), "{sent:?}");
    }
}

/// A row that had to move waits where it moved to, longer than its delete, which is known by the key that
/// it had first.
#[test]
fn a_row_that_had_to_move_and_is_held_is_over_when_its_delete_comes() {
    let (home, hour) = (1, 3_600_000);
    let late = |millis: u64| Millis(NOW.0 + millis - FUTURE_LIMIT_MS);
    for edited in [hour, 3 * hour] {
        let mut site = Site::new(1, TABLES);
        site.store.set_bounds(Bounds { bulk_rows: 1, ..Bounds::default() });
        let num = |key: i64, birth: Dot, length: i64, ended: Ended| {
            let cells = vec![(0, dot(edited), Value::Integer(1)), (1, birth, Value::Integer(1))];
            let cells = if length % 2 == 1 { cells } else { Vec::new() };
            let key = vec![Value::Integer(key)];
            let rows = vec![Row { key, length, birth, whole: true, cells, ended }];
            let columns = vec!["a".into(), "b".into()];
            TableRows { name: "num".into(), integer_key: true, key_columns: 1, columns, rows }
        };
        let birth = dot(hour);
        let moved = num(moved_key(home, birth), birth, 1, Ended::new());
        let ended = Ended::from([(birth, dot(2 * hour))]);
        let delete = num(home, dot(2 * hour), 2, ended);
        apply_batch(&mut site, &Batch { tables: vec![moved] }, edited);
        apply_batch(&mut site, &Batch { tables: vec![delete] }, 2 * hour);
        assert_eq!(site.image().tables["num"].held.len(), 2);
        site.store.release(late(2 * hour)).unwrap();
        site.store.release(late(4 * hour)).unwrap();
        let image = site.image();
        assert!(image.tables["num"].held.is_empty());
        assert!(image.tables["num"].shown.is_empty(), "edited at {edited}");
    }
}

/// Who has forgotten what stood under a key would not know that a held row has to move from there.
#[test]
fn a_held_row_is_served_under_the_key_that_it_will_have() {
    let mut site = Site::new(1, TABLES);
    let (birth, hour) = (dot(3_600_000), 3_600_000);
    let num = |length: i64, birth: Dot, ended: Ended| {
        let cells = vec![(0, birth, Value::Integer(1)), (1, birth, Value::Integer(1))];
        let cells = if length % 2 == 1 { cells } else { Vec::new() };
        let rows =
            vec![Row { key: vec![Value::Integer(1)], length, birth, whole: true, cells, ended }];
        let columns = vec!["a".into(), "b".into()];
        TableRows { name: "num".into(), integer_key: true, key_columns: 1, columns, rows }
    };
    let gone = num(2, dot(1), Ended::from([(dot(0), dot(1))]));
    apply_batch(&mut site, &Batch { tables: vec![gone] }, 1);
    apply_batch(&mut site, &Batch { tables: vec![num(1, birth, Ended::new())] }, hour);
    assert_eq!(site.image().tables["num"].held.len(), 1);
    let place = Place::requested(Some(Seq(0)), &[]).unwrap();
    let piece = site.store.folded(NOW, |tx| tx.read_piece(place, &Vector::default())).unwrap();
    let keys: Vec<i64> = piece
        .rows
        .to_batch()
        .tables
        .iter()
        .flat_map(|table| &table.rows)
        .map(integer_key)
        .collect();
    assert_eq!(keys, [1, moved_key(1, birth)]);
}

fn integer_key(row: &Row) -> i64 {
    let Value::Integer(key) = row.key[0] else { panic!("an INTEGER key") };
    key
}

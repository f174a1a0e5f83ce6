//! Rows of others through the store by itself: any order, any repetition, exact values, and nothing
//! of a batch that is refused.
#![allow(clippy::unwrap_used)]

mod site;

use rusqlite::{Connection, params};
use site::{NOW, Site, TABLES, batch, content, dump, row};
use wavesync_core::ids::{Boot, Cursor, Seq, SiteId, Stamp};
use wavesync_core::limits;
use wavesync_core::store::Tx;
use wavesync_core::store::apply::{PushVerdict, Reach};
use wavesync_core::value::Value;
use wavesync_core::wire::rows::Batch;

fn busy_site(number: u8) -> Site {
    let mut site = Site::new(number, TABLES);
    for round in 0..6 {
        let n = i64::from(number) * 10 + round;
        site.run(&format!(
            "INSERT OR IGNORE INTO num VALUES({round}, {n}, 'x'), ({n}, 1, NULL);
             INSERT OR IGNORE INTO txt VALUES('k{round}', {n}, 1.5);
             INSERT OR IGNORE INTO pair VALUES({round}, 'y', {n});
             INSERT OR IGNORE INTO keys VALUES(x'0{round}');
             UPDATE txt SET b = {n} WHERE k = 'k{}';
             DELETE FROM num WHERE id = {n} AND {round} % 2; DELETE FROM keys WHERE k = x'01'",
            round / 2
        ));
        site.fold(NOW.plus(n as u64));
    }
    site
}

#[test]
fn i4_exported_pieces_apply_in_any_order_and_more_than_once() {
    let mut sites: Vec<Site> = (1..=3).map(busy_site).collect();
    let mut pieces: Vec<(SiteId, Batch)> = Vec::new();
    for (at, site) in sites.iter_mut().enumerate() {
        let own = site.own_site();
        pieces.extend(site.pieces(at + 1).into_iter().map(|piece| (own, piece)));
    }
    assert!(pieces.len() > 30, "many small pieces");
    for site in &mut sites {
        site.store.set_bounds(limits::Bounds::default());
    }
    for step in [1, 7, 11] {
        let mut target = Site::new(9, TABLES);
        let count = pieces.len();
        for at in (0..count).chain(0..count) {
            let (from, piece) = &pieces[at * step % count];
            target.apply(*from, piece).unwrap();
        }
        // Whatever the stride left out.
        pieces.iter().rev().for_each(|(from, piece)| {
            target.apply(*from, piece).unwrap();
        });
        let again: u64 =
            pieces.iter().map(|(from, piece)| target.apply(*from, piece).unwrap()).sum();
        assert_eq!(again, 0, "nothing changes any more");
        for site in &mut sites {
            for (from, piece) in &pieces {
                site.apply(*from, piece).unwrap();
            }
            assert_eq!(content(&site.image()), content(&target.image()), "stride {step}");
        }
    }
}

#[test]
fn i6_a_refused_batch_leaves_the_database_as_it_was() {
    let mut site = Site::new(1, TABLES);
    site.run("INSERT INTO txt VALUES('mine', 1, 2)");
    site.fold(NOW);
    let bend = |change: &dyn Fn(&mut Batch)| {
        // A good row before the bad one: it must not stay either.
        let mut batch = batch(vec![row("good"), row("bad")]);
        change(&mut batch);
        batch
    };
    let cases: Vec<(&str, Batch)> = vec![
        ("more key columns than its rows have", bend(&|b| b.tables[0].key_columns = 2)),
        (
            "a key that is no integer",
            bend(&|b| {
                b.tables[0].integer_key = true;
                b.tables[0].rows[0].key = vec![Value::Integer(1)];
            }),
        ),
        ("a key that is too short", bend(&|b| b.tables[0].rows[1].key.clear())),
        ("a NULL key", bend(&|b| b.tables[0].rows[1].key = vec![Value::Null])),
        (
            "a stamp that leaves no room",
            bend(&|b| {
                b.tables[0].rows[1].birth.stamp = Stamp(limits::STAMP_MAX + 1);
            }),
        ),
        (
            "a stamp below every base",
            bend(&|b| {
                b.tables[0].rows[1].cells[0].1.stamp = Stamp(i64::MIN);
            }),
        ),
        (
            "an absurd causal length",
            bend(&|b| {
                b.tables[0].rows[1].length = limits::CAUSAL_LENGTH_MAX + 1;
            }),
        ),
        ("a length of nothing", bend(&|b| b.tables[0].rows[1].length = 0)),
        (
            "a column that is not listed",
            bend(&|b| {
                b.tables[0].rows[1].cells.remove(0);
                b.tables[0].rows[1].cells[0].0 = 2;
            }),
        ),
        ("a column twice", bend(&|b| b.tables[0].columns[1] = "A".into())),
        ("our own tables", bend(&|b| b.tables[0].name = "__wavesync_meta".into())),
        ("SQLite's tables", bend(&|b| b.tables[0].name = "sqlite_schema".into())),
        ("a reserved column", bend(&|b| b.tables[0].columns[0] = "__WaveSync_x".into())),
        (
            "a table twice",
            bend(&|b| {
                let mut twin = b.tables[0].clone();
                twin.name = "TXT".into();
                b.tables.push(twin);
            }),
        ),
    ];
    let before = dump(&site.app);
    for (what, bad) in cases {
        let outcome =
            Batch::decode(&bad.encode()).and_then(|batch| site.apply(SiteId([7; 16]), &batch));
        assert!(outcome.is_err(), "{what} was accepted");
        assert_eq!(dump(&site.app), before, "{what}");
    }
    assert_eq!(site.apply(SiteId([7; 16]), &batch(vec![row("good"), row("bad")])).unwrap(), 2);
}

#[test]
fn values_travel_byte_for_byte() {
    let sql = "CREATE TABLE v(k PRIMARY KEY NOT NULL, x);
               CREATE TABLE p(x NOT NULL, y NOT NULL, v, PRIMARY KEY(x, y))";
    let real = |bits: u64| Value::Real(f64::from_bits(bits));
    let values = vec![
        Value::Null,
        Value::Integer(i64::MIN),
        Value::Integer(i64::MAX),
        Value::Integer(-1),
        Value::Real(f64::INFINITY),
        Value::Real(f64::NEG_INFINITY),
        Value::Real(-0.0),
        Value::Real(0.1),
        Value::Real(f64::MAX),
        real(1),
        real(0x000F_FFFF_FFFF_FFFF),
        Value::Text(Vec::new()),
        Value::Text(b"a\0b".to_vec()),
        Value::Text(vec![0xFF, 0xC0, b'x']),
        Value::text("日本 'quoted' \"x\" i1,t2"),
        Value::Blob(Vec::new()),
        Value::Blob(vec![0, 255]),
    ];
    let (mut from, mut to) = (Site::new(1, sql), Site::new(2, sql));
    for (at, value) in values.iter().enumerate() {
        from.app
            .execute("INSERT INTO v VALUES(?1, ?2)", params![at as i64 + 1_000, value])
            .unwrap();
        // SQL writes both zeros alike in a packed key, and they are one key to SQLite.
        let negative_zero = *value == Value::Real(-0.0);
        if *value != Value::Null && !negative_zero {
            let sql = "INSERT INTO p VALUES(?1, ?2, ?1)";
            from.app.execute(sql, params![value, at as i64]).unwrap();
            from.app.execute("INSERT INTO v VALUES(?1, ?1)", params![value]).unwrap();
        }
    }
    from.fold(NOW);
    let own = from.own_site();
    for piece in from.pieces(3) {
        to.apply(own, &piece).unwrap();
    }
    let read = |conn: &Connection, sql: &str| -> Vec<(Value, Value)> {
        let mut statement = conn.prepare(sql).unwrap();
        let pair = |row: &rusqlite::Row<'_>| {
            Ok((Value::from_ref(row.get_ref(0)?), Value::from_ref(row.get_ref(1)?)))
        };
        statement.query_map([], pair).unwrap().map(Result::unwrap).collect()
    };
    for sql in ["SELECT k, x FROM v ORDER BY k", "SELECT x, v FROM p ORDER BY y"] {
        let (sent, received) = (read(&from.app, sql), read(&to.app, sql));
        assert!(sent.len() >= values.len() - 2);
        assert_eq!(sent, received);
    }
    assert_eq!(content(&from.image()), content(&to.image()));
    // A change from one value to any other is a change; to itself it is none.
    for one in &values {
        for two in &values {
            from.app.execute("UPDATE v SET x = ?1 WHERE k = 1000", params![one]).unwrap();
            from.fold(NOW);
            from.app.execute("UPDATE v SET x = ?1 WHERE k = 1000", params![two]).unwrap();
            assert_eq!(from.fold(NOW).len(), usize::from(one != two), "{one:?} {two:?}");
        }
    }
}

#[test]
fn p1_a_table_that_comes_later_shows_what_was_parked_for_it() {
    let mut site = Site::new(1, "CREATE TABLE num(id INTEGER PRIMARY KEY, a)");
    let mut gone = row("gone");
    (gone.length, gone.cells) = (2, Vec::new());
    site.apply(SiteId([7; 16]), &batch(vec![row("theirs"), row("both"), gone])).unwrap();
    assert!(site.image().tables["txt"].rows[&Value::text("theirs")].parked.is_some());
    // Written before any trigger is there.
    site.run(
        "CREATE TABLE txt(k TEXT PRIMARY KEY NOT NULL, a, b, c);
         INSERT INTO txt VALUES('both', 'mine', 'mine', 'mine'), ('own', 1, 1, 1), ('gone', 1, 1, 1)",
    );
    site.fold(NOW);
    while site.store.backfill_block(NOW).unwrap() {}
    site.run("UPDATE txt SET b = 'now' WHERE k = 'theirs'");
    assert_eq!(site.fold(NOW).len(), 1, "it is captured");
    let image = site.image();
    let table = &image.tables["txt"];
    assert!(table.local && table.rows.values().all(|row| row.parked.is_none()));
    let shown: Vec<&Value> = table.shown.keys().collect();
    let [both, own, theirs] = ["both", "own", "theirs"].map(Value::text);
    assert_eq!(shown, [&both, &own, &theirs], "what was deleted elsewhere stays deleted");
    // An old copy overwrites nothing, and adds what nobody else wrote.
    assert_eq!(table.shown[&both]["a"], Value::Integer(1));
    assert_eq!(table.shown[&both]["c"], Value::text("mine"));
    assert!(table.rows[&own].birth.stamp.is_base());
    let kept = "SELECT ours FROM __wavesync_conflict WHERE kind = 'overwritten'";
    let kept: String = site.app.query_row(kept, [], |row| row.get(0)).unwrap();
    assert!(kept.contains('1'), "and is kept for the user: {kept}");
}

/// T and R insert the same INTEGER key, R later; S has T's row and changes a cell of it. Returns
/// the three, S's push, and what R came to.
fn patch_of_a_row_that_lost() -> ([Site; 3], PushVerdict) {
    let sql = "CREATE TABLE one(id INTEGER PRIMARY KEY, v)";
    let [mut t, mut s, mut r] = [1, 2, 3].map(|number| Site::new(number, sql));
    t.run("INSERT INTO one VALUES(1, 'first')");
    t.fold(NOW.plus(1));
    let own = t.own_site();
    for piece in t.pieces(9) {
        s.apply(own, &piece).unwrap();
    }
    r.run("INSERT INTO one VALUES(1, 'second')");
    r.fold(NOW.plus(2));
    s.run("UPDATE one SET v = 'changed'");
    let push = s.fold(NOW.plus(3)).remove(0);
    let range = (push.prev, push.upto);
    let rows = push.rows.as_ref().unwrap();
    let apply = |tx: &mut Tx<'_>| tx.apply_push(push.site, push.boot, range, rows);
    let verdict = r.store.write_applying(NOW.plus(4), apply).unwrap();
    ([t, s, r], verdict)
}

#[test]
fn p10c_a_patch_of_an_incarnation_that_is_not_here_is_a_gap() {
    let ([_, mut s, mut r], verdict) = patch_of_a_row_that_lost();
    assert_eq!(verdict, PushVerdict::Gap);
    let shown = |site: &Site| site.image().tables["one"].shown[&Value::Integer(1)]["v"].clone();
    assert_eq!(shown(&r), Value::text("second"), "a row is complete or not there");
    let own = s.own_site();
    for piece in s.pieces(9) {
        r.apply(own, &piece).unwrap();
    }
    assert_eq!(shown(&r), Value::text("changed"));
}

#[test]
fn p1_an_incomplete_row_is_shown_once_the_whole_of_it_is_here() {
    let ([_, mut s, mut r], _) = patch_of_a_row_that_lost();
    let own = s.own_site();
    let whole = s.pieces(9).remove(0);
    // As from a peer that breaks P10: the only cell of the row comes as a patch first.
    let mut patch = whole.clone();
    patch.tables[0].rows[0].whole = false;
    r.apply(own, &patch).unwrap();
    assert!(!r.image().tables["one"].rows[&Value::Integer(1)].shown());
    r.apply(own, &whole).unwrap();
    let image = r.image();
    let rows = &image.tables["one"];
    assert!(rows.rows[&Value::Integer(1)].shown());
    assert_eq!(rows.shown[&Value::Integer(1)]["v"], Value::text("changed"));
    // The row that stood here is another one than that; it has a key of its own now.
    let others: Vec<_> = rows.shown.iter().filter(|(key, _)| **key != Value::Integer(1)).collect();
    assert_eq!(others.len(), 1);
    assert_eq!(others[0].1["v"], Value::text("second"));
    assert!(matches!(others[0].0, Value::Integer(key) if *key < 0));
}

#[test]
fn a_known_chunk_is_dropped_undecoded_unless_a_row_waits_to_be_whole() {
    let (mut from, mut to) = (busy_site(1), Site::new(2, TABLES));
    let own = from.own_site();
    let vector = from.store.folded(NOW, |tx| tx.vector()).unwrap();
    let mut pieces = from.pieces(1_000);
    let rows = pieces.remove(0).encode();
    assert!(pieces.is_empty(), "all of it in one piece");
    let receive = |site: &mut Site, rows: &[u8]| {
        let cursor = Cursor { boot: Boot(1), seq: Seq(1), high: Seq(1) };
        let reach = Reach { cursor, last: Some(&vector), ..Reach::default() };
        site.store.receive_piece(NOW, own, rows, &reach).map(|applied| applied.changed)
    };
    // The end of the compressed part is missing, which only a decoder can notice.
    let cut = &rows[..rows.len() - 3];
    assert!(receive(&mut to, cut).is_err(), "news are decoded");
    assert!(receive(&mut to, &rows).unwrap() > 20);
    let before = dump(&to.app);
    assert_eq!(receive(&mut to, cut).unwrap(), 0, "known ones are not");
    assert_eq!(dump(&to.app), before);
    let mut patch = batch(vec![row("only a part")]);
    patch.tables[0].rows[0].whole = false;
    to.apply(SiteId([7; 16]), &patch).unwrap();
    assert!(receive(&mut to, cut).is_err(), "what waits may be in a known chunk");
    assert_eq!(receive(&mut to, &rows).unwrap(), 0);
}

#[test]
fn rows_read_with_their_clocks_are_those_read_one_by_one() {
    let sql = format!(
        "{TABLES} CREATE TABLE odd(seq TEXT COLLATE NOCASE PRIMARY KEY, k, cl BLOB, t);
         INSERT INTO odd VALUES('a', 1, NULL, 2), ('B', 'x', x'00', 1.5), (NULL, 0, 0, 0);"
    );
    let mut site = Site::new(1, &sql);
    site.run("INSERT INTO odd VALUES('c', 1, 2, 3); UPDATE odd SET t = 9 WHERE seq = 'b'");
    site.run("INSERT INTO num VALUES(1, 2, 3), (2, 3, 4); DELETE FROM num WHERE id = 2");
    site.fold(NOW);
    site.run("ALTER TABLE txt ADD COLUMN c DEFAULT 5; INSERT INTO txt VALUES('k', 1, 2, 3)");
    site.run("INSERT INTO pair VALUES(1, 'y', 2); INSERT INTO keys VALUES(x'01')");
    site.fold(NOW);
    let rows = |site: &mut Site| {
        let mut tables: Vec<_> =
            site.pieces(1_000).into_iter().flat_map(|piece| piece.tables).collect();
        tables.retain(|table| table.name != "nowhere");
        tables.sort_by(|one, two| one.name.cmp(&two.name));
        tables
    };
    let joined = rows(&mut site);
    assert_eq!(joined.iter().map(|table| table.rows.len()).sum::<usize>(), 3 + 2 + 1 + 1 + 1);
    let mut parked = batch(vec![row("elsewhere")]);
    parked.tables[0].name = "nowhere".into();
    site.apply(SiteId([7; 16]), &parked).unwrap();
    assert_eq!(rows(&mut site), joined);
}

//! The values of one column of a batch, below each other: runs of equal form, then their bytes.
//!
//! Integers travel as differences, and certain texts ([`crate::wire::texts`]) and reals that are whole
//! hundredths in fewer bytes, where what is read back is the same bit for bit.

use crate::Result;
use crate::store::clock::write_varint;
use crate::value::ValueRef;
use crate::wire::bytes::{Reader, broken, write_signed};
use crate::wire::packed::Cell;
use crate::wire::texts::{self, Short};

const NULL: u8 = 0;
const INTEGER: u8 = 1;
const REAL: u8 = 2;
const TEXT: u8 = 3;
const BLOB: u8 = 4;
/// A text that is a uuid in lower case, as its 16 bytes.
const UUID: u8 = 5;
/// A real that is an integer divided by 100, as that integer.
const HUNDREDTHS: u8 = 6;

/// A text `YYYY-MM-DD`, as a number that counts days.
const DATE: u8 = 7;
/// A text `YYYY-MM-DD HH:MM:SS`, as a number that counts seconds.
const TIME: u8 = 8;
/// Texts with one beginning and a number behind it, as that beginning and the numbers.
const NUMBERED: u8 = 9;

/// A beginning is worth being written for this many texts in a row.
const NUMBERED_MIN_RUN: usize = 8;
/// Hundredths above this are not exact or not shorter.
const HUNDREDTHS_MAX: f64 = (1i64 << 40) as f64;

/// Values of one form that follow each other.
struct Run<'a> {
    tag: u8,
    count: usize,
    /// Of numbered texts.
    prefix: &'a [u8],
}

/// The form of a value, the number that stands for it (of texts and blobs their length, of reals
/// their bits) and, of a numbered text, its beginning.
fn form(value: ValueRef<'_>) -> (u8, i64, &[u8]) {
    let (tag, number) = match value {
        ValueRef::Null => (NULL, 0),
        ValueRef::Integer(integer) => (INTEGER, integer),
        ValueRef::Real(real) => match hundredths(real) {
            Some(hundredths) => (HUNDREDTHS, hundredths),
            None => (REAL, real.to_bits() as i64),
        },
        ValueRef::Text(text) => match texts::short(text) {
            None => (TEXT, text.len() as i64),
            Some(Short::Uuid) => (UUID, 0),
            Some(Short::Date(date)) => (DATE, date),
            Some(Short::Time(time)) => (TIME, time),
            Some(Short::Numbered(start, number)) => return (NUMBERED, number, &text[..start]),
        },
        ValueRef::Blob(blob) => (BLOB, blob.len() as i64),
    };
    (tag, number, &[])
}

/// The runs of a column, with numbered texts where enough of them follow each other, and the
/// numbers that stand for its values.
fn runs<'a>(values: impl Iterator<Item = ValueRef<'a>>) -> (Vec<Run<'a>>, Vec<i64>) {
    let mut found: Vec<Run<'a>> = Vec::new();
    let mut numbers = Vec::with_capacity(values.size_hint().0);
    for value in values {
        let (tag, number, prefix) = form(value);
        numbers.push(number);
        match found.last_mut() {
            Some(run) if run.tag == tag && (tag != NUMBERED || run.prefix == prefix) => {
                run.count += 1;
            }
            _ => found.push(Run { tag, count: 1, prefix }),
        }
    }
    let mut runs: Vec<Run<'a>> = Vec::with_capacity(found.len());
    let mut at = 0;
    for mut run in found {
        if run.tag == NUMBERED && run.count < NUMBERED_MIN_RUN {
            for number in &mut numbers[at..at + run.count] {
                *number = (run.prefix.len() + texts::digits_of(*number)) as i64;
            }
            (run.tag, run.prefix) = (TEXT, &[]);
        }
        at += run.count;
        match runs.last_mut() {
            Some(before) if before.tag == run.tag && run.tag == TEXT => before.count += run.count,
            _ => runs.push(run),
        }
    }
    (runs, numbers)
}

fn hundredths(real: f64) -> Option<i64> {
    let scaled = (real * 100.0).round();
    if scaled.abs() > HUNDREDTHS_MAX || scaled.is_nan() {
        return None;
    }
    // Through the integer, which knows no negative zero.
    let scaled = scaled as i64;
    (whole(scaled).to_bits() == real.to_bits()).then_some(scaled)
}

fn whole(hundredths: i64) -> f64 {
    hundredths as f64 / 100.0
}

/// Appends the values of a column.
pub(super) fn write<'a>(body: &mut Vec<u8>, values: impl Iterator<Item = ValueRef<'a>> + Clone) {
    let (runs, numbers) = runs(values.clone());
    let (mut values, mut passed) = (values, 0);
    let (mut rest, mut last) = (&numbers[..], 0i64);
    for Run { tag, count, prefix } in runs {
        let (numbers, later) = rest.split_at(count);
        rest = later;
        write_varint(body, count as u64);
        body.push(tag);
        if tag == NUMBERED {
            write_varint(body, prefix.len() as u64);
            body.extend_from_slice(prefix);
        }
        for number in numbers {
            match tag {
                TEXT | BLOB => write_varint(body, *number as u64),
                REAL => body.extend_from_slice(&number.to_be_bytes()),
                HUNDREDTHS => write_signed(body, *number),
                INTEGER | DATE | TIME | NUMBERED => {
                    write_signed(body, number.wrapping_sub(last));
                    last = *number;
                }
                _ => {}
            }
        }
        // The other forms are written by now, so their values are not looked at again.
        if !matches!(tag, TEXT | BLOB | UUID) {
            passed += count;
            continue;
        }
        if passed > 0 {
            values.nth(std::mem::take(&mut passed) - 1);
        }
        for value in values.by_ref().take(count) {
            match value {
                ValueRef::Text(text) if tag == UUID => texts::pack_uuid(body, text),
                ValueRef::Text(bytes) | ValueRef::Blob(bytes) => body.extend_from_slice(bytes),
                _ => {}
            }
        }
    }
}

/// Reads the values of a column of `count` rows and hands them on in order. The bytes of short forms
/// are written behind `made`; the others lie in the batch, which is `size` bytes long.
pub(super) fn read(
    reader: &mut Reader<'_, '_>,
    count: usize,
    (size, made): (usize, &mut Vec<u8>),
    mut take: impl FnMut(usize, Cell),
) -> Result<()> {
    let mut last = 0i64;
    reader.runs(count, |reader, run, form| {
        let form = u8::try_from(form).map_err(|_| broken("a storage class is unknown"))?;
        if matches!(form, TEXT | BLOB) {
            return read_bytes(reader, run, (form, size), &mut take);
        }
        let prefix = if form == NUMBERED { prefix(reader)? } else { &[] };
        for at in run {
            if matches!(form, INTEGER | DATE | TIME | NUMBERED) {
                last = last.wrapping_add(reader.signed()?);
            }
            let start = made.len();
            let possible = match form {
                NULL => {
                    take(at, Cell::Null);
                    continue;
                }
                INTEGER => {
                    take(at, Cell::Integer(last));
                    continue;
                }
                REAL => {
                    take(at, Cell::Real(reader.real()?));
                    continue;
                }
                HUNDREDTHS => {
                    take(at, Cell::Real(whole(reader.signed()?)));
                    continue;
                }
                UUID => {
                    texts::write_uuid(made, reader.take(16)?);
                    true
                }
                DATE => texts::write_date(made, last),
                TIME => texts::write_time(made, last),
                NUMBERED => texts::write_numbered(made, prefix, last),
                _ => return Err(broken("a storage class is unknown")),
            };
            if !possible {
                return Err(broken("a text is impossible"));
            }
            let length = (made.len() - start) as u32;
            take(at, Cell::Bytes { blob: false, made: true, length, start });
        }
        Ok(())
    })
}

/// The beginning that a run of numbered texts shares.
fn prefix<'a>(reader: &mut Reader<'a, '_>) -> Result<&'a [u8]> {
    let length = reader.count()?;
    if length > texts::PREFIX_MAX_BYTES {
        return Err(broken("the beginning of a text is too long"));
    }
    reader.take(length)
}

fn read_bytes(
    reader: &mut Reader<'_, '_>,
    run: std::ops::Range<usize>,
    (form, size): (u8, usize),
    take: &mut impl FnMut(usize, Cell),
) -> Result<()> {
    // The lengths are read twice, so that nothing has to be kept of them.
    let mut lengths = *reader.bytes;
    for _ in run.clone() {
        reader.count()?;
    }
    for at in run {
        let length = Reader { bytes: &mut lengths }.count()?;
        let start = size - reader.bytes.len();
        reader.take(length)?;
        // A batch is much shorter than 4 GiB.
        let length = length as u32;
        take(at, Cell::Bytes { blob: form == BLOB, made: false, length, start });
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::value::Value;
    use proptest::prelude::*;

    fn there_and_back(values: &[Value]) -> Vec<Value> {
        let mut bytes = Vec::new();
        write(&mut bytes, values.iter().map(Value::as_ref));
        let mut rest = &bytes[..];
        let (mut cells, mut made) = (Vec::new(), Vec::new());
        let mut reader = Reader { bytes: &mut rest };
        read(&mut reader, values.len(), (bytes.len(), &mut made), |at, cell| {
            assert_eq!(at, cells.len());
            cells.push(cell);
        })
        .unwrap();
        assert!(rest.is_empty(), "all of it was read");
        let value = |cell: &Cell| match *cell {
            Cell::Null => Value::Null,
            Cell::Integer(integer) => Value::Integer(integer),
            Cell::Real(real) => Value::Real(real),
            Cell::Bytes { blob, made: short, length, start } => {
                let all = if short { &made } else { &bytes };
                let bytes = all[start..start + length as usize].to_vec();
                if blob { Value::Blob(bytes) } else { Value::Text(bytes) }
            }
        };
        cells.iter().map(value).collect()
    }

    #[test]
    fn short_forms_are_exact() {
        let uuid = "0123abcd-4567-89ef-fedc-ba9876543210";
        let texts = [uuid, &uuid.to_uppercase(), &uuid.replace('-', "_"), &uuid[1..], "", "-"];
        let mut values: Vec<Value> = texts.into_iter().map(Value::text).collect();
        values.push(Value::Blob(uuid.as_bytes().to_vec()));
        let reals = [0.0, -0.0, 0.1, 19.99, -7.0, 1e300, f64::NAN, f64::INFINITY, 1e17, 0.005];
        values.extend(reals.map(Value::Real));
        values.extend([i64::MIN, i64::MAX, 0, i64::MIN].map(Value::Integer));
        assert_eq!(there_and_back(&values), values);
        let mut bytes = Vec::new();
        write(&mut bytes, [ValueRef::Text(uuid.as_bytes())].into_iter());
        assert_eq!(bytes.len(), 2 + 16);
        bytes.clear();
        write(&mut bytes, [ValueRef::Real(19.99)].into_iter());
        assert_eq!(bytes.len(), 2 + 2);
    }

    #[test]
    fn short_texts_are_exact() {
        let texts = [
            "2024-02-29",
            "2024-02-30",
            "2024-02-32",
            "2024-00-01",
            "2024-13-01",
            "0000-01-01",
            "9999-12-31",
            "2024-1-01",
            "2024-02-29 ",
            "2024-02-29 23:59:59",
            "2024-02-29 24:00:00",
            "2024-02-29T23:59:59",
            "2024-02-29 23:59:60",
            "0000-01-01 00:00:00",
            "2024/02/29",
            "item 1",
            "item 0",
            "item 00",
            "item 01",
            "item 10",
            "0",
            "00",
            "7",
            "-7",
            "1.50",
            "x",
            "999999999999999",
            "1000000000000000",
            "99999999999999999999999999999999999999999999999999",
            "a beginning that is just too long for it 5",
            "item ",
            "2024-02-0x",
            "é1",
        ];
        let values: Vec<Value> = texts.into_iter().map(Value::text).collect();
        assert_eq!(there_and_back(&values), values);
        for text in texts {
            // In a row, so that a number behind a beginning is worth it.
            let values = vec![Value::text(text); 20];
            assert_eq!(there_and_back(&values), values, "{text}");
        }
        let ends = [&b"\xff\xfe7"[..], b"a\0b7", b"7\0"].map(|text| Value::Text(text.to_vec()));
        for value in ends {
            assert_eq!(there_and_back(&vec![value.clone(); 9]), vec![value; 9]);
        }
        let mut bytes = Vec::new();
        let items: Vec<Value> =
            (0..100).map(|n| Value::text(&format!("item {}", 900_000 + n))).collect();
        write(&mut bytes, items.iter().map(Value::as_ref));
        assert!(bytes.len() < 120, "{} bytes", bytes.len());
    }

    #[test]
    fn impossible_texts_are_refused() {
        let reads = |bytes: &[u8]| {
            let mut reader = Reader { bytes: &mut &bytes[..] };
            read(&mut reader, 1, (bytes.len(), &mut Vec::new()), |_, _| {}).is_ok()
        };
        let bad = [
            (DATE, i64::MAX),
            (DATE, -1),
            (DATE, 10_000 * 372),
            (TIME, -1),
            (TIME, i64::MIN),
            (NUMBERED, -1),
            (NUMBERED, 10i64.pow(15)),
        ];
        for (tag, number) in bad {
            let mut bytes = vec![1, tag];
            if tag == NUMBERED {
                bytes.push(0);
            }
            write_signed(&mut bytes, number);
            assert!(!reads(&bytes), "{tag}");
        }
        let long = [1, NUMBERED, 33].into_iter().chain([b'a'; 33]).chain([2]).collect::<Vec<u8>>();
        assert!(!reads(&long));
    }

    proptest! {
        #[test]
        fn reals_keep_their_bits(bits in any::<u64>(), cents in any::<i32>()) {
            let values = [Value::Real(f64::from_bits(bits)), Value::Real(f64::from(cents) / 100.0)];
            prop_assert_eq!(there_and_back(&values), values);
        }

        #[test]
        fn texts_are_what_they_were(
            texts in prop::collection::vec("([a-c]?[-_ ]?[0-9]{0,18}|[0-9]{4}-[01][0-9]-[0-3][0-9]( [0-2][0-9]:[0-6][0-9]:[0-6][0-9])?)", 0..40),
        ) {
            let values: Vec<Value> = texts.iter().map(|text| Value::text(text)).collect();
            prop_assert_eq!(there_and_back(&values), values);
        }
    }
}

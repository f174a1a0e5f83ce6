//! The values of one column of a batch, below each other: runs of equal form, then their bytes.
//!
//! Integers travel as differences, and texts that spell a uuid or reals that are whole hundredths
//! in fewer bytes, where what is read back is the same bit for bit.

use crate::Result;
use crate::store::clock::write_varint;
use crate::value::Value;
use crate::wire::bytes::{Reader, broken, write_signed};

const NULL: u8 = 0;
const INTEGER: u8 = 1;
const REAL: u8 = 2;
const TEXT: u8 = 3;
const BLOB: u8 = 4;
/// A text that is a uuid in lower case, as its 16 bytes.
const UUID: u8 = 5;
/// A real that is an integer divided by 100, as that integer.
const HUNDREDTHS: u8 = 6;

const UUID_TEXT_BYTES: usize = 36;
const UUID_HYPHENS: [usize; 4] = [8, 13, 18, 23];
/// Hundredths above this are not exact or not shorter.
const HUNDREDTHS_MAX: f64 = (1i64 << 40) as f64;

fn form(value: &Value) -> u8 {
    match value {
        Value::Null => NULL,
        Value::Integer(_) => INTEGER,
        Value::Real(real) => match hundredths(*real) {
            Some(_) => HUNDREDTHS,
            None => REAL,
        },
        Value::Text(text) if is_uuid(text) => UUID,
        Value::Text(_) => TEXT,
        Value::Blob(_) => BLOB,
    }
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

fn is_uuid(text: &[u8]) -> bool {
    text.len() == UUID_TEXT_BYTES
        && text.iter().enumerate().all(|(at, byte)| {
            if UUID_HYPHENS.contains(&at) {
                *byte == b'-'
            } else {
                matches!(byte, b'0'..=b'9' | b'a'..=b'f')
            }
        })
}

fn pack_uuid(body: &mut Vec<u8>, text: &[u8]) {
    let digit = |byte: u8| if byte <= b'9' { byte - b'0' } else { byte - b'a' + 10 };
    let mut digits = text.iter().filter(|byte| **byte != b'-').map(|byte| digit(*byte));
    while let (Some(high), Some(low)) = (digits.next(), digits.next()) {
        body.push(high << 4 | low);
    }
}

fn unpack_uuid(bytes: &[u8]) -> Vec<u8> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = Vec::with_capacity(UUID_TEXT_BYTES);
    for byte in bytes {
        if UUID_HYPHENS.contains(&text.len()) {
            text.push(b'-');
        }
        text.push(DIGITS[usize::from(byte >> 4)]);
        text.push(DIGITS[usize::from(byte & 15)]);
    }
    text
}

/// Appends the values of a column.
pub(super) fn write<'a>(body: &mut Vec<u8>, values: impl Iterator<Item = &'a Value> + Clone) {
    let mut forms = values.clone().map(form).peekable();
    let mut values = values;
    let mut last = 0i64;
    while let Some(form) = forms.next() {
        let mut count = 1;
        while forms.next_if_eq(&form).is_some() {
            count += 1;
        }
        write_varint(body, count as u64);
        body.push(form);
        if matches!(form, TEXT | BLOB) {
            for value in values.clone().take(count) {
                write_varint(body, length(value) as u64);
            }
        }
        for value in values.by_ref().take(count) {
            match value {
                Value::Null => {}
                Value::Integer(integer) => {
                    write_signed(body, integer.wrapping_sub(last));
                    last = *integer;
                }
                Value::Real(real) => match hundredths(*real) {
                    Some(hundredths) => write_signed(body, hundredths),
                    None => body.extend_from_slice(&real.to_bits().to_be_bytes()),
                },
                Value::Text(text) if form == UUID => pack_uuid(body, text),
                Value::Text(bytes) | Value::Blob(bytes) => body.extend_from_slice(bytes),
            }
        }
    }
}

fn length(value: &Value) -> usize {
    match value {
        Value::Text(bytes) | Value::Blob(bytes) => bytes.len(),
        _ => 0,
    }
}

/// Reads the values of a column of `count` rows and hands them on in order.
pub(super) fn read(
    reader: &mut Reader<'_, '_>,
    count: usize,
    mut take: impl FnMut(usize, Value),
) -> Result<()> {
    let mut last = 0i64;
    reader.runs(count, |reader, run, form| {
        let form = u8::try_from(form).map_err(|_| broken("a storage class is unknown"))?;
        if matches!(form, TEXT | BLOB) {
            return read_bytes(reader, run, form, &mut take);
        }
        for at in run {
            let value = match form {
                NULL => Value::Null,
                INTEGER => {
                    last = last.wrapping_add(reader.signed()?);
                    Value::Integer(last)
                }
                REAL => reader.real()?,
                UUID => Value::Text(unpack_uuid(reader.take(16)?)),
                HUNDREDTHS => Value::Real(whole(reader.signed()?)),
                _ => return Err(broken("a storage class is unknown")),
            };
            take(at, value);
        }
        Ok(())
    })
}

fn read_bytes(
    reader: &mut Reader<'_, '_>,
    run: std::ops::Range<usize>,
    form: u8,
    take: &mut impl FnMut(usize, Value),
) -> Result<()> {
    // The lengths are read twice, so that nothing has to be kept of them.
    let mut lengths = *reader.bytes;
    for _ in run.clone() {
        reader.count()?;
    }
    for at in run {
        let length = Reader { bytes: &mut lengths }.count()?;
        let bytes = reader.take(length)?.to_vec();
        take(at, if form == TEXT { Value::Text(bytes) } else { Value::Blob(bytes) });
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn there_and_back(values: &[Value]) -> Vec<Value> {
        let mut bytes = Vec::new();
        write(&mut bytes, values.iter());
        let mut rest = &bytes[..];
        let mut read_back = Vec::new();
        read(&mut Reader { bytes: &mut rest }, values.len(), |at, value| {
            assert_eq!(at, read_back.len());
            read_back.push(value);
        })
        .unwrap();
        assert!(rest.is_empty(), "all of it was read");
        read_back
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
        write(&mut bytes, [Value::text(uuid)].iter());
        assert_eq!(bytes.len(), 2 + 16);
        bytes.clear();
        write(&mut bytes, [Value::Real(19.99)].iter());
        assert_eq!(bytes.len(), 2 + 2);
    }

    proptest! {
        #[test]
        fn reals_keep_their_bits(bits in any::<u64>(), cents in any::<i32>()) {
            let values = [Value::Real(f64::from_bits(bits)), Value::Real(f64::from(cents) / 100.0)];
            prop_assert_eq!(there_and_back(&values), values);
        }
    }
}

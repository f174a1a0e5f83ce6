//! Numbers, names and single values as bytes, and the reader that trusts none of them.

use crate::limits;
use crate::store::clock::{read_varint, write_varint};
use crate::value::Value;
use crate::{Error, Result};

/// What a peer sent as rows cannot be read.
pub(super) fn broken(what: &str) -> Error {
    Error::protocol(format!("a row batch is refused: {what}"))
}

pub(super) fn write_text(body: &mut Vec<u8>, text: &str) {
    write_varint(body, text.len() as u64);
    body.extend_from_slice(text.as_bytes());
}

pub(super) fn write_signed(body: &mut Vec<u8>, value: i64) {
    write_varint(body, ((value << 1) ^ (value >> 63)) as u64);
}

/// Appends a value: a tag for its storage class, then its bytes.
pub fn write_value(body: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Null => body.push(0),
        Value::Integer(integer) => {
            body.push(1);
            write_signed(body, *integer);
        }
        Value::Real(real) => {
            body.push(2);
            body.extend_from_slice(&real.to_bits().to_be_bytes());
        }
        Value::Text(bytes) | Value::Blob(bytes) => {
            body.push(if matches!(value, Value::Text(_)) { 3 } else { 4 });
            write_varint(body, bytes.len() as u64);
            body.extend_from_slice(bytes);
        }
    }
}

/// Appends the runs of equal numbers in a list.
pub(super) fn write_runs(body: &mut Vec<u8>, numbers: impl Iterator<Item = u64>) {
    let mut numbers = numbers.peekable();
    while let Some(number) = numbers.next() {
        let mut count = 1u64;
        while numbers.next_if_eq(&number).is_some() {
            count += 1;
        }
        write_varint(body, count);
        write_varint(body, number);
    }
}

/// Reads the parts of a batch; also used for values that are stored packed.
pub struct Reader<'a, 'b> {
    /// What is left to read.
    pub bytes: &'b mut &'a [u8],
}

impl<'a> Reader<'a, '_> {
    /// Reads one value.
    ///
    /// # Errors
    /// If the bytes are cut off or the storage class is unknown.
    pub fn value(&mut self) -> Result<Value> {
        Ok(match self.byte()? {
            0 => Value::Null,
            1 => Value::Integer(self.signed()?),
            2 => Value::Real(self.real()?),
            class @ (3 | 4) => {
                let length = self.count()?;
                let bytes = self.take(length)?.to_vec();
                if class == 3 { Value::Text(bytes) } else { Value::Blob(bytes) }
            }
            _ => return Err(broken("a storage class is unknown")),
        })
    }

    pub(super) fn real(&mut self) -> Result<f64> {
        let bytes = self.take(8)?.try_into().map_err(|_| broken("it is cut off"))?;
        Ok(f64::from_bits(u64::from_be_bytes(bytes)))
    }

    /// Reads the runs of a list of `count` numbers and hands each run on.
    pub(super) fn runs(
        &mut self,
        count: usize,
        mut run: impl FnMut(&mut Self, std::ops::Range<usize>, u64) -> Result<()>,
    ) -> Result<()> {
        let mut at = 0;
        while at < count {
            let length = self.count()?;
            if length == 0 || length > count - at {
                return Err(broken("a run has an impossible length"));
            }
            let number = self.varint()?;
            run(self, at..at + length, number)?;
            at += length;
        }
        Ok(())
    }

    pub(super) fn name(&mut self) -> Result<String> {
        let length = self.count()?;
        if length == 0 || length > limits::NAME_MAX_BYTES {
            return Err(broken("a name has an impossible length"));
        }
        let name = std::str::from_utf8(self.take(length)?).map_err(|_| broken("a name"))?;
        if is_reserved(name) {
            return Err(broken("a name is reserved"));
        }
        Ok(name.into())
    }

    pub(super) fn signed(&mut self) -> Result<i64> {
        let value = self.varint()?;
        Ok(((value >> 1) as i64) ^ -((value & 1) as i64))
    }

    /// Reads a number that counts something in this batch.
    pub fn count(&mut self) -> Result<usize> {
        usize::try_from(self.varint()?).map_err(|_| broken("a number is too large"))
    }

    pub(super) fn varint(&mut self) -> Result<u64> {
        read_varint(self.bytes).ok_or_else(|| broken("it is cut off"))
    }

    pub(super) fn byte(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let (head, rest) =
            self.bytes.split_at_checked(count).ok_or_else(|| broken("it is cut off"))?;
        *self.bytes = rest;
        Ok(head)
    }
}

fn is_reserved(name: &str) -> bool {
    name.contains('\0') || name.to_ascii_lowercase().starts_with("__wavesync_")
}

/// Whether a name outside of a batch could be one of a table.
pub(super) fn is_possible_name(name: &str) -> bool {
    (1..=limits::NAME_MAX_BYTES).contains(&name.len())
        && !is_reserved(name)
        && !name.to_ascii_lowercase().starts_with("sqlite_")
}

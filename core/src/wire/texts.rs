//! Texts that travel in fewer bytes than they have: uuids, dates, times, and words that end in a number.
//!
//! Each short form is exact: only a text that is written in just this way from what travels has it.

const UUID_TEXT_BYTES: usize = 36;
const UUID_HYPHENS: [usize; 4] = [8, 13, 18, 23];
/// Before the number of a numbered text.
pub(super) const PREFIX_MAX_BYTES: usize = 32;
/// Digits of that number.
const DIGITS_MAX: usize = 15;
/// Above every number with so many digits.
const NUMBER_END: i64 = 10i64.pow(DIGITS_MAX as u32);
const SECONDS_OF_A_DAY: i64 = 24 * 60 * 60;
/// Months have 12 times, years 31 times that many days, whatever the calendar says: what matters is
/// that each date has a number of its own, near those of the dates around it.
const DAYS_OF_A_MONTH: i64 = 31;
const DAYS_OF_A_YEAR: i64 = 12 * DAYS_OF_A_MONTH;
const DATES_END: i64 = 10_000 * DAYS_OF_A_YEAR;

/// A text in short form.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Short {
    /// Its 16 bytes are written.
    Uuid,
    /// `YYYY-MM-DD`.
    Date(i64),
    /// `YYYY-MM-DD HH:MM:SS`.
    Time(i64),
    /// A beginning of so many bytes, then a number.
    Numbered(usize, i64),
}

/// The short form of a text, if it has one.
pub(super) fn short(text: &[u8]) -> Option<Short> {
    match text.len() {
        UUID_TEXT_BYTES if is_uuid(text) => return Some(Short::Uuid),
        10 => {
            if let Some(date) = date(text) {
                return Some(Short::Date(date));
            }
        }
        19 => {
            if let Some(time) = time(text) {
                return Some(Short::Time(time));
            }
        }
        _ => {}
    }
    numbered(text)
}

fn is_uuid(text: &[u8]) -> bool {
    text.iter().enumerate().all(|(at, byte)| {
        if UUID_HYPHENS.contains(&at) {
            *byte == b'-'
        } else {
            matches!(byte, b'0'..=b'9' | b'a'..=b'f')
        }
    })
}

pub(super) fn pack_uuid(body: &mut Vec<u8>, text: &[u8]) {
    let digit = |byte: u8| if byte <= b'9' { byte - b'0' } else { byte - b'a' + 10 };
    let mut digits = text.iter().filter(|byte| **byte != b'-').map(|byte| digit(*byte));
    while let (Some(high), Some(low)) = (digits.next(), digits.next()) {
        body.push(high << 4 | low);
    }
}

/// Appends the uuid of 16 bytes.
pub(super) fn write_uuid(text: &mut Vec<u8>, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let start = text.len();
    for byte in bytes {
        if UUID_HYPHENS.contains(&(text.len() - start)) {
            text.push(b'-');
        }
        text.push(DIGITS[usize::from(byte >> 4)]);
        text.push(DIGITS[usize::from(byte & 15)]);
    }
}

/// The number that some digits spell.
fn digits(text: &[u8]) -> Option<i64> {
    text.iter().try_fold(0, |number, byte| {
        byte.is_ascii_digit().then(|| number * 10 + i64::from(byte - b'0'))
    })
}

fn date(text: &[u8]) -> Option<i64> {
    let (year, month, day) = (digits(&text[..4])?, digits(&text[5..7])?, digits(&text[8..10])?);
    let fits = text[4] == b'-' && text[7] == b'-';
    let fits = fits && (1..=12).contains(&month) && (1..=DAYS_OF_A_MONTH).contains(&day);
    fits.then_some(year * DAYS_OF_A_YEAR + (month - 1) * DAYS_OF_A_MONTH + day - 1)
}

/// Appends the date with a number. Returns whether there is one.
pub(super) fn write_date(text: &mut Vec<u8>, date: i64) -> bool {
    if !(0..DATES_END).contains(&date) {
        return false;
    }
    write_digits(text, date / DAYS_OF_A_YEAR, 4);
    text.push(b'-');
    write_digits(text, date % DAYS_OF_A_YEAR / DAYS_OF_A_MONTH + 1, 2);
    text.push(b'-');
    write_digits(text, date % DAYS_OF_A_MONTH + 1, 2);
    true
}

fn time(text: &[u8]) -> Option<i64> {
    let day = date(&text[..10])?;
    let part = |at: usize, end: i64| digits(&text[at..at + 2]).filter(|number| *number < end);
    let (hour, minute, second) = (part(11, 24)?, part(14, 60)?, part(17, 60)?);
    let fits = text[10] == b' ' && text[13] == b':' && text[16] == b':';
    fits.then_some(day * SECONDS_OF_A_DAY + (hour * 60 + minute) * 60 + second)
}

/// Appends the time with a number. Returns whether there is one.
pub(super) fn write_time(text: &mut Vec<u8>, time: i64) -> bool {
    if !write_date(text, time.div_euclid(SECONDS_OF_A_DAY)) {
        return false;
    }
    let second = time.rem_euclid(SECONDS_OF_A_DAY);
    for (mark, number) in [(b' ', second / 3_600), (b':', second / 60 % 60), (b':', second % 60)] {
        text.push(mark);
        write_digits(text, number, 2);
    }
    true
}

/// Appends the last digits of a number.
fn write_digits(text: &mut Vec<u8>, mut number: i64, count: usize) {
    let start = text.len();
    text.resize(start + count, b'0');
    for digit in text[start..].iter_mut().rev() {
        *digit += (number % 10) as u8;
        number /= 10;
    }
}

/// A text that ends in a number without leading zeros. Of a longer row of digits, the last ones count.
fn numbered(text: &[u8]) -> Option<Short> {
    let count = text.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
    let mut start = text.len() - count.min(DIGITS_MAX);
    while start + 1 < text.len() && text[start] == b'0' {
        start += 1;
    }
    if count == 0 || start > PREFIX_MAX_BYTES {
        return None;
    }
    Some(Short::Numbered(start, digits(&text[start..])?))
}

/// How many digits a number has.
pub(super) fn digits_of(number: i64) -> usize {
    number.checked_ilog10().unwrap_or(0) as usize + 1
}

/// Appends a beginning and a number behind it. Returns whether a numbered text has such a number.
pub(super) fn write_numbered(text: &mut Vec<u8>, prefix: &[u8], number: i64) -> bool {
    if !(0..NUMBER_END).contains(&number) {
        return false;
    }
    text.extend_from_slice(prefix);
    write_digits(text, number, digits_of(number));
    true
}

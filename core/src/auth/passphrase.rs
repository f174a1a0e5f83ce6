//! Passphrases: making a strong one, and telling a weak one.
//!
//! The estimate knows no dictionary. It counts what a passphrase could be at most if its words are
//! ordinary words, so that it calls nothing strong that is not, and warns; it forbids nothing.

use std::collections::BTreeSet;

/// Crockford's base 32: no letter in it looks like a digit in it.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const GROUPS: usize = 5;
const GROUP_CHARACTERS: usize = 4;

/// Entropy of a passphrase that [`make`] gives: five bits for each of its characters.
pub const PASSPHRASE_BITS: u32 = (GROUPS * GROUP_CHARACTERS * 5) as u32;
/// Below this estimate a passphrase is called weak: four words of a list of 1,000.
const WEAK_BELOW_BITS: f64 = 40.0;
/// An ordinary word, whatever its length: one of 2,000.
const WORD_BITS: f64 = 11.0;
const LETTER_BITS: f64 = 4.7;
const DIGIT_BITS: f64 = 3.32;
const OTHER_BITS: f64 = 5.0;
/// A run that continues the one before it by a rule, a year, or a word seen before.
const GUESSED_BITS: f64 = 2.0;
/// A year of somebody's life.
const YEAR_BITS: f64 = 7.0;
/// Rows of the keyboards that people walk along.
const ROWS: &[&str] =
    &["qwertyuiop", "qwertzuiop", "azertyuiop", "asdfghjkl", "zxcvbnm", "yxcvbnm", "1234567890"];

/// A passphrase of [`PASSPHRASE_BITS`] bits from that many random bits: five groups of four.
#[must_use]
pub fn make(random: &[u8; GROUPS * GROUP_CHARACTERS]) -> String {
    let characters: Vec<char> =
        random.iter().map(|byte| char::from(ALPHABET[usize::from(byte % 32)])).collect();
    let groups = characters.chunks(GROUP_CHARACTERS).map(|group| group.iter().collect::<String>());
    groups.collect::<Vec<_>>().join("-")
}

/// Why a passphrase is weak, if it is: everybody who guesses it is a member.
#[must_use]
pub fn weakness(passphrase: &str) -> Option<String> {
    let bits = estimate(passphrase);
    (bits < WEAK_BELOW_BITS).then(|| {
        format!(
            "the passphrase is weak (about {bits:.0} bits): whoever guesses it reads and writes \
             everything in this group"
        )
    })
}

/// What a run of characters is made of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Letters,
    Digits,
    Other,
}

fn class(character: char) -> Class {
    match character {
        character if character.is_alphabetic() => Class::Letters,
        character if character.is_numeric() => Class::Digits,
        _ => Class::Other,
    }
}

/// Bits that a guesser needs at most, in a simple model: runs of letters are words, words that
/// are repeated, keyboard walks and counting are guessed.
fn estimate(passphrase: &str) -> f64 {
    let lower = passphrase.to_lowercase();
    let bits = count(&lower);
    if !is_masked_word(passphrase) {
        return bits;
    }
    bits.min(count(&lower.chars().map(unmasked).collect::<String>()))
}

fn count(lower: &str) -> f64 {
    let characters: Vec<char> = lower.chars().collect();
    let mut bits = 0.0;
    let mut seen: BTreeSet<&[char]> = BTreeSet::new();
    for run in characters.chunk_by(|a, b| class(*a) == class(*b)) {
        let new = seen.insert(run);
        let length = run.len() as f64;
        bits += match class(run[0]) {
            // Spaces and hyphens between words say nothing.
            Class::Other if run.len() == 1 && matches!(run[0], ' ' | '-' | '_' | '.') => 0.0,
            _ if !new || follows_a_rule(run) => GUESSED_BITS,
            Class::Letters => (length * LETTER_BITS).min(WORD_BITS),
            Class::Digits if run.len() == 4 && matches!(run[0], '1' | '2') => YEAR_BITS,
            Class::Digits => length * DIGIT_BITS,
            Class::Other => length * OTHER_BITS,
        };
    }
    bits
}

/// A letter for the digit or sign that people write for it.
fn unmasked(character: char) -> char {
    match character {
        '0' => 'o',
        '1' | '!' => 'i',
        '3' => 'e',
        '4' | '@' => 'a',
        '5' | '$' => 's',
        '7' => 't',
        other => other,
    }
}

/// One word in which single letters are written as digits, such as `Tr0ub4dor&3`. What is random
/// has more digits, or groups.
fn is_masked_word(passphrase: &str) -> bool {
    let letters = passphrase.chars().filter(|c| class(*c) == Class::Letters).count();
    let length = passphrase.chars().count();
    length < 16 && !passphrase.contains(['-', ' ']) && letters * 2 > length
}

/// All one character, counting up or down, or a walk along a keyboard.
fn follows_a_rule(run: &[char]) -> bool {
    if run.len() < 3 {
        return false;
    }
    let step = |pair: &[char]| i64::from(u32::from(pair[1])) - i64::from(u32::from(pair[0]));
    let first = step(&run[..2]);
    if first.abs() <= 1 && run.windows(2).all(|pair| step(pair) == first) {
        return true;
    }
    let text: String = run.iter().collect();
    let back: String = run.iter().rev().collect();
    let walk = |text: &str| {
        // A walk may go on in the next row.
        ROWS.iter()
            .any(|row| row.contains(text) || (text.len() >= 6 && text.starts_with(&row[..6])))
    };
    walk(&text) || walk(&back)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_has_the_entropy_that_is_stated() {
        assert_eq!(PASSPHRASE_BITS, 100);
        let made = make(&std::array::from_fn(|at| (at * 37) as u8));
        assert_eq!(made.len(), 24);
        assert_eq!(made.matches('-').count(), 4);
        // Each of its 20 characters depends on 5 bits of its own, and on nothing else.
        let mut texts = BTreeSet::new();
        for at in 0..20 {
            for bit in 0..5 {
                let mut random = [0u8; 20];
                random[at] = 1 << bit;
                assert!(texts.insert(make(&random)));
            }
            let mut random = [0u8; 20];
            random[at] = 0b1110_0000;
            assert_eq!(make(&random), make(&[0; 20]), "no more than 5 bits are used");
        }
        assert_eq!(ALPHABET.iter().collect::<BTreeSet<_>>().len(), 32);
    }

    #[test]
    fn weak_ones_are_told_and_strong_ones_are_not() {
        let weak = [
            "x",
            "password",
            "Password1!",
            "family2024",
            "hunter2",
            "summer holiday",
            "letmein",
            "correct horse",
            "aaaaaaaaaaaaaaaaaaaaaaaa",
            "12345678901234567890",
            "qwertyuiopasdfgh",
            "abcdefghijklmnop",
            "Tr0ub4dor&3",
            "P4ssw0rd",
            "horse horse horse horse horse",
            "19871224",
            "sonne mond",
        ];
        for passphrase in weak {
            assert!(weakness(passphrase).is_some(), "{passphrase}: {}", estimate(passphrase));
        }
        let strong = [
            "correct horse battery staple",
            "tidal lantern crisp orbit",
            "k7fq-2mzx-9v4t",
            "gX9#vR2!qL7@",
            "dächer wolken ziegel hafen",
            "8f14e45fceea167a5a36dedd4bea2543",
        ];
        for passphrase in strong {
            assert!(weakness(passphrase).is_none(), "{passphrase}: {}", estimate(passphrase));
        }
        for seed in 0..200u8 {
            let random = std::array::from_fn(|at| {
                seed.wrapping_mul(31).wrapping_add((at as u8).wrapping_mul(89))
            });
            assert!(weakness(&make(&random)).is_none(), "{}", make(&random));
        }
    }
}

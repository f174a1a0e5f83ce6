//! Inputs that nobody made on purpose. Tests of other packages use it as well.

#[path = "../simulator/dice.rs"]
#[allow(dead_code)]
mod dice;

pub use dice::Dice;

/// An input: mostly a good one with a few bytes bent, cut or repeated; sometimes anything at all.
pub fn input(dice: &mut Dice, seeds: &[Vec<u8>]) -> Vec<u8> {
    if seeds.is_empty() || dice.percent(25) {
        let length = dice.below(600) as usize;
        return (0..length).map(|_| dice.next() as u8).collect();
    }
    let mut bytes = seeds[dice.index(seeds.len())].clone();
    for _ in 0..dice.within(1, 6) {
        let at = dice.index(bytes.len().max(1));
        match dice.below(6) {
            _ if bytes.is_empty() => bytes.push(dice.next() as u8),
            0 => bytes[at] = dice.next() as u8,
            1 => bytes[at] ^= 1 << dice.below(8),
            2 => bytes.truncate(at),
            3 => bytes.insert(at, dice.next() as u8),
            4 => {
                let piece = bytes[at..].iter().take(40).copied().collect::<Vec<_>>();
                bytes.splice(at..at, piece);
            }
            _ => bytes[at] = [0, 0x7F, 0x80, 0xFF, 0x1B, 0x9F, 0xBF][dice.index(7)],
        }
    }
    bytes
}

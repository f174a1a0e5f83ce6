//! What the tests of the handshake and of the seals share: two members that know one key, and how
//! a property is shown to depend on the check that it is about.

use wavesync_core::ids::{Boot, Cursor};
use wavesync_core::wire;
use wavesync_core::wire::message::{Request, VectorList};

use super::stage::{Stage, key, peer};

pub const TABLE: &str = "CREATE TABLE note(id INTEGER PRIMARY KEY, text);";

/// Two members that know the same key, connected.
pub fn pair() -> (Stage, usize, usize) {
    let mut stage = Stage::new();
    let a = stage.member(peer(1), key(7), TABLE, 1);
    let b = stage.member(peer(2), key(7), TABLE, 2);
    (stage, a, b)
}

pub fn request() -> Vec<u8> {
    let cursor = Cursor { boot: Boot(0), ..Cursor::default() };
    let (vector, applied) = (VectorList::default(), VectorList::default());
    let (place, sample) = (Vec::new(), Vec::new());
    wire::encode(&Request {
        vector,
        applied,
        cursor,
        place,
        sample,
        chunk_rows: 1_000,
        full: false,
    })
    .unwrap()
}

macro_rules! properties {
    ($($name:ident $($mutant:ident)*;)*) => {
        $(
            mod $name {
                #[test]
                fn holds() {
                    super::$name();
                }
                $(
                    #[cfg(feature = "mutants")]
                    #[test]
                    #[allow(non_snake_case)]
                    fn $mutant() {
                        super::common::is_noticed(wavesync_core::mutants::Mutant::$mutant, super::$name);
                    }
                )*
            }
        )*
    };
}

/// The property fails while the check is removed.
#[cfg(feature = "mutants")]
pub fn is_noticed(mutant: wavesync_core::mutants::Mutant, property: fn()) {
    wavesync_core::mutants::set(Some(mutant));
    let outcome = std::panic::catch_unwind(property);
    wavesync_core::mutants::set(None);
    assert!(outcome.is_err(), "{mutant:?} is not noticed");
}

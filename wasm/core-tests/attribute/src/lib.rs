//! `#[test]` where there is no test harness: the function is exported from the module, and whoever has
//! loaded it calls it. A test that fails panics.

use std::sync::atomic::{AtomicU32, Ordering};

use proc_macro::{TokenStream, TokenTree};

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// Exports the function as `test NUMBER NAME`.
#[proc_macro_attribute]
pub fn test(_: TokenStream, function: TokenStream) -> TokenStream {
    let mut words = function.clone().into_iter().filter_map(|tree| match tree {
        TokenTree::Ident(word) => Some(word.to_string()),
        _ => None,
    });
    let named = words.by_ref().any(|word| word == "fn");
    let name = words.next().filter(|_| named).unwrap_or_default();
    // Names are not unique: each file has its own.
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let exported = format!(
        "#[allow(unsafe_code)]
         const _: () = {{
             // SAFETY: no other symbol has such a name.
             #[unsafe(export_name = \"test {number} {name}\")]
             extern \"C\" fn run() {{ {name}() }}
         }};"
    );
    let exported: TokenStream = exported.parse().unwrap_or_default();
    function.into_iter().chain(exported).collect()
}

//! Puts functions of a kind side by side in a module, because that compresses better.
//!
//! Generic code is compiled anew for each type, nearly the same each time. A compressor notices
//! within some ten kilobytes only, and a module has its functions by size. Nothing else of the
//! module is touched but the names of functions, which are not needed any more.

use wasm_encoder::reencode::{Error, Reencode};
use wasm_encoder::{CodeSection, FunctionSection, Module};
use wasmparser::{
    BinaryReaderError, CodeSectionReader, CustomSectionReader, FunctionSectionReader, KnownCustom,
    Name, Parser, Payload, TypeRef,
};

/// The module with its functions in another order, and without names.
pub fn by_kind(module: &[u8]) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    let mut order = Order::of(module)?;
    let mut ordered = Module::new();
    order.parse_core_module(&mut ordered, Parser::new(0), module)?;
    let ordered = ordered.finish();
    wasmparser::Validator::new_with_features(wasmparser::WasmFeatures::all())
        .validate_all(&ordered)?;
    Ok(ordered)
}

/// Where each function goes. Numbers count the imported functions first, which stay.
struct Order {
    imported: u32,
    /// The old place of each defined function, in the new order.
    old: Vec<usize>,
    /// The new place of each defined function, in the old order.
    new: Vec<u32>,
}

impl Order {
    fn of(module: &[u8]) -> Result<Self, BinaryReaderError> {
        let (mut imported, mut sizes, mut names) = (0_u32, Vec::new(), Vec::new());
        for payload in Parser::new(0).parse_all(module) {
            match payload? {
                Payload::ImportSection(imports) => {
                    for import in imports {
                        imported += u32::from(matches!(import?.ty, TypeRef::Func(_)));
                    }
                }
                Payload::CodeSectionEntry(body) => sizes.push(body.range().len()),
                Payload::CustomSection(section) => {
                    let KnownCustom::Name(parts) = section.as_known() else { continue };
                    for part in parts {
                        let Name::Function(map) = part? else { continue };
                        for naming in map {
                            let naming = naming?;
                            names.push((naming.index, naming.name.to_owned()));
                        }
                    }
                }
                _ => {}
            }
        }
        let mut kinds = vec![(false, String::new()); sizes.len()];
        for (number, name) in names {
            let place = number.checked_sub(imported).and_then(|place| usize::try_from(place).ok());
            if let Some(kind) = place.and_then(|place| kinds.get_mut(place)) {
                *kind = (!name.contains("::"), without_parameters(&name));
            }
        }
        let mut old: Vec<usize> = (0..sizes.len()).collect();
        old.sort_by_key(|place| (&kinds[*place], sizes[*place], *place));
        let mut new = vec![0; old.len()];
        for (place, was) in (0..).zip(&old) {
            new[*was] = place;
        }
        Ok(Self { imported, old, new })
    }
}

impl Reencode for Order {
    type Error = BinaryReaderError;

    fn function_index(&mut self, function: u32) -> Result<u32, Error<Self::Error>> {
        Ok(match function.checked_sub(self.imported) {
            Some(defined) => self.imported + self.new[defined as usize],
            None => function,
        })
    }

    fn parse_function_section(
        &mut self,
        functions: &mut FunctionSection,
        section: FunctionSectionReader<'_>,
    ) -> Result<(), Error<Self::Error>> {
        let types = section.into_iter().collect::<Result<Vec<u32>, _>>()?;
        for old in &self.old {
            functions.function(types[*old]);
        }
        Ok(())
    }

    fn parse_code_section(
        &mut self,
        code: &mut CodeSection,
        section: CodeSectionReader<'_>,
    ) -> Result<(), Error<Self::Error>> {
        let bodies = section.into_iter().collect::<Result<Vec<_>, _>>()?;
        for old in self.old.clone() {
            self.parse_function_body(code, bodies[old].clone())?;
        }
        Ok(())
    }

    fn parse_custom_section(
        &mut self,
        module: &mut Module,
        section: CustomSectionReader<'_>,
    ) -> Result<(), Error<Self::Error>> {
        if !matches!(section.as_known(), KnownCustom::Name(_)) {
            module.section(&self.custom_section(section)?);
        }
        Ok(())
    }
}

/// The name of a function without the types that it was made for, and without its hash.
fn without_parameters(name: &str) -> String {
    let name = match name.rsplit_once("::h") {
        Some((name, hash)) if hash.len() == 16 => name,
        _ => name,
    };
    let mut kept = String::with_capacity(name.len());
    let mut depth = 0_u32;
    let mut before = ' ';
    for letter in name.chars() {
        match letter {
            // `<A as B>::c` starts with the types that it belongs to: those stay.
            '<' if depth > 0 || before.is_alphanumeric() || matches!(before, '_' | ':') => {
                depth += 1;
            }
            // Not the arrow of a function's type.
            '>' if depth > 0 && before != '-' => depth -= 1,
            _ if depth == 0 => kept.push(letter),
            _ => {}
        }
        before = letter;
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::without_parameters;

    #[test]
    fn functions_made_from_one_text_are_of_one_kind() {
        let kind = "alloc::collections::btree::map::BTreeMap::insert";
        for name in [
            "alloc::collections::btree::map::BTreeMap<K,V,A>::insert::h0123456789abcdef",
            "alloc::collections::btree::map::BTreeMap<u64, fn(&[u8]) -> Vec<u8>>::insert",
            "alloc::collections::btree::map::BTreeMap::<u64, Vec<u8>>::insert",
        ] {
            assert_eq!(without_parameters(name).replace("::::", "::"), kind);
        }
        let kind = "<alloc::vec::Vec as core::ops::drop::Drop>::drop";
        assert_eq!(
            without_parameters("<alloc::vec::Vec<T,A> as core::ops::drop::Drop>::drop"),
            kind
        );
        assert_eq!(without_parameters("sqlite3VdbeExec"), "sqlite3VdbeExec");
    }
}

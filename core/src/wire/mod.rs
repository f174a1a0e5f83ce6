//! The wire format: messages as CBOR, row batches packed. See `docs/PROTOCOL.md`.
//!
//! The only place that names `serde_cbor`. Bytes are decoded into our own structs only, and must
//! end where the value ends.

pub mod bytes;
mod columns;
pub mod message;
pub mod packed;
pub mod rows;
mod sites;
mod texts;

use std::fmt::Display;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// Encodes a message body.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    serde_cbor::ser::to_vec_packed(value)
        .map_err(|error| Error::protocol(format!("a message cannot be encoded: {error}")))
}

/// Decodes a message body.
///
/// # Errors
/// [`Error::Protocol`] if the bytes are not exactly one such value.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let unreadable =
        |error: &dyn Display| Error::protocol(format!("a message cannot be read: {error}"));
    let mut reader = serde_cbor::Deserializer::from_slice(bytes);
    // Through a trait object: else the compiler makes the parser anew for each field of each
    // message, half a megabyte of the browser's module.
    let mut erased = <dyn erased_serde::Deserializer>::erase(&mut reader);
    let value = erased_serde::deserialize(&mut erased).map_err(|error| unreadable(&error))?;
    reader.end().map_err(|error| unreadable(&error))?;
    Ok(value)
}

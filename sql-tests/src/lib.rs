//! Drives real `sqlite3` shell processes, several replicas in one scenario, as written in
//! `scenarios/*.test` and in the transcripts of the project's documents.
//!
//! This crate knows files, pipes and lines of text. It must not know how wavesync works: it links
//! neither the extension nor SQLite, so that what it sees is what a person at a shell sees.
//! The format is described in `sql-tests/README.md`.

pub mod compare;
pub mod document;
pub mod document_run;
pub mod dump;
pub mod parse;
pub mod report;
pub mod run;
pub mod settings;
pub mod shell;
pub mod transcript;
pub mod wait;

//! The messages of the protocol; one struct and one kind number each.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::auth::{Greeting, Opened, Proof};
use crate::ids::{Boot, Cursor, Seq, SiteId, Stamp};
use crate::limits;
use crate::store::adopt::TableSchema;
use crate::store::vector::Vector;
use crate::{Error, Result};

/// Kinds of unsealed frames, which only start a stream.
pub mod plain {
    /// A [`super::Greeting`]: opens a handshake.
    pub const GREETING: u8 = 1;
    /// A [`super::Answer`].
    pub const ANSWER: u8 = 2;
    /// A [`super::Proof`].
    pub const PROOF: u8 = 3;
    /// A [`super::Refusal`].
    pub const REFUSAL: u8 = 4;
    /// An [`super::Attach`]: the stream belongs to a proven session.
    pub const ATTACH: u8 = 5;
}

/// Kinds of sealed messages.
pub mod sealed {
    /// A [`super::Hello`].
    pub const HELLO: u8 = 16;
    /// A [`super::State`].
    pub const STATE: u8 = 17;
    /// A list of [`super::TableSchema`].
    pub const SCHEMA: u8 = 18;
    /// A [`super::PushMessage`].
    pub const PUSH: u8 = 19;
    /// A [`super::DigestMessage`].
    pub const DIGEST: u8 = 20;
    /// A [`super::Request`].
    pub const REQUEST: u8 = 32;
    /// A [`super::Chunk`].
    pub const CHUNK: u8 = 33;
    /// Permission for one more chunk; no content.
    pub const CREDIT: u8 = 34;
    /// The responder ends a pass; a [`super::Refusal`].
    pub const ABORT: u8 = 35;
    /// A [`super::Unrelated`]: the responder's rows are other things than those of the sample.
    pub const UNRELATED: u8 = 36;
    /// A [`super::Repair`]: the requester wants rows again, whatever it has seen.
    pub const REPAIR: u8 = 37;
}

/// The acceptor's answer in the handshake.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// Its greeting.
    pub greeting: Greeting,
    /// Its proof.
    pub proof: Proof,
}

/// Why a stream is given up.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Refusal {
    /// A [`RefusalCode`] as a number; unknown ones are read as "other".
    pub code: u8,
}

/// Reasons that travel; details stay in the events of the side that has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalCode {
    /// The proof did not fit: another topic or passphrase.
    Auth,
    /// Another version of the protocol.
    Version,
    /// Anything else.
    Other,
}

impl RefusalCode {
    /// The number that travels.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Auth => 1,
            Self::Version => 2,
            Self::Other => 0,
        }
    }

    /// The reason behind a number.
    #[must_use]
    pub fn from_number(number: u8) -> Self {
        match number {
            1 => Self::Auth,
            2 => Self::Version,
            _ => Self::Other,
        }
    }
}

/// First frame of a further stream of a session. Not secret and not trusted: a stream whose seals
/// do not fit is given up.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Attach {
    /// Public name of the session.
    #[serde(with = "serde_bytes")]
    pub session: [u8; 8],
    /// Number of the stream in it; never used twice.
    pub stream: u64,
}

/// Optional abilities in [`Hello::features`].
pub mod features {
    /// It compares digests (rule P15).
    pub const DIGESTS: u64 = 1;
}

/// Who a peer is and what it has; first message after the handshake, in both directions.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// Optional abilities, one bit each; unknown ones are ignored.
    pub features: u64,
    /// Its site id.
    pub site: SiteId,
    /// What its user calls it.
    pub name: String,
    /// It creates tables that it lacks, so it wants to be told the schema.
    pub wants_schema: bool,
    /// What it has.
    pub state: State,
}

/// What a peer has, read in one transaction without unfolded rows (rules P5, P11).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Its current boot.
    pub boot: Boot,
    /// Its folded end.
    pub end: Seq,
    /// Its version vector.
    pub vector: VectorList,
    /// `vector` holds only entries that moved since the sender last told it on this stream.
    pub partial: bool,
    /// The entries of its vector in which it has not applied everything: what is above is held.
    pub applied: VectorList,
    /// Every write event in its rows is covered by its vector (rule P12).
    pub closed: bool,
    /// How far it has read the log of the peer to whom this is sent.
    pub cursor: Cursor,
    /// Upper bounds of vector entries, for ever (rule P14).
    pub caps: Vec<(SiteId, Stamp)>,
    /// Of each site the highest write event among the tombstones that it forgot (rule P18); none if
    /// that is what it last told on this stream.
    pub collected: Option<Vec<(SiteId, Stamp)>>,
}

/// A version vector as it travels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VectorList(Vec<(SiteId, Stamp, Boot)>);

impl From<&Vector> for VectorList {
    fn from(vector: &Vector) -> Self {
        Self(vector.0.iter().map(|(site, (stamp, boot))| (*site, *stamp, *boot)).collect())
    }
}

impl VectorList {
    /// The entries in which `vector` differs from `told`; `None` if it lacks one of them.
    #[must_use]
    pub fn since(vector: &Vector, told: &Vector) -> Option<Self> {
        if told.0.keys().any(|site| !vector.0.contains_key(site)) {
            return None;
        }
        let moved = vector.0.iter().filter(|(site, entry)| told.0.get(site) != Some(entry));
        Some(Self(moved.map(|(site, (stamp, boot))| (*site, *stamp, *boot)).collect()))
    }

    /// The vector, if its entries are possible.
    ///
    /// # Errors
    /// [`Error::Protocol`] for absurd stamps or too many sites.
    pub fn check(&self) -> Result<Vector> {
        if self.0.len() > limits::VECTOR_MAX_SITES {
            return Err(Error::protocol("a version vector has too many sites"));
        }
        let mut vector = Vector::default();
        for (site, stamp, boot) in &self.0 {
            if !(-limits::STAMP_MS_MAX..=limits::STAMP_MAX).contains(&stamp.0) {
                return Err(Error::protocol("a version vector has an absurd stamp"));
            }
            if vector.0.insert(*site, (*stamp, *boot)).is_some() {
                return Err(Error::protocol("a version vector names a site twice"));
            }
        }
        Ok(vector)
    }
}

/// A commit of one site, sent to everybody connected.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PushMessage {
    /// Who wrote it.
    pub site: SiteId,
    /// Under which boot.
    pub boot: Boot,
    /// The receiver must have everything of `site` up to here.
    pub prev: Stamp,
    /// And has everything up to here afterwards.
    pub upto: Stamp,
    /// To whom `site` itself sent this push: the first [`limits::SITE_TAG_BYTES`] bytes of their site
    /// ids. Whoever passes it on leaves them out.
    #[serde(with = "serde_bytes")]
    pub sent_to: Vec<u8>,
    /// A row batch.
    #[serde(with = "serde_bytes")]
    pub rows: Vec<u8>,
}

impl PushMessage {
    /// Whether the push says that it was sent to this site.
    #[must_use]
    pub fn was_sent_to(&self, site: SiteId) -> bool {
        let tag = &site.0[..limits::SITE_TAG_BYTES];
        self.sent_to.chunks_exact(limits::SITE_TAG_BYTES).any(|sent| sent == tag)
    }

    /// Names the receivers, as many as there is room for.
    pub fn name_receivers(&mut self, sites: &[SiteId]) {
        let sites = sites.iter().take(limits::PUSH_MAX_SENT_TO);
        self.sent_to =
            sites.flat_map(|site| site.0[..limits::SITE_TAG_BYTES].iter().copied()).collect();
    }
}

/// Opens a catch-up.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    /// What the requester has.
    pub vector: VectorList,
    /// As in [`State::applied`].
    pub applied: VectorList,
    /// How far it has read the responder's log.
    pub cursor: Cursor,
    /// Where a key-order pass goes on: bytes of an earlier chunk of this responder, or none.
    #[serde(with = "serde_bytes")]
    pub place: Vec<u8>,
    /// At first contact, some of the rows that the requester had before it joined.
    pub sample: Vec<SampleTable>,
    /// Rows that the requester wants in a chunk at most: each is one transaction at its side.
    pub chunk_rows: u32,
    /// Every row is wanted, whole, whatever the vector covers and however far the log was read.
    pub full: bool,
}

/// Some rows of a table with an INTEGER key that existed before their replica joined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleTable {
    /// The table.
    pub name: String,
    /// The columns of the hashes.
    pub columns: Vec<String>,
    /// Keys, and for each column a hash of its value if it was never written since.
    pub rows: Vec<(i64, Vec<Option<u32>>)>,
}

/// Ends a pass: under the same keys both have different rows from before they joined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unrelated {
    /// The tables where most of the shared keys differ.
    pub tables: Vec<String>,
}

/// A piece of the responder's log.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Chunk {
    /// The log position it starts after.
    pub from: Seq,
    /// The log position that it reaches.
    pub to: Seq,
    /// The responder's boot.
    pub boot: Boot,
    /// The responder's folded end when it was read.
    pub high: Seq,
    /// A row batch.
    #[serde(with = "serde_bytes")]
    pub rows: Vec<u8>,
    /// With the last chunk, the responder's vector as of the same transaction (rule P9).
    pub vector: Option<VectorList>,
    /// The pass ends with this chunk.
    pub last: bool,
    /// As in [`State::closed`], with the last chunk.
    pub closed: bool,
    /// The rows are in key order: table by table, by rising keys (rule K1).
    pub ordered: bool,
    /// With rows in key order: how many the pass had about when it began, for showing progress.
    pub expected: u64,
    /// Where the key-order pass goes on after this chunk, in the responder's words; empty where
    /// its first phase is over.
    #[serde(with = "serde_bytes")]
    pub place: Vec<u8>,
    /// As in [`State::collected`], all of it, with the last chunk.
    pub collected: Vec<(SiteId, Stamp)>,
    /// With the last chunk, above which causal lengths new rows begin (rule P18).
    pub floors: Vec<Floor>,
}

/// The highest causal length among the tombstones of a table that were forgotten.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Floor {
    /// The table.
    pub table: String,
    /// As in a row batch.
    pub integer_key: bool,
    /// As in a row batch.
    pub key_columns: usize,
    /// New rows begin above this.
    pub length: i64,
}

/// What a member's rows come to, as of one transaction without unfolded rows (rule P15).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DigestMessage {
    /// Its current boot.
    pub boot: Boot,
    /// Its folded end in that transaction.
    pub end: Seq,
    /// How far it has read the log of the peer to whom this is sent.
    pub cursor: Cursor,
    /// Names its version vector in that transaction.
    #[serde(with = "serde_bytes")]
    pub vector: [u8; 16],
    /// Names all its rows.
    #[serde(with = "serde_bytes")]
    pub total: [u8; 16],
    /// The `total` of the peer from which it has last read differing rows again; empty if it has not.
    #[serde(with = "serde_bytes")]
    pub repaired: Vec<u8>,
    /// Sent with details, because the totals differ.
    pub detailed: bool,
    /// With details, each table that has rows.
    pub tables: Vec<TableDigest>,
    /// With details, each table that had another name, or has a column that had.
    pub renamed: Vec<RenamedTable>,
}

/// What the rows of one table come to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableDigest {
    /// Its name in lower case.
    pub name: String,
    /// As in a row batch.
    pub integer_key: bool,
    /// As in a row batch.
    pub key_columns: usize,
    /// The columns that stand in the sender's table and their types, five bytes each.
    #[serde(with = "serde_bytes")]
    pub types: Vec<u8>,
    /// Values of some rows are away for now: not to be compared.
    pub partial: bool,
    /// Of each part of its keys the sum of the hashes of its rows, eight bytes each.
    #[serde(with = "serde_bytes")]
    pub parts: Vec<u8>,
}

impl TableDigest {
    /// What tells it from other tables.
    #[must_use]
    pub fn identity(&self) -> (&str, bool, usize) {
        (&self.name, self.integer_key, self.key_columns)
    }
}

/// A table that had another name, or has a column that had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenamedTable {
    /// Its name in lower case.
    pub name: String,
    /// Its former names.
    pub former: Vec<String>,
    /// A column's name, and one that it had.
    pub columns: Vec<(String, String)>,
}

/// Opens a stream on which rows are read again, whatever the requester has seen of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repair {
    /// Of these tables these parts.
    pub tables: Vec<TableParts>,
    /// As in [`Request::chunk_rows`].
    pub chunk_rows: u32,
}

/// Some parts of a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableParts {
    /// Its name.
    pub name: String,
    /// As in a row batch.
    pub integer_key: bool,
    /// As in a row batch.
    pub key_columns: usize,
    /// One bit for each part.
    pub parts: u32,
}

/// A sealed message, decoded and checked.
#[derive(Debug)]
pub enum Message {
    /// See [`Hello`].
    Hello(Hello),
    /// See [`State`].
    State(State),
    /// See [`TableSchema`].
    Schema(Vec<TableSchema>),
    /// See [`PushMessage`].
    Push(PushMessage),
    /// See [`DigestMessage`].
    Digest(DigestMessage),
    /// See [`Request`].
    Request(Request),
    /// See [`Chunk`].
    Chunk(Chunk),
    /// Permission for one more chunk.
    Credit,
    /// The responder ended the pass.
    Abort(RefusalCode),
    /// See [`Unrelated`].
    Unrelated(Unrelated),
    /// See [`Repair`].
    Repair(Repair),
    /// A kind that this version does not know; to be skipped.
    Unknown,
}

impl Message {
    /// Decodes an opened message.
    ///
    /// # Errors
    /// [`Error::Protocol`] if its body is not what its kind says or a number is absurd.
    pub fn decode(opened: &Opened) -> Result<Self> {
        let body = &opened.body[..];
        Ok(match opened.kind {
            sealed::HELLO => {
                let hello: Hello = super::decode(body)?;
                if hello.name.len() > limits::REPLICA_NAME_MAX_BYTES {
                    return Err(Error::protocol("a replica's name is too long"));
                }
                check_state(&hello.state)?;
                Self::Hello(hello)
            }
            sealed::STATE => {
                let state: State = super::decode(body)?;
                check_state(&state)?;
                Self::State(state)
            }
            sealed::SCHEMA => Self::Schema(super::decode(body)?),
            sealed::PUSH => {
                let push: PushMessage = super::decode(body)?;
                let possible = push.prev < push.upto && push.upto.0 <= limits::STAMP_MAX;
                if !possible || push.upto.is_base() {
                    return Err(Error::protocol("a push covers an impossible range"));
                }
                if push.sent_to.len() > limits::PUSH_MAX_SENT_TO * limits::SITE_TAG_BYTES {
                    return Err(Error::protocol("a push names too many receivers"));
                }
                Self::Push(push)
            }
            sealed::REQUEST => {
                let request: Request = super::decode(body)?;
                check_cursor(request.cursor)?;
                request.vector.check()?;
                request.applied.check()?;
                check_sample(&request.sample)?;
                check_place(&request.place)?;
                Self::Request(request)
            }
            sealed::CHUNK => {
                let chunk: Chunk = super::decode(body)?;
                let order =
                    Seq(0) <= chunk.from && chunk.from <= chunk.to && chunk.to <= chunk.high;
                if !order || chunk.high.0 > limits::SEQ_MAX {
                    return Err(Error::protocol("a chunk covers an impossible range"));
                }
                check_place(&chunk.place)?;
                if !chunk.place.is_empty() && (chunk.last || !chunk.ordered) {
                    return Err(Error::protocol("a chunk that ends a pass says where it goes on"));
                }
                chunk.vector.iter().try_for_each(|vector| vector.check().map(|_| ()))?;
                check_collected(&chunk.collected)?;
                check_floors(&chunk.floors)?;
                Self::Chunk(chunk)
            }
            sealed::CREDIT => Self::Credit,
            sealed::ABORT => {
                Self::Abort(RefusalCode::from_number(super::decode::<Refusal>(body)?.code))
            }
            sealed::UNRELATED => {
                let unrelated: Unrelated = super::decode(body)?;
                let named = |name: &String| name.len() <= limits::NAME_MAX_BYTES;
                if unrelated.tables.len() > limits::TABLES_MAX
                    || !unrelated.tables.iter().all(named)
                {
                    return Err(Error::protocol("a list of tables is absurd"));
                }
                Self::Unrelated(unrelated)
            }
            sealed::DIGEST => {
                let digest: DigestMessage = super::decode(body)?;
                check_digest(&digest)?;
                Self::Digest(digest)
            }
            sealed::REPAIR => {
                let repair: Repair = super::decode(body)?;
                check_repair(&repair)?;
                Self::Repair(repair)
            }
            _ => Self::Unknown,
        })
    }
}

fn check_sample(sample: &[SampleTable]) -> Result<()> {
    let possible = |table: &SampleTable| {
        table.name.len() <= limits::NAME_MAX_BYTES
            && table.columns.len() <= limits::COLUMNS_MAX
            && table.rows.len() <= limits::SAMPLE_MAX_ROWS
            && table.rows.iter().all(|(_, cells)| cells.len() == table.columns.len())
    };
    if sample.len() > limits::TABLES_MAX || !sample.iter().all(possible) {
        return Err(Error::protocol("a sample is impossible"));
    }
    Ok(())
}

fn check_table(name: &str, key_columns: usize) -> bool {
    name.len() <= limits::NAME_MAX_BYTES && (1..=limits::KEY_COLUMNS_MAX).contains(&key_columns)
}

fn check_repair(repair: &Repair) -> Result<()> {
    let mut named = BTreeSet::new();
    let possible = repair.tables.iter().all(|table| {
        let identity = (&table.name, table.integer_key, table.key_columns);
        check_table(&table.name, table.key_columns) && named.insert(identity)
    });
    if !possible || repair.tables.len() > limits::TABLES_MAX {
        return Err(Error::protocol("a list of tables is absurd"));
    }
    Ok(())
}

fn check_digest(digest: &DigestMessage) -> Result<()> {
    check_cursor(digest.cursor)?;
    let columns = limits::COLUMNS_MAX + limits::KEY_COLUMNS_MAX;
    let possible = |table: &TableDigest| {
        check_table(&table.name, table.key_columns)
            && table.types.len() <= 5 * columns
            && table.parts.len() == 8 * crate::store::digest::PARTS
    };
    let end = (0..=limits::SEQ_MAX).contains(&digest.end.0);
    if !end
        || ![0, 16].contains(&digest.repaired.len())
        || digest.tables.len() > limits::TABLES_MAX
        || digest.renamed.len() > limits::TABLES_MAX
        || !digest.tables.iter().all(possible)
    {
        return Err(Error::protocol("a digest is impossible"));
    }
    Ok(())
}

fn check_state(state: &State) -> Result<()> {
    let possible = |(_, stamp): &(SiteId, Stamp)| (0..=limits::STAMP_MAX).contains(&stamp.0);
    if state.caps.len() > limits::CAPS_MAX_SITES || !state.caps.iter().all(possible) {
        return Err(Error::protocol("a cap is absurd"));
    }
    state.collected.iter().try_for_each(|collected| check_collected(collected))?;
    state.vector.check()?;
    state.applied.check()?;
    check_cursor(state.cursor)?;
    if state.end < Seq(0) || state.end.0 > limits::SEQ_MAX {
        return Err(Error::protocol("a log end is absurd"));
    }
    Ok(())
}

fn check_collected(collected: &[(SiteId, Stamp)]) -> Result<()> {
    let stamps = -limits::STAMP_MS_MAX..=limits::STAMP_MAX;
    let possible = |(_, stamp): &(SiteId, Stamp)| stamps.contains(&stamp.0);
    if collected.len() > limits::VECTOR_MAX_SITES || !collected.iter().all(possible) {
        return Err(Error::protocol("what a member has forgotten is absurd"));
    }
    Ok(())
}

fn check_floors(floors: &[Floor]) -> Result<()> {
    let possible = |floor: &Floor| {
        super::bytes::is_possible_name(&floor.table)
            && (1..=limits::KEY_COLUMNS_MAX).contains(&floor.key_columns)
            && (!floor.integer_key || floor.key_columns == 1)
            && (0..=limits::FLOOR_MAX).contains(&floor.length)
    };
    if floors.len() > limits::TABLES_MAX || !floors.iter().all(possible) {
        return Err(Error::protocol("the floor of a table is absurd"));
    }
    Ok(())
}

fn check_place(place: &[u8]) -> Result<()> {
    if place.len() > limits::PLACE_MAX_BYTES {
        return Err(Error::protocol("the place of a key-order pass is too long"));
    }
    Ok(())
}

fn check_cursor(cursor: Cursor) -> Result<()> {
    let possible = Seq(0) <= cursor.seq && cursor.seq <= cursor.high;
    if !possible || cursor.high.0 > limits::SEQ_MAX || (cursor.boot == Boot(0) && cursor.seq.0 != 0)
    {
        return Err(Error::protocol("a cursor is impossible"));
    }
    Ok(())
}

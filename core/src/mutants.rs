//! Rules broken on purpose, one at a time: the simulator must notice each (house rule 21).
//!
//! Compiled in only with the feature `mutants`; otherwise [`on`] is always false.

/// A broken rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// P4: a batch is applied without folding first.
    NoFoldFirst,
    /// P5: the log is served and announced without folding first.
    NoFoldBeforeServe,
    /// P9: a pass ends where the log ended when it started.
    FixedEnd,
    /// P7: the vector moves with every chunk.
    VectorEachChunk,
    /// P10b: a push is applied without what precedes it.
    PushAcrossGap,
    /// P11: nobody is told that the end or the vector moved.
    NoAnnounce,
    /// P3: the hybrid logical clock is not stored.
    ForgetClock,
    /// K1: a key-order scan ends the pass, without the log that was written meanwhile.
    KeysEndPass,
    /// K1: the place at which a key-order pass resumes lies behind a row that was not sent.
    PlaceAhead,
    /// K2: a cursor below the horizon is served from the log.
    HorizonIgnored,
    /// P8: rows that are written set-wise leave no log entry.
    BulkUnlogged,
    /// P7b: the newest log entry is removed like any other.
    TrimNewest,
    /// Capture: rows that `REPLACE` removes through a UNIQUE index are not logged.
    ReplaceUnseen,
    /// Capture: 1 and 1.0 count as the same value.
    ClassesAlike,
    /// Capture: an UPDATE of a key does not log the delete of the old one.
    KeyChangeInserts,
    /// Fold: what a delete ended under an INTEGER key is not remembered.
    ForgetEnds,
    /// Fold: a row that is inserted again begins with causal length 1.
    RebirthShort,
    /// Join: of two rows under one INTEGER key the later one stays.
    LaterBirthStays,
    /// Join: of two base births the later join precedes.
    LaterJoinWins,
    /// Join: of two writes of a cell the earlier one wins.
    OlderCellWins,
    /// Moves: an end that is heard of later does not follow a row that moved.
    EndStaysBehind,
    /// C4: the later of two rows keeps a unique value.
    LatestStays,
    /// C3: columns that a rule couples are written one by one.
    NoCoupling,
    /// I7: what was seen is forgotten when an engine starts.
    ForgetVector,
    /// C9: rows that wait are not tried again.
    ParkedForGood,
    /// A row that stands in the way of another is not decided on with it.
    RivalsForgotten,
    /// I5: what triggers of the application do to other tracked tables stays.
    TriggersCount,
    /// H16: values of columns that are missing here are dropped.
    UnknownColumnsDropped,
    /// Parked rows are not shown to the user.
    ParkedUnlisted,
    /// A renamed column counts as one that went and one that came.
    RenameIsNew,
    /// Rows that a dropped or rebuilt table lost keep their clocks.
    DropKeepsClocks,
    /// Who started over claims nothing of what it claimed before, though all of it is back.
    ClaimsStayLost,
    /// Who started over claims what it claimed before, whether that is back or not.
    RegainedEarly,
    /// What a table held still counts as seen when it is tracked no longer.
    UntrackedClaimed,
    /// `wavesync_alter` does not park the values of a column.
    DropColumnLoses,
    /// Parked rows are not served to others.
    ParkedStay,
    /// H16: rows of unknown tables are dropped instead of parked.
    NoPark,
    /// I8: the opener takes any proof of the acceptor.
    NoAcceptorProof,
    /// I8: the acceptor takes any proof of the opener.
    NoOpenerProof,
    /// I8: the acceptor speaks to the opener as to a member before its proof.
    EarlySession,
    /// I8: a proof does not name the two peers.
    ProofWithoutPeers,
    /// I8: a proof does not name the role of the one who gives it.
    ProofWithoutRole,
    /// I8: a proof does not cover the nonces.
    ProofWithoutNonces,
    /// I8: any version is accepted, and a proof does not cover the versions.
    ProofWithoutVersions,
    /// I8: any version is accepted.
    AnyVersion,
    /// I8: a message before the handshake may be as long as a frame.
    LongHandshake,
    /// I9: the keys of a session do not depend on the nonces.
    SessionWithoutNonces,
    /// I9: the keys of a session do not depend on the peers.
    SessionWithoutPeers,
    /// I9: a seal is not looked at.
    SealUnverified,
    /// I9: a seal does not cover the counter.
    SealWithoutCounter,
    /// I9: a seal does not cover kind and flags.
    SealWithoutHead,
    /// I9: both directions of a stream have one key.
    KeyWithoutDirection,
    /// I9: all streams of a session have one key.
    KeyWithoutStream,
    /// I9: the parts of a message may be of different kinds.
    MixedParts,
    /// I9: a message may grow without bound.
    EndlessMessage,
    /// I9: a stream attaches to a session whatever session it names.
    AttachAnySession,
    /// I9: a stream attaches under a number that was used.
    AttachUsedNumber,
    /// I9: a stream attaches under a number that is this side's to give.
    AttachOwnNumber,
    /// The group key does not depend on the topic.
    KeyWithoutTopic,
    /// The key of a group does not depend on its passphrase.
    KeyWithoutPassphrase,
    /// All subkeys of a group are one.
    OneSubkey,
    /// A group may have no name.
    EmptyTopic,
    /// P17: rows of the future are dropped instead of held.
    HeldDropped,
    /// P17: the clock takes in stamps that are held.
    HeldInClock,
    /// P17: what is held is left out of the vector.
    HeldOutsideVector,
    /// P17: a release is not announced.
    SilentRelease,
    /// P3: an engine that starts goes on from its own newest stamp, whatever it had applied.
    ClockOfOwn,
    /// I3: the cells of a row that is inserted again carry the stamp of the delete before.
    ReinsertKeepsDelete,
    /// I3: the cells of an inserted row with a natural key name neither a time nor a site.
    UnsignedCells,
    /// CHECK constraints are not looked at when a row is applied.
    ChecksIgnored,
    /// C6: rows are applied without looking for their parents.
    ParentsIgnored,
    /// P1: rows of tables that are nothing but a key are not brought into the table.
    KeysUnplaced,
    /// P11: while rows are parked, the state is told again and again.
    RestlessWhileParked,
    /// P12: a log in which nothing can be new is read nevertheless.
    NoJump,
    /// Who has received no rows since the engine started never counts as caught up.
    CaughtUpByRows,
    /// Fold: an update counts as one of every column.
    EveryColumnWritten,
    /// P13: a fork of this replica's history is not seen, neither in its file nor in what peers say.
    ForkUnseen,
    /// P13: what others know of this replica's former sites is not compared.
    PastUnseen,
    /// P14: a copy of a file goes on under the site of the original.
    CloneKeepsSite,
    /// P14: what two histories wrote under one site counts as seen.
    CapUnheeded,
    /// P18: rows begin at the bottom, whatever was forgotten.
    NoFloor,
    /// P18b: deletes are forgotten while writes that do not know of them are still on their way.
    UnseenForgotten,
    /// P10e: a push of which a row lost to a delete is passed on.
    OutlivedPassedOn,
    /// P19: who has not seen what was forgotten is merged with like any other.
    StaleMerged,
    /// P20: rows that were deleted while a replica was away stay with it.
    NoAbsence,
    /// P20: rows that were written unaware of deletes begin no higher.
    NoRebase,
    /// What the user can do nothing about now is told as an error.
    WarningIsError,
    /// P10b: a push across a gap is not expected.
    GapUnexpected,
    /// P15: digests do not depend on the values of cells.
    DigestWithoutValues,
    /// P15: digests are compared whatever the two members have seen of each other.
    DigestAcrossStates,
    /// P15: a difference is read again for as long as it lasts.
    EndlessRepair,
    /// P15: what the log says has changed is not read again for digests.
    StaleDigest,
    /// P15: a row whose values are gone keeps its clock when it is read again.
    LostValuesStay,
}

#[cfg(feature = "mutants")]
thread_local! {
    static ACTIVE: std::cell::Cell<Option<Mutant>> = const { std::cell::Cell::new(None) };
}

/// Breaks one rule, or none, on this thread.
#[cfg(feature = "mutants")]
pub fn set(mutant: Option<Mutant>) {
    ACTIVE.with(|active| active.set(mutant));
}

/// Whether a rule is broken.
#[cfg(feature = "mutants")]
#[must_use]
pub fn on(mutant: Mutant) -> bool {
    ACTIVE.with(|active| active.get() == Some(mutant))
}

/// Whether a rule is broken: never.
#[cfg(not(feature = "mutants"))]
#[must_use]
pub fn on(_: Mutant) -> bool {
    false
}

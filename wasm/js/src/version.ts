//! The version of this package: two of them do not share one database.
export const VERSION = "0.1.0";

//! The only way for a name or a text to become part of SQL.
//!
//! Values are always bound; see house rule 4.

/// A quoted identifier. Fails on NUL, which SQL text cannot carry.
pub fn ident(name: &str) -> crate::Result<String> {
    if name.contains('\0') {
        return Err(crate::Error::Argument("a name may not contain a NUL character".into()));
    }
    Ok(format!("\"{}\"", name.replace('"', "\"\"")))
}

/// A comma separated list of quoted identifiers, each with a prefix such as `NEW.`.
pub fn ident_list<'a>(
    prefix: &str,
    names: impl IntoIterator<Item = &'a str>,
) -> crate::Result<String> {
    let quoted: crate::Result<Vec<String>> =
        names.into_iter().map(|name| Ok(format!("{prefix}{}", ident(name)?))).collect();
    Ok(quoted?.join(", "))
}

/// `?1, ?2, …` for `count` parameters, starting at `first`.
pub fn parameters(first: usize, count: usize) -> String {
    (first..first + count).map(|n| format!("?{n}")).collect::<Vec<_>>().join(", ")
}

/// `(?1, ?2), (?3, ?4), …`: rows of parameters.
pub fn tuples(width: usize, rows: usize) -> String {
    let tuple = |row: usize| format!("({})", parameters(1 + row * width, width));
    (0..rows).map(tuple).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_cannot_break_out() {
        assert_eq!(
            ident("a\"; DROP TABLE t; --").ok().as_deref(),
            Some("\"a\"\"; DROP TABLE t; --\"")
        );
        assert!(ident("a\0b").is_err());
    }
}

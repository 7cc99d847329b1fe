//! What looks wrong with a dump beside the one before it. Pure.

use super::{Kind, Manifest};

/// A dump below this part of its predecessor, in percent, is odd: deploys empty tables, but seldom half of everything.
const SIZE_PERCENT: u64 = 50;
/// The same for the rows of one table.
const ROWS_PERCENT: u64 = 50;
/// Smaller dumps change their size for no reason worth a word.
const SIZE_MIN_BYTES: u64 = 64 * 1024;
/// Smaller tables are emptied all the time.
const ROWS_MIN: u64 = 1000;
/// Tables named in a report.
const NAMED: usize = 5;

/// Sentences for people; none if the dump looks as its predecessor lets expect.
pub fn compare(before: &Manifest, now: &Manifest) -> Vec<String> {
    let mut found = Vec::new();
    let (tables, rows) = match now.kind {
        Kind::Postgres => ("tables", "rows"),
        Kind::Redis => ("databases", "keys"),
    };
    let (old, new) = (before.dump.raw_size, now.dump.raw_size);
    if old >= SIZE_MIN_BYTES && new < old / 100 * SIZE_PERCENT {
        found.push(format!(
            "the dump has {new} bytes, the one before it had {old}"
        ));
    }
    let gone: Vec<&str> = before
        .counts
        .iter()
        .filter(|(table, count)| **count > 0 && !now.counts.contains_key(*table))
        .map(|(table, _)| table.as_str())
        .collect();
    // PostgreSQL's rows may not have been counted; Redis' server says nothing of a database without keys.
    if !gone.is_empty() && (!now.counts.is_empty() || now.kind == Kind::Redis) {
        found.push(format!("{tables} are gone: {}", named(&gone)));
    }
    let fewer: Vec<String> = before
        .counts
        .iter()
        .filter_map(|(table, count)| Some((table, *count, *now.counts.get(table)?)))
        .filter(|(_, old, new)| *old >= ROWS_MIN && *new < *old / 100 * ROWS_PERCENT)
        .map(|(table, old, new)| format!("{table} ({new} of {old} {rows})"))
        .collect();
    if !fewer.is_empty() {
        let fewer: Vec<&str> = fewer.iter().map(String::as_str).collect();
        found.push(format!(
            "{tables} have lost most of their {rows}: {}",
            named(&fewer)
        ));
    }
    found
}

fn named(all: &[&str]) -> String {
    let shown = all[..all.len().min(NAMED)].join(", ");
    match all.len().saturating_sub(NAMED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

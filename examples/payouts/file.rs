//! The file of payouts: read whole, or refused whole.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// One line of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Payout {
    /// The business's own reference, unique in the file.
    pub(crate) reference: String,
    /// In minor units: cents, pence, yen.
    pub(crate) amount: u64,
    /// An ISO 4217 code.
    pub(crate) currency: String,
    pub(crate) beneficiary: String,
}

const COLUMNS: [&str; 4] = ["reference", "amount", "currency", "beneficiary"];
/// Providers cut longer ones, and then two references could become one.
const MAX_REFERENCE: usize = 64;
const MAX_BENEFICIARY: usize = 140;
/// How many bad rows are listed; the rest are only counted.
const LISTED: usize = 20;

/// The first `count` payouts of the file at `path`.
///
/// Nothing is returned unless the whole file is in order, rows behind `count`
/// included: a file with one bad row may well have others that only look good.
pub(crate) fn read(path: &Path, count: Option<usize>) -> Result<Vec<Payout>, FileError> {
    let unreadable = |source: csv::Error| FileError::Unreadable {
        path: path.to_owned(),
        source: source.into(),
    };
    let reader = csv::ReaderBuilder::new()
        .trim(csv::Trim::All)
        .flexible(true)
        .from_path(path)
        .map_err(unreadable)?;
    let mut payouts = parse(reader).map_err(|problem| match problem {
        Problem::Csv(source) => unreadable(source),
        Problem::Rows(rows) => FileError::Rows {
            path: path.to_owned(),
            rows,
        },
    })?;
    if let Some(count) = count {
        if count > payouts.len() {
            return Err(FileError::TooFew {
                path: path.to_owned(),
                wanted: count,
                found: payouts.len(),
            });
        }
        payouts.truncate(count);
    }
    Ok(payouts)
}

enum Problem {
    Csv(csv::Error),
    Rows(Vec<BadRow>),
}

fn parse<R: io::Read>(mut reader: csv::Reader<R>) -> Result<Vec<Payout>, Problem> {
    let header = reader.headers().map_err(Problem::Csv)?;
    if header.iter().ne(COLUMNS) {
        let reason = format!("the header must be `{}`", COLUMNS.join(","));
        return Err(Problem::Rows(vec![BadRow { line: 1, reason }]));
    }
    let mut payouts = Vec::new();
    let mut bad = Vec::new();
    let mut seen = HashMap::new();
    for record in reader.records() {
        let record = match record {
            Ok(record) => record,
            Err(error) => {
                let line = error.position().map_or(0, csv::Position::line);
                // What isn't text has no row to speak of; a broken read ends all.
                if error.is_io_error() {
                    return Err(Problem::Csv(error));
                }
                bad.push(BadRow {
                    line,
                    reason: "not valid UTF-8".to_owned(),
                });
                continue;
            }
        };
        let line = record.position().map_or(0, csv::Position::line);
        match payout(&record) {
            Err(reason) => bad.push(BadRow { line, reason }),
            Ok(payout) => match seen.insert(payout.reference.clone(), line) {
                Some(first) => bad.push(BadRow {
                    line,
                    reason: format!(
                        "reference `{}` stands already on line {first}",
                        payout.reference
                    ),
                }),
                None => payouts.push(payout),
            },
        }
    }
    if bad.is_empty() {
        Ok(payouts)
    } else {
        Err(Problem::Rows(bad))
    }
}

fn payout(record: &csv::StringRecord) -> Result<Payout, String> {
    if record.len() != COLUMNS.len() {
        return Err(format!(
            "it has {} fields, not {}",
            record.len(),
            COLUMNS.len()
        ));
    }
    let [reference, amount, currency, beneficiary] = [0, 1, 2, 3].map(|at| &record[at]);
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if reference.is_empty() || reference.len() > MAX_REFERENCE || !reference.chars().all(plain) {
        return Err(format!(
            "reference `{}` must be 1 to {MAX_REFERENCE} letters, digits, `-`, `_` or `.`",
            shorten(reference)
        ));
    }
    let minor = amount
        .parse()
        .ok()
        .filter(|minor| (1..=1_000_000_000_000).contains(minor));
    let Some(amount) = minor else {
        return Err(format!(
            "amount `{}` must be a whole number of minor units, 1 to 1000000000000",
            shorten(amount)
        ));
    };
    if currency.len() != 3 || !currency.bytes().all(|b| b.is_ascii_uppercase()) {
        return Err(format!(
            "currency `{}` must be three capital letters (ISO 4217)",
            shorten(currency)
        ));
    }
    if beneficiary.is_empty() || beneficiary.chars().count() > MAX_BENEFICIARY {
        return Err(format!(
            "beneficiary must be 1 to {MAX_BENEFICIARY} characters"
        ));
    }
    Ok(Payout {
        reference: reference.to_owned(),
        amount,
        currency: currency.to_owned(),
        beneficiary: beneficiary.to_owned(),
    })
}

/// A field's start, for a message that stays readable whatever the field.
fn shorten(field: &str) -> String {
    let mut text: String = field.chars().take(40).collect();
    if text.len() < field.len() {
        text.push('…');
    }
    text
}

/// A row that isn't a payout, and why.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BadRow {
    line: u64,
    reason: String,
}

/// Why nothing is sent.
#[derive(Debug)]
pub(crate) enum FileError {
    Unreadable {
        path: PathBuf,
        source: io::Error,
    },
    Rows {
        path: PathBuf,
        rows: Vec<BadRow>,
    },
    TooFew {
        path: PathBuf,
        wanted: usize,
        found: usize,
    },
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { path, .. } => write!(f, "can't read {}", path.display()),
            Self::TooFew {
                path,
                wanted,
                found,
            } => write!(
                f,
                "{} has {found} payouts, fewer than the {wanted} asked for",
                path.display()
            ),
            Self::Rows { path, rows } => {
                write!(
                    f,
                    "{} has {} malformed {}, so nothing was sent:",
                    path.display(),
                    rows.len(),
                    if rows.len() == 1 { "row" } else { "rows" }
                )?;
                for row in rows.iter().take(LISTED) {
                    write!(f, "\n  line {}: {}", row.line, row.reason)?;
                }
                match rows.len().checked_sub(LISTED) {
                    Some(more @ 1..) => write!(f, "\n  and {more} more"),
                    _ => Ok(()),
                }
            }
        }
    }
}

impl std::error::Error for FileError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unreadable { source, .. } => Some(source),
            Self::Rows { .. } | Self::TooFew { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Vec<Payout>, Vec<(u64, String)>> {
        let reader = csv::ReaderBuilder::new()
            .trim(csv::Trim::All)
            .flexible(true)
            .from_reader(text.as_bytes());
        parse(reader).map_err(|problem| match problem {
            Problem::Csv(error) => panic!("{error}"),
            Problem::Rows(rows) => rows.into_iter().map(|r| (r.line, r.reason)).collect(),
        })
    }

    const HEADER: &str = "reference,amount,currency,beneficiary\n";

    #[test]
    fn a_good_row_is_a_payout() {
        let payouts = parsed(&format!("{HEADER}po-1, 1250 ,EUR,\"Jansen, Els\"\n")).unwrap();
        let expected = Payout {
            reference: "po-1".to_owned(),
            amount: 1250,
            currency: "EUR".to_owned(),
            beneficiary: "Jansen, Els".to_owned(),
        };
        assert_eq!(payouts, [expected]);
    }

    #[test]
    fn every_bad_row_is_named_with_its_line_and_reason() {
        let rows = "a,1,EUR,X\n\
                    b,12.50,EUR,X\n\
                    c,1,eur,X\n\
                    a,1,EUR,X\n\
                    d,1,EUR\n\
                    e f,1,EUR,X\n\
                    g,0,EUR,X\n\
                    h,1,EUR,\n";
        let bad = parsed(&format!("{HEADER}{rows}")).unwrap_err();
        let lines: Vec<_> = bad.iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, [3, 4, 5, 6, 7, 8, 9]);
        assert!(bad[0].1.contains("amount `12.50`"));
        assert!(bad[1].1.contains("currency `eur`"));
        assert!(bad[2].1.contains("already on line 2"));
        assert!(bad[3].1.contains("3 fields"));
    }

    #[test]
    fn another_header_is_refused() {
        let bad = parsed("id,amount\n1,2\n").unwrap_err();
        assert_eq!(bad[0].0, 1);
    }
}

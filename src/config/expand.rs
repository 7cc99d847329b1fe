//! The environment, and `${VAR}` in values.
//!
//! Expansion happens on single values after the file was parsed, never on its text: a secret with a colon or a
//! quote in it cannot change the meaning of the file.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_saphyr::Spanned;

use super::error::{ConfigError, Place};
use super::load::Host;
use super::paths;
use super::store::Secret;
use super::units::{UnitError, parse_duration};

/// One value of a file as it is written, with its line.
pub(super) type Text = Spanned<String>;

/// A copy of environment variables, so that everything else is a function of its arguments.
#[derive(Clone, Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// The variables of this process. The only place that reads them; a name or value that is not UTF-8 is left out.
    pub fn of_process() -> Self {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Self(std::env::vars_os().filter_map(text).collect())
    }

    /// The value of a variable, empty or not.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// The value of a variable; `None` if it is not set or empty.
    pub(super) fn non_empty(&self, name: &str) -> Option<&str> {
        self.get(name).filter(|value| !value.is_empty())
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(variables: I) -> Self {
        Self(
            variables
                .into_iter()
                .map(|(n, v)| (n.into(), v.into()))
                .collect(),
        )
    }
}

/// Turns the values of one file into checked ones.
pub(super) struct Resolver<'a> {
    pub(super) env: &'a Environment,
    pub(super) host: &'a Host,
    /// Where the values come from: a file's line is added to it.
    origin: Place,
    /// `$VAR` expands too, as in litestream.yml.
    bare: bool,
    used: RefCell<BTreeSet<String>>,
}

impl<'a> Resolver<'a> {
    pub(super) fn new(env: &'a Environment, host: &'a Host, origin: Place, bare: bool) -> Self {
        Self {
            env,
            host,
            origin,
            bare,
            used: RefCell::default(),
        }
    }

    /// The variables that values referred to.
    pub(super) fn used(self) -> BTreeSet<String> {
        self.used.into_inner()
    }

    /// The place of a value.
    pub(super) fn at<T>(&self, value: &Spanned<T>) -> Place {
        self.line(value.referenced.line())
    }

    /// The place of a line; of everything with 0.
    pub(super) fn line(&self, line: u64) -> Place {
        match &self.origin {
            Place::File(path, _) => Place::File(path.clone(), line),
            other => other.clone(),
        }
    }

    pub(super) fn invalid(&self, key: &str, at: &Text, why: impl Into<String>) -> ConfigError {
        ConfigError::Invalid {
            place: self.at(at),
            key: key.into(),
            why: why.into(),
        }
    }

    /// The value with variables expanded. May be empty.
    pub(super) fn expand(&self, key: &str, text: &Text) -> Result<String, ConfigError> {
        if self.origin == Place::CommandLine || self.origin == Place::Environment {
            return Ok(text.value.clone());
        }
        let mut out = String::with_capacity(text.value.len());
        let mut rest = text.value.as_str();
        while let Some(start) = rest.find('$') {
            let (before, tail) = rest.split_at(start);
            out.push_str(before);
            let tail = &tail[1..];
            if let Some(literal) = tail.strip_prefix("${") {
                out.push_str("${");
                rest = literal;
            } else if let Some(inner) = tail.strip_prefix('{') {
                let Some(end) = inner.find('}') else {
                    return Err(self.invalid(
                        key,
                        text,
                        "`${` without `}` (write `$${` for a literal `${`)",
                    ));
                };
                out.push_str(&self.variable(key, text, &inner[..end])?);
                rest = &inner[end + 1..];
            } else {
                let len = if self.bare {
                    variable_name_len(tail)
                } else {
                    0
                };
                if len == 0 {
                    out.push('$');
                } else {
                    out.push_str(&self.variable(key, text, &tail[..len])?);
                }
                rest = &tail[len..];
            }
        }
        out.push_str(rest);
        Ok(out)
    }

    /// What stands between the braces: a name, or `name:-default`.
    fn variable(&self, key: &str, text: &Text, inner: &str) -> Result<String, ConfigError> {
        let (name, default) = match inner.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (inner, None),
        };
        if name.is_empty() || variable_name_len(name) != name.len() {
            return Err(self.invalid(
                key,
                text,
                "`${...}` holds no variable name (write `$${` for a literal `${`)",
            ));
        }
        self.used.borrow_mut().insert(name.to_owned());
        let found = match default {
            Some(default) => Some(self.env.non_empty(name).unwrap_or(default)),
            None => self.env.get(name),
        };
        found
            .map(str::to_owned)
            .ok_or_else(|| ConfigError::UnsetVariable {
                place: self.at(text),
                key: key.into(),
                variable: name.into(),
            })
    }

    /// The expanded value, which must not be empty.
    pub(super) fn text(&self, key: &str, text: &Text) -> Result<String, ConfigError> {
        let value = self.expand(key, text)?;
        if value.is_empty() {
            Err(self.invalid(key, text, "has no value"))
        } else {
            Ok(value)
        }
    }

    pub(super) fn optional_text(
        &self,
        key: &str,
        text: Option<&Text>,
    ) -> Result<Option<String>, ConfigError> {
        text.map(|t| self.text(key, t)).transpose()
    }

    /// A value read by `parse`.
    pub(super) fn parsed<T>(
        &self,
        key: &str,
        text: &Text,
        parse: impl FnOnce(&str) -> Result<T, UnitError>,
    ) -> Result<T, ConfigError> {
        parse(&self.text(key, text)?).map_err(|e| self.invalid(key, text, e.to_string()))
    }

    /// A duration of at least one millisecond: every timer here has that resolution.
    pub(super) fn interval(&self, key: &str, text: &Text) -> Result<Duration, ConfigError> {
        let duration = self.parsed(key, text, parse_duration)?;
        if duration < Duration::from_millis(1) {
            return Err(self.invalid(key, text, "must be longer than zero"));
        }
        Ok(duration)
    }

    pub(super) fn flag(&self, key: &str, text: &Text) -> Result<bool, ConfigError> {
        match self.text(key, text)?.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" => Ok(true),
            "false" | "no" | "off" => Ok(false),
            _ => Err(self.invalid(key, text, "must be true or false")),
        }
    }

    pub(super) fn count(&self, key: &str, text: &Text) -> Result<u32, ConfigError> {
        let value = self.text(key, text)?;
        value
            .parse()
            .map_err(|_| self.invalid(key, text, "must be a whole number, 0 or more"))
    }

    /// A secret from its key, or from the file that its `-file` key names.
    pub(super) fn secret(
        &self,
        (key, inline): (&str, Option<&Text>),
        (file_key, file): (&'static str, Option<&Text>),
    ) -> Result<Option<Secret>, ConfigError> {
        let (key, at, value) = match (inline, file) {
            (Some(inline), Some(_)) => {
                return Err(ConfigError::Invalid {
                    place: self.at(inline),
                    key: key.into(),
                    why: format!("is given here and in `{file_key}`: keep one"),
                });
            }
            (Some(inline), None) => (key, inline, self.expand(key, inline)?),
            (None, Some(file)) => {
                let path = paths::absolute(self.text(file_key, file)?.as_ref(), self.host);
                let value = std::fs::read_to_string(&path).map_err(|source| ConfigError::Read {
                    what: "the secret file",
                    path,
                    source,
                })?;
                (file_key, file, value)
            }
            (None, None) => return Ok(None),
        };
        // Secret files end in a newline that is not part of the secret.
        Secret::new(value.trim())
            .map(Some)
            .ok_or_else(|| ConfigError::EmptyCredential {
                place: self.at(at),
                key: key.into(),
            })
    }
}

fn variable_name_len(text: &str) -> usize {
    let letter = |c: char| c.is_ascii_alphabetic() || c == '_';
    if !text.starts_with(letter) {
        return 0;
    }
    text.find(|c: char| !letter(c) && !c.is_ascii_digit())
        .unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_saphyr::Location;

    fn expand(text: &str, bare: bool) -> Result<String, ConfigError> {
        let env =
            Environment::from_iter([("A", "one"), ("EMPTY", ""), ("ODD", "a: \"b\" # ${A} $A")]);
        let host = Host::for_tests("/".as_ref());
        let resolver = Resolver::new(&env, &host, Place::File("f.yml".into(), 0), bare);
        resolver.expand(
            "key",
            &Text::new(text.into(), Location::UNKNOWN, Location::UNKNOWN),
        )
    }

    #[test]
    fn variables_expand_once_and_only_in_braces() {
        for (text, expected) in [
            ("plain", "plain"),
            ("${A}", "one"),
            ("x${A}y${A}z", "xoneyonez"),
            ("${MISSING:-d}", "d"),
            ("${EMPTY:-d}", "d"),
            ("${MISSING:-}", ""),
            ("${EMPTY}", ""),
            ("${MISSING:-s3://b/p?x=1}", "s3://b/p?x=1"),
            ("${ODD}", "a: \"b\" # ${A} $A"),
            ("$A $5 $", "$A $5 $"),
            ("$${A}", "${A}"),
            ("p$$w", "p$$w"),
        ] {
            assert_eq!(
                expand(text, false).unwrap_or_else(|e| panic!("{text}: {e}")),
                expected,
                "{text}"
            );
        }
    }

    #[test]
    fn litestream_expands_bare_variables_too() {
        assert_eq!(
            expand("$A/${A}/$5", true).unwrap_or_else(|e| panic!("{e}")),
            "one/one/$5"
        );
        assert!(
            matches!(expand("$NOPE", true), Err(ConfigError::UnsetVariable { variable, .. }) if variable == "NOPE")
        );
    }

    #[test]
    fn an_unset_variable_is_named() {
        let error = expand("${NOPE}", false).expect_err("unset");
        assert_eq!(
            error.to_string(),
            "f.yml: `key` needs the environment variable NOPE, which is not set"
        );
        assert_eq!(
            error.hint().as_deref(),
            Some("set NOPE, or write ${NOPE:-default}")
        );
    }

    #[test]
    fn what_is_not_a_variable_is_refused() {
        for text in ["${A", "${}", "${a b}", "${1}", "${:-x}"] {
            assert!(
                matches!(expand(text, false), Err(ConfigError::Invalid { .. })),
                "{text}"
            );
        }
    }
}

//! `probes`: HTTP checks of the app itself.

use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};
use url::Url;

use super::build::Builder;
use super::error::{ConfigError, Place};
use super::raw::RawProbe;
use super::store::Secret;
use super::units::format_duration;

/// Two looks a minute: an outage is seen soon, and the app's log stays readable.
const DEFAULT_EVERY: Duration = Duration::from_secs(30);
/// A page of health that takes longer is no good sign.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
/// More often is load, not observation.
const MIN_EVERY: Duration = Duration::from_millis(100);
/// Each probe is a task and five series.
const MAX_PROBES: usize = 50;

/// One entry of `probes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeConfig {
    /// Unique among probes: the label `probe`.
    pub name: String,
    /// What is asked, http or https. Users, passwords and queries may be secrets: see [`Self::shown`].
    pub url: Secret,
    /// Between two beginnings.
    pub every: Duration,
    /// For everything: name, connection, TLS, answer. Not longer than `every`.
    pub timeout: Duration,
    /// Which answers are good.
    pub expect: Statuses,
}

impl ProbeConfig {
    /// The address without user, password, query and fragment.
    pub fn shown(&self) -> String {
        let Ok(mut url) = Url::parse(self.url.reveal()) else {
            return "***".into();
        };
        // Only addresses without a host refuse these, and those are not taken.
        let _ = (url.set_username(""), url.set_password(None));
        url.set_fragment(None);
        let asked = url.query().is_some();
        url.set_query(None);
        format!("{url}{}", if asked { "?***" } else { "" })
    }
}

/// Status codes, as ranges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statuses(Vec<(u16, u16)>);

impl Default for Statuses {
    /// 2xx. A redirect is not an answer of the app: it may lead to a login page or to another host.
    fn default() -> Self {
        Self(vec![(200, 299)])
    }
}

impl Statuses {
    /// `200`, `200-299`, or several of them with commas between.
    fn parse(text: &str) -> Option<Self> {
        let code = |text: &str| {
            let code: u16 = text.trim().parse().ok()?;
            (100..600).contains(&code).then_some(code)
        };
        let range = |text: &str| match text.split_once('-') {
            None => code(text).map(|c| (c, c)),
            Some((from, to)) => Some((code(from)?, code(to)?)).filter(|(from, to)| from <= to),
        };
        text.split(',')
            .map(range)
            .collect::<Option<Vec<_>>>()
            .map(Self)
    }

    /// This one is good.
    pub fn contains(&self, code: u16) -> bool {
        self.0
            .iter()
            .any(|(from, to)| (*from..=*to).contains(&code))
    }
}

impl fmt::Display for Statuses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (from, to)) in self.0.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            match from == to {
                true => write!(f, "{comma}{from}")?,
                false => write!(f, "{comma}{from}-{to}")?,
            }
        }
        Ok(())
    }
}

impl Builder<'_, '_> {
    /// An entry of `probes`.
    pub(super) fn probe_entry(&mut self, raw: RawProbe, place: &Place) -> Result<(), ConfigError> {
        let v = self.values;
        let invalid = |key: &str, why: String| ConfigError::Invalid {
            place: place.clone(),
            key: key.into(),
            why,
        };
        let url = v.secret(
            ("url", raw.url.as_ref()),
            ("url-file", raw.url_file.as_ref()),
        )?;
        let url = url.ok_or_else(|| invalid("url", "is missing: http://app:3000/up".into()))?;
        let parsed = Url::parse(url.reveal()).ok();
        if !parsed.is_some_and(|u| matches!(u.scheme(), "http" | "https") && u.has_host()) {
            let why = "must be an address that begins with http:// or https://";
            return Err(invalid("url", why.into()));
        }
        let interval = |key, text: &Option<_>, default| {
            text.as_ref().map_or(Ok(default), |t| v.interval(key, t))
        };
        let every = interval("every", &raw.every, DEFAULT_EVERY)?;
        if every < MIN_EVERY {
            return Err(invalid("every", "must be at least 100ms".into()));
        }
        let timeout = interval("timeout", &raw.timeout, DEFAULT_TIMEOUT.min(every))?;
        if timeout > every {
            let why = format!(
                "must not be longer than `every`, {}",
                format_duration(every)
            );
            return Err(invalid("timeout", why));
        }
        let expect = match &raw.expect {
            None => Statuses::default(),
            Some(text) => Statuses::parse(&v.text("expect", text)?).ok_or_else(|| {
                v.invalid(
                    "expect",
                    text,
                    "must be status codes, as 200, 200-299 or 200,401",
                )
            })?,
        };
        let name = match &raw.name {
            Some(text) => super::values::target_name(v, text)?,
            None => return Err(invalid("name", "is missing".into())),
        };
        if self.probes.iter().any(|p| p.name == name) {
            return Err(invalid(
                "name",
                format!("`{name}` is taken by another entry"),
            ));
        }
        if self.probes.len() == MAX_PROBES {
            let why = format!("more than {MAX_PROBES} are not taken: use blackbox_exporter");
            return Err(invalid("probes", why));
        }
        self.probes.push(ProbeConfig {
            name,
            url,
            every,
            timeout,
            expect,
        });
        Ok(())
    }
}

/// For `config show`, without secrets.
pub(super) fn show_probe(probe: &ProbeConfig) -> Value {
    json!({
        "name": probe.name,
        "url": probe.shown(),
        "every": format_duration(probe.every),
        "timeout": format_duration(probe.timeout),
        "expect": probe.expect.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_as_they_are_written() {
        let read = |text: &str| Statuses::parse(text).map(|s| s.to_string());
        assert_eq!(read("200").unwrap(), "200");
        assert_eq!(read("200-299, 401").unwrap(), "200-299,401");
        for bad in ["", "ok", "99", "600", "300-200", "200,", "2xx", "-1"] {
            assert_eq!(read(bad), None, "{bad}");
        }
        let statuses = Statuses::parse("200-204,401").unwrap();
        assert!(statuses.contains(200) && statuses.contains(204) && statuses.contains(401));
        assert!(!statuses.contains(205) && !statuses.contains(500));
        assert!(!Statuses::default().contains(301));
    }

    #[test]
    fn secrets_of_an_address_are_not_shown() {
        let probe = |url: &str| ProbeConfig {
            name: "app".into(),
            url: Secret::new(url).unwrap(),
            every: DEFAULT_EVERY,
            timeout: DEFAULT_TIMEOUT,
            expect: Statuses::default(),
        };
        let shown = probe("https://user:hidden@app:3000/up?token=hidden#hidden").shown();
        assert_eq!(shown, "https://app:3000/up?***");
        assert_eq!(probe("http://app/up").shown(), "http://app/up");
        assert!(!format!("{:?}", probe("http://hidden@app")).contains("hidden"));
    }
}

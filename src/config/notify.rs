//! `notify`: who is told when backups are in trouble.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use url::Url;

use super::build::Builder;
use super::error::{ConfigError, Place};
use super::expand::Text;
use super::raw::RawNotify;
use super::store::Secret;
use super::units::format_duration;
use crate::notify::Kind;

/// Long enough for a deploy or a short outage of a store.
const DEFAULT_AFTER: Duration = Duration::from_secs(120);
/// Twice a day: not forgotten, not muted.
const DEFAULT_REMIND: Duration = Duration::from_secs(12 * 3600);
/// healthchecks.io's own advice is minutes; its grace time comes on top.
const DEFAULT_EVERY: Duration = Duration::from_secs(300);

/// One entry of `notify`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotifyConfig {
    /// Unique: for logs, metrics and `lifeboat notify test`.
    pub name: String,
    /// Where to.
    pub channel: ChannelConfig,
    /// Only these; everything if `None`.
    pub events: Option<BTreeSet<Kind>>,
    /// What does not last so long is not told.
    pub after: Duration,
    /// Between reminders of what lasts.
    pub remind: Duration,
    /// Between pings that say that all is well.
    pub every: Duration,
}

/// Where messages go. Addresses of webhooks are secrets: whoever knows one may write there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChannelConfig {
    /// Slack's incoming webhooks, and what understands them.
    Slack {
        /// Address.
        url: Secret,
    },
    /// JSON, signed if there is a secret.
    Webhook {
        /// Address.
        url: Secret,
        /// Key of the signature.
        secret: Option<Secret>,
    },
    /// healthchecks.io, and what speaks its protocol.
    Healthchecks {
        /// Ping address.
        url: Secret,
    },
    /// Mail.
    Email {
        /// Through this server.
        smtp: SmtpConfig,
        /// Sender.
        from: String,
        /// Receivers, at least one.
        to: Vec<String>,
    },
}

impl ChannelConfig {
    /// The word in the configuration.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Slack { .. } => "slack",
            Self::Webhook { .. } => "webhook",
            Self::Healthchecks { .. } => "healthchecks",
            Self::Email { .. } => "email",
        }
    }

    /// What tells this channel from others, secrets included: never to be shown.
    pub fn identity(&self) -> String {
        match self {
            Self::Slack { url } | Self::Webhook { url, .. } | Self::Healthchecks { url } => {
                format!("{} {}", self.word(), url.reveal())
            }
            Self::Email { to, .. } => format!("email {}", to.join(" ")),
        }
    }
}

/// A mail server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SmtpConfig {
    /// Name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// How the connection is protected.
    pub security: SmtpSecurity,
    /// User and password.
    pub login: Option<(String, Secret)>,
}

/// How the connection to a mail server is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SmtpSecurity {
    /// TLS from the first byte.
    Tls,
    /// STARTTLS, and nothing without it.
    StartTls,
    /// Nothing: on this host only.
    None,
}

impl Builder<'_, '_> {
    /// An entry of `notify`.
    pub(super) fn notify_entry(
        &mut self,
        raw: RawNotify,
        place: &Place,
    ) -> Result<(), ConfigError> {
        let v = self.values;
        let keys = [
            ("slack", raw.slack.is_some() || raw.slack_file.is_some()),
            (
                "webhook",
                raw.webhook.is_some() || raw.webhook_file.is_some(),
            ),
            (
                "healthchecks",
                raw.healthchecks.is_some() || raw.healthchecks_file.is_some(),
            ),
            ("email", raw.email.is_some()),
        ];
        let given: Vec<&str> = keys.iter().filter(|k| k.1).map(|k| k.0).collect();
        let [kind] = given[..] else {
            let why = match given[..] {
                [] => "one of slack, webhook, healthchecks and email is needed".to_owned(),
                _ => format!(
                    "{} exclude each other: make two entries",
                    given.join(" and ")
                ),
            };
            return Err(invalid(place, "notify", why));
        };
        let only = |key: &str, set: bool, kinds: &[&str]| match set && !kinds.contains(&kind) {
            true => Err(invalid(place, key, format!("does not belong to `{kind}`"))),
            false => Ok(()),
        };
        only(
            "secret",
            raw.secret.is_some() || raw.secret_file.is_some(),
            &["webhook"],
        )?;
        only("every", raw.every.is_some(), &["healthchecks"])?;
        only("from", raw.from.is_some(), &["email"])?;
        only(
            "smtp",
            raw.smtp.is_some() || raw.smtp_file.is_some(),
            &["email"],
        )?;
        let url =
            |key: &'static str, file: &'static str, inline: &Option<Text>, path: &Option<Text>| {
                let secret = v.secret((key, inline.as_ref()), (file, path.as_ref()))?;
                let secret = secret.ok_or_else(|| invalid(place, key, "is missing".into()))?;
                checked_url(&secret).map_err(|why| invalid(place, key, why.into()))?;
                Ok::<Secret, ConfigError>(secret)
            };
        let channel = match kind {
            "slack" => ChannelConfig::Slack {
                url: url("slack", "slack-file", &raw.slack, &raw.slack_file)?,
            },
            "webhook" => ChannelConfig::Webhook {
                url: url("webhook", "webhook-file", &raw.webhook, &raw.webhook_file)?,
                secret: v.secret(
                    ("secret", raw.secret.as_ref()),
                    ("secret-file", raw.secret_file.as_ref()),
                )?,
            },
            "healthchecks" => ChannelConfig::Healthchecks {
                url: url(
                    "healthchecks",
                    "healthchecks-file",
                    &raw.healthchecks,
                    &raw.healthchecks_file,
                )?,
            },
            _ => self.email(&raw, place)?,
        };
        let interval = |key, text: &Option<Text>, default| {
            text.as_ref().map_or(Ok(default), |t| v.interval(key, t))
        };
        let name = match &raw.name {
            Some(text) => super::values::target_name(v, text)?,
            None => self.free_name(channel.word()),
        };
        if self.notify.iter().any(|n| n.name == name) {
            return Err(invalid(
                place,
                "name",
                format!("`{name}` is taken by another entry"),
            ));
        }
        let entry = NotifyConfig {
            events: self.events(raw.events)?,
            after: interval("after", &raw.after, DEFAULT_AFTER)?,
            remind: interval("remind", &raw.remind, DEFAULT_REMIND)?,
            every: interval("every", &raw.every, DEFAULT_EVERY)?,
            name,
            channel,
        };
        if self.notify.iter().any(|n| n.channel == entry.channel) {
            return Err(invalid(
                place,
                kind,
                "stands in another entry already".into(),
            ));
        }
        self.notify.push(entry);
        Ok(())
    }

    /// Without `notify` in the file, environment alone is enough.
    pub(super) fn notify_of_environment(&mut self) -> Result<(), ConfigError> {
        if !self.notify.is_empty() {
            return Ok(());
        }
        let read = |key: &'static str| self.variable(key);
        let slack = read("LIFEBOAT_NOTIFY_SLACK");
        let webhook = read("LIFEBOAT_NOTIFY_WEBHOOK");
        let secret = read("LIFEBOAT_NOTIFY_WEBHOOK_SECRET");
        let healthchecks = read("LIFEBOAT_NOTIFY_HEALTHCHECKS");
        let place = Place::Environment;
        let entries = [
            slack.map(|url| RawNotify {
                slack: Some(url),
                ..RawNotify::default()
            }),
            webhook.map(|url| RawNotify {
                webhook: Some(url),
                secret,
                ..RawNotify::default()
            }),
            healthchecks.map(|url| RawNotify {
                healthchecks: Some(url),
                ..RawNotify::default()
            }),
        ];
        for raw in entries.into_iter().flatten() {
            self.notify_entry(raw, &place)?;
        }
        Ok(())
    }

    fn free_name(&self, word: &str) -> String {
        let taken = |name: &str| self.notify.iter().any(|n| n.name == name);
        let numbered = (2..).map(|n| format!("{word}-{n}"));
        let mut names = std::iter::once(word.to_owned()).chain(numbered);
        names.find(|n| !taken(n)).unwrap_or_default()
    }

    fn events(&self, raw: Option<Vec<Text>>) -> Result<Option<BTreeSet<Kind>>, ConfigError> {
        let Some(raw) = raw else { return Ok(None) };
        let mut kinds = BTreeSet::new();
        for text in &raw {
            let word = self.values.text("events", text)?;
            let known = || Kind::ALL.map(Kind::word).join(", ");
            kinds.insert(Kind::of_word(&word).ok_or_else(|| {
                self.values
                    .invalid("events", text, format!("`{word}` is none of {}", known()))
            })?);
        }
        Ok(Some(kinds))
    }

    fn email(&self, raw: &RawNotify, place: &Place) -> Result<ChannelConfig, ConfigError> {
        let v = self.values;
        let addresses = |key: &str, text: &Option<Text>| {
            let Some(text) = text else {
                return Err(invalid(place, key, "is missing".into()));
            };
            let value = v.text(key, text)?;
            let all: Vec<String> = value.split(',').map(|a| a.trim().to_owned()).collect();
            match all
                .iter()
                .all(|a| a.parse::<lettre::message::Mailbox>().is_ok())
            {
                true => Ok(all),
                false => Err(v.invalid(key, text, "must be an address, as ops@example.com")),
            }
        };
        let to = addresses("email", &raw.email)?;
        let from = addresses("from", &raw.from)?;
        let [from] = &from[..] else {
            return Err(invalid(place, "from", "must be one address".into()));
        };
        let from = from.clone();
        let url = v.secret(
            ("smtp", raw.smtp.as_ref()),
            ("smtp-file", raw.smtp_file.as_ref()),
        )?;
        let url = url.ok_or_else(|| {
            invalid(
                place,
                "smtp",
                "is missing: smtp://USER:PASSWORD@HOST, or smtps://".into(),
            )
        })?;
        let smtp = smtp_of(&url).map_err(|why| invalid(place, "smtp", why.into()))?;
        Ok(ChannelConfig::Email { smtp, from, to })
    }
}

fn invalid(place: &Place, key: &str, why: String) -> ConfigError {
    ConfigError::Invalid {
        place: place.clone(),
        key: key.into(),
        why,
    }
}

fn checked_url(secret: &Secret) -> Result<(), &'static str> {
    let wrong = "must be an address that begins with https:// (or http://)";
    let url = Url::parse(secret.reveal()).map_err(|_| wrong)?;
    match (url.scheme(), url.host()) {
        ("http" | "https", Some(_)) => Ok(()),
        _ => Err(wrong),
    }
}

fn smtp_of(secret: &Secret) -> Result<SmtpConfig, &'static str> {
    let url = Url::parse(secret.reveal())
        .map_err(|_| "must be smtp://USER:PASSWORD@HOST:PORT, or smtps://")?;
    let host = url.host_str().ok_or("names no host")?.to_owned();
    let local = ["localhost", "127.0.0.1", "[::1]"].contains(&host.as_str());
    let (security, port) = match (url.scheme(), url.query()) {
        ("smtps", None) => (SmtpSecurity::Tls, 465),
        ("smtp", None) if local => (SmtpSecurity::None, 25),
        ("smtp", None | Some("tls=required")) => (SmtpSecurity::StartTls, 587),
        ("smtp", Some("tls=none")) => (SmtpSecurity::None, 25),
        ("smtp", Some(_)) => return Err("takes ?tls=required or ?tls=none"),
        _ => return Err("must begin with smtp:// or smtps://"),
    };
    let decoded = |text: &str| {
        let text = percent_encoding::percent_decode_str(text).decode_utf8();
        let text = text.map_err(|_| "has a user or password that is not UTF-8")?;
        Ok::<String, &'static str>(text.into_owned())
    };
    let login = match (url.username(), url.password()) {
        ("", None) => None,
        (user, Some(password)) if !user.is_empty() => {
            let password = Secret::new(decoded(password)?).ok_or("has an empty password")?;
            Some((decoded(user)?, password))
        }
        _ => return Err("needs user and password, or neither"),
    };
    if login.is_some() && security == SmtpSecurity::None && !local {
        return Err("would send the password in clear text: use smtps://, or leave ?tls=none out");
    }
    Ok(SmtpConfig {
        host,
        port: url.port().unwrap_or(port),
        security,
        login,
    })
}

/// For `config show`, without secrets.
pub(super) fn show_notify(notify: &NotifyConfig) -> Value {
    let host = |url: &Secret| {
        let url = Url::parse(url.reveal()).ok();
        let host = url.as_ref().and_then(Url::host_str).unwrap_or_default();
        format!("{host}/***")
    };
    let mut shown = json!({
        "name": notify.name,
        "events": notify.events.as_ref().map_or_else(
            || json!("all"),
            |kinds| json!(kinds.iter().map(|k| k.word()).collect::<Vec<_>>()),
        ),
        "after": format_duration(notify.after),
        "remind": format_duration(notify.remind),
    });
    match &notify.channel {
        ChannelConfig::Slack { url } => shown["slack"] = json!(host(url)),
        ChannelConfig::Webhook { url, secret } => {
            shown["webhook"] = json!(host(url));
            shown["secret"] = json!(secret.as_ref().map(ToString::to_string));
        }
        ChannelConfig::Healthchecks { url } => {
            shown["healthchecks"] = json!(host(url));
            shown["every"] = json!(format_duration(notify.every));
        }
        ChannelConfig::Email { smtp, from, to } => {
            shown["email"] = json!(to);
            shown["from"] = json!(from);
            shown["smtp"] = json!(format!("{}:{}", smtp.host, smtp.port));
        }
    }
    shown
}

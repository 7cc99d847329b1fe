//! One delivery: HTTP by reqwest, mail by lettre. Nothing here repeats anything.

use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use lettre::message::Mailbox;
use lettre::{AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor};
use reqwest::header::CONTENT_TYPE;
use sha2::Sha256;
use thiserror::Error;

use super::event::Batch;
use super::message;
use crate::config::{ChannelConfig, NotifyConfig, Secret, SmtpConfig, SmtpSecurity};
use crate::types::Millis;

/// A receiver that takes longer is treated as one that does not answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why something was not delivered. Never holds an address: those are secrets.
#[derive(Debug, Error)]
pub enum SendError {
    /// Another status than 2xx.
    #[error("the receiver answered {0}")]
    Status(u16),
    /// No answer.
    #[error("no answer: {0}")]
    Transport(String),
    /// Mail.
    #[error("the mail server did not take it: {0}")]
    Mail(String),
    /// The client could not be made.
    #[error("cannot begin: {0}")]
    Client(String),
}

impl SendError {
    /// The receiver will not take this message, whatever becomes of others.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Status(400 | 413 | 422))
    }

    /// The next step.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Status(400 | 401 | 403 | 404 | 410) => {
                "is the address still valid? make a new one and put it into the configuration"
            }
            Self::Status(_) => "the receiver has trouble; it is tried again",
            Self::Transport(_) => {
                "can this host reach the receiver? check name, port, proxy and firewall"
            }
            Self::Mail(_) => {
                "check `smtp`: host, port, user and password, and whether the sender may send as `from`"
            }
            Self::Client(_) => "report it with the log",
        }
    }
}

/// What healthchecks.io understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ping {
    /// A run begins.
    Start,
    /// All is well.
    Success,
    /// Something is wrong.
    Fail,
    /// Only to be kept.
    Log,
}

impl Ping {
    fn path(self) -> &'static str {
        match self {
            Self::Start => "/start",
            Self::Success => "",
            Self::Fail => "/fail",
            Self::Log => "/log",
        }
    }
}

/// Where messages of one channel go.
#[derive(Clone, Debug)]
pub struct Sender {
    config: ChannelConfig,
    instance: String,
    http: reqwest::Client,
}

impl Sender {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// [`SendError::Client`] if TLS cannot be set up.
    pub fn new(config: &NotifyConfig, instance: &str) -> Result<Self, SendError> {
        let http = reqwest::Client::builder()
            .timeout(TIMEOUT)
            .connect_timeout(TIMEOUT / 2)
            // An address that moved is a secret that leaks, or a form that swallows.
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("lifeboat/", env!("CARGO_PKG_VERSION")))
            .pool_max_idle_per_host(0)
            .build()
            .map_err(|e| SendError::Client(reason(e)))?;
        Ok(Self {
            config: config.channel.clone(),
            instance: instance.to_owned(),
            http,
        })
    }

    /// It wants pings, too.
    pub fn pings(&self) -> bool {
        matches!(self.config, ChannelConfig::Healthchecks { .. })
    }

    /// Delivers a batch, once.
    ///
    /// # Errors
    /// Whatever keeps it from arriving, for sure or perhaps.
    pub async fn send(&self, batch: &Batch, now: Millis) -> Result<(), SendError> {
        match &self.config {
            ChannelConfig::Slack { url } => {
                let body = message::slack(batch, &self.instance).to_string();
                self.post(url.reveal(), "application/json", body, &[]).await
            }
            ChannelConfig::Webhook { url, secret } => {
                let body = message::webhook(batch, &self.instance).to_string();
                let seconds = (now.0 / 1000).to_string();
                let signature = secret.as_ref().map(|s| sign(s, &seconds, &body));
                let mut headers = vec![("X-Lifeboat-Timestamp", seconds)];
                headers.extend(signature.map(|s| ("X-Lifeboat-Signature", format!("sha256={s}"))));
                self.post(url.reveal(), "application/json", body, &headers)
                    .await
            }
            ChannelConfig::Healthchecks { .. } => {
                let bad = batch.events.iter().any(super::event::Event::is_bad);
                let ping = if bad { Ping::Fail } else { Ping::Log };
                self.ping(ping, message::text(batch, &self.instance)).await
            }
            ChannelConfig::Email { smtp, from, to } => {
                let subject = message::subject(batch, &self.instance);
                let text = message::text(batch, &self.instance);
                mail(smtp, from, to, (subject, text)).await
            }
        }
    }

    /// Pings; nothing on channels that want none.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn ping(&self, ping: Ping, text: String) -> Result<(), SendError> {
        let ChannelConfig::Healthchecks { url } = &self.config else {
            return Ok(());
        };
        let url = format!("{}{}", url.reveal().trim_end_matches('/'), ping.path());
        self.post(&url, "text/plain; charset=utf-8", text, &[])
            .await
    }

    async fn post(
        &self,
        url: &str,
        content: &str,
        body: String,
        headers: &[(&str, String)],
    ) -> Result<(), SendError> {
        let mut request = self.http.post(url).header(CONTENT_TYPE, content).body(body);
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let answer = request
            .send()
            .await
            .map_err(|e| SendError::Transport(reason(e)))?;
        match answer.status() {
            status if status.is_success() => Ok(()),
            status => Err(SendError::Status(status.as_u16())),
        }
    }
}

/// HMAC-SHA256 of `<timestamp>.<body>`, hexadecimal: the time is signed too, so that a copy cannot be sent again later.
pub fn sign(secret: &Secret, seconds: &str, body: &str) -> String {
    let mac = <Hmac<Sha256> as KeyInit>::new_from_slice(secret.reveal().as_bytes());
    // HMAC takes keys of any length.
    let Ok(mut mac) = mac else {
        return String::new();
    };
    mac.update(seconds.as_bytes());
    mac.update(b".");
    mac.update(body.as_bytes());
    hex::encode(mac.finalize().into_bytes())
}

/// The whole chain of causes, without the address.
fn reason(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut words = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        words.push_str(&format!(": {error}"));
        cause = error.source();
    }
    words
}

async fn mail(
    smtp: &SmtpConfig,
    from: &str,
    to: &[String],
    (subject, text): (String, String),
) -> Result<(), SendError> {
    let failed = |e: &dyn std::fmt::Display| SendError::Mail(e.to_string());
    let mailbox = |text: &str| text.parse::<Mailbox>();
    let mut message = Message::builder()
        .from(mailbox(from).map_err(|e| failed(&e))?)
        .subject(subject)
        .header(lettre::message::header::ContentType::TEXT_PLAIN);
    for one in to {
        message = message.to(mailbox(one).map_err(|e| failed(&e))?);
    }
    let message = message.body(text).map_err(|e| failed(&e))?;
    let builder = match smtp.security {
        SmtpSecurity::Tls => AsyncSmtpTransport::<Tokio1Executor>::relay(&smtp.host),
        SmtpSecurity::StartTls => AsyncSmtpTransport::<Tokio1Executor>::starttls_relay(&smtp.host),
        SmtpSecurity::None => Ok(AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(
            &smtp.host,
        )),
    };
    let mut builder = builder
        .map_err(|e| failed(&e))?
        .port(smtp.port)
        .timeout(Some(TIMEOUT));
    if let Some((user, password)) = &smtp.login {
        let login = (user.clone(), password.reveal().to_owned());
        builder = builder.credentials(login.into());
    }
    // Its own bound is for each step.
    match tokio::time::timeout(TIMEOUT * 2, builder.build().send(message)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(e)) => Err(failed(&e)),
        Err(_) => Err(SendError::Mail("it took too long".into())),
    }
}

//! Asks an address of the app as its users' browsers would, once.
//!
//! Nothing is taken from elsewhere: no proxy of the environment, no redirect is followed, no connection is used again. Names, connections,
//! TLS and the answer are thus all tried each time, within one limit. Of the body at most `BODY_LIMIT` is read, and none is kept.

use std::time::{Duration, Instant};

use reqwest::header::LOCATION;
use reqwest::tls::TlsInfo;
use url::Url;
use x509_cert::Certificate;
use x509_cert::der::Decode;

use crate::config::{ProbeConfig, Secret, format_duration};
use crate::types::Millis;

/// A page of health is a few bytes; of more, one MiB shows well enough that the app answers.
const BODY_LIMIT: usize = 1 << 20;

/// What came of one request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// Status code; `None` without an answer.
    pub status: Option<u16>,
    /// From the first look-up to the last byte, in seconds.
    pub seconds: f64,
    /// End of the certificate that the server showed and that was found good; `None` without TLS.
    pub certificate_expires: Option<Millis>,
    /// Why it is not what was expected, in words without secrets; `None` if it is.
    pub failure: Option<String>,
    /// What to do about it.
    pub hint: Option<String>,
}

/// Asks one address.
#[derive(Debug)]
pub struct Prober {
    config: ProbeConfig,
    client: reqwest::Client,
}

impl Prober {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// In words, if TLS cannot be set up.
    pub fn new(config: &ProbeConfig) -> Result<Self, String> {
        let client = reqwest::Client::builder()
            .timeout(config.timeout)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .user_agent(concat!("lifeboat/", env!("CARGO_PKG_VERSION")))
            .pool_max_idle_per_host(0)
            .tls_info(true)
            .build()
            .map_err(words)?;
        Ok(Self {
            config: config.clone(),
            client,
        })
    }

    /// Asks once; never longer than the timeout.
    pub async fn probe(&self) -> Answer {
        let begun = Instant::now();
        let mut answer = Answer::default();
        // The client's own limit does not hold for everything that a resolver does.
        let asked = tokio::time::timeout(self.config.timeout, self.ask(&mut answer)).await;
        let failure = match asked {
            Ok(Ok(())) => None,
            Ok(Err(error)) if error.is_timeout() => Some(self.late()),
            Ok(Err(error)) => Some(words(error)),
            Err(_) => Some(self.late()),
        };
        answer.seconds = begun.elapsed().as_secs_f64();
        if let Some(failure) = failure {
            let hint = match answer.status {
                Some(_) => "the answer began and did not end: look at the app's log",
                None if failure.contains("certificate") => {
                    "renew it; of an authority of your own, name the file in SSL_CERT_FILE"
                }
                None => {
                    "is it running, and is the address right as seen from Lifeboat's container? Look at the app's log"
                }
            };
            answer.failure = Some(failure);
            answer.hint = Some(hint.into());
        }
        answer
    }

    fn late(&self) -> String {
        format!(
            "no whole answer within {}",
            format_duration(self.config.timeout)
        )
    }

    async fn ask(&self, answer: &mut Answer) -> Result<(), reqwest::Error> {
        let mut response = self.client.get(self.config.url.reveal()).send().await?;
        let status = response.status().as_u16();
        answer.status = Some(status);
        let tls = response.extensions().get::<TlsInfo>();
        answer.certificate_expires = tls.and_then(TlsInfo::peer_certificate).and_then(expires);
        let location = response.headers().get(LOCATION);
        let location = location.and_then(|l| l.to_str().ok()).map(str::to_owned);
        let mut read = 0;
        while let Some(chunk) = response.chunk().await? {
            read += chunk.len();
            if read > BODY_LIMIT {
                break;
            }
        }
        if !self.config.expect.contains(status) {
            let expect = &self.config.expect;
            answer.failure = Some(format!("it answered {status} instead of {expect}"));
            answer.hint = Some(match location.filter(|_| (300..400).contains(&status)) {
                Some(location) => self.redirected(&location, status),
                None => "look at the app's log".into(),
            });
        }
        Ok(())
    }

    /// Where a redirect leads, without what may be secret in it.
    fn redirected(&self, location: &str, status: u16) -> String {
        let base = Url::parse(self.config.url.reveal()).ok();
        let to = base.and_then(|b| b.join(location).ok());
        let to = to.and_then(|u| Secret::new(u.as_str())).map(|url| {
            let shown = ProbeConfig {
                url,
                ..self.config.clone()
            };
            shown.shown()
        });
        format!(
            "it redirects to {}; probe that address, or take {status} into `expect`",
            to.as_deref().unwrap_or("an address that cannot be read")
        )
    }
}

/// `notAfter` of a certificate in DER.
fn expires(der: &[u8]) -> Option<Millis> {
    let certificate = Certificate::from_der(der).ok()?;
    let end = certificate.tbs_certificate().validity().not_after;
    let end: Duration = end.to_unix_duration();
    i64::try_from(end.as_millis()).ok().map(Millis)
}

/// The whole chain of causes, without the address.
fn words(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut words = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        words.push_str(&format!(": {error}"));
        cause = error.source();
    }
    words
}

//! What an S3 bucket does to objects by itself: versions, locks, rules that delete or freeze by age. Read only; object_store has no such
//! requests, but signs them.

use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri};
use object_store::ClientOptions;
use object_store::aws::{AwsAuthorizer, AwsCredentialProvider};
use object_store::client::{HttpConnector, HttpRequestBody, ReqwestConnector};
use serde::Deserialize;
use url::Url;

/// Answers are a few kilobytes; a bucket has 1,000 rules at most.
const ANSWER_MAX_BYTES: usize = 1 << 20;

/// How a bucket is asked about itself.
#[derive(Clone)]
pub(super) struct Bucket {
    pub(super) url: Url,
    pub(super) region: String,
    pub(super) credentials: AwsCredentialProvider,
    pub(super) options: ClientOptions,
}

/// One answer of a bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer<T> {
    /// What it is set to.
    Known(T),
    /// The keys may not ask.
    Denied,
    /// The server does not have the request, or did not answer as S3 does. Without secrets.
    Unknown(String),
}

/// What a bucket does to objects by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketRules {
    /// Whether deleted and overwritten objects stay as old versions.
    pub versioning: Answer<bool>,
    /// For how long each object is locked by default, as `COMPLIANCE, 30 days`.
    pub lock: Answer<Option<String>>,
    /// Rules that are switched on.
    pub lifecycle: Answer<Vec<Rule>>,
}

/// A lifecycle rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its name.
    pub id: String,
    /// Keys that it is about begin so; empty: all.
    pub prefix: String,
    /// Only objects with certain tags. Lifeboat's have none.
    pub tagged: bool,
    /// Objects are deleted then, as `after 30 days`.
    pub deletes: Option<String>,
    /// Objects move to this storage class, which does not give them back at once.
    pub freezes: Option<String>,
    /// Old versions are deleted.
    pub old_versions: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct VersioningXml {
    status: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct LockXml {
    object_lock_enabled: Option<String>,
    rule: Option<LockRuleXml>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct LockRuleXml {
    default_retention: Option<RetentionXml>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RetentionXml {
    mode: Option<String>,
    days: Option<u32>,
    years: Option<u32>,
}

#[derive(Deserialize)]
struct LifecycleXml {
    #[serde(rename = "Rule", default)]
    rules: Vec<RuleXml>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RuleXml {
    #[serde(rename = "ID")]
    id: Option<String>,
    status: Option<String>,
    prefix: Option<String>,
    filter: Option<FilterXml>,
    expiration: Option<WhenXml>,
    #[serde(rename = "Transition", default)]
    transitions: Vec<WhenXml>,
    noncurrent_version_expiration: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct FilterXml {
    prefix: Option<String>,
    #[serde(rename = "Tag", default)]
    tags: Vec<serde::de::IgnoredAny>,
    and: Option<Box<FilterXml>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct WhenXml {
    days: Option<u32>,
    date: Option<String>,
    storage_class: Option<String>,
}

impl WhenXml {
    /// `None`: it only removes the markers of deleted versions.
    fn text(&self) -> Option<String> {
        match (self.days, &self.date) {
            (Some(days), _) => Some(format!("after {days} days")),
            (None, Some(date)) => Some(format!("on {date}")),
            (None, None) => None,
        }
    }
}

fn rule(xml: RuleXml) -> Rule {
    let filter = xml.filter.map(|f| match f.and {
        Some(and) => *and,
        None => f,
    });
    let (filter_prefix, tagged) = match filter {
        Some(f) => (f.prefix, !f.tags.is_empty()),
        None => (None, false),
    };
    let frozen = |when: &WhenXml| {
        let class = when.storage_class.as_deref()?;
        // GLACIER_IR gives objects back at once.
        let freezes = matches!(class, "GLACIER" | "DEEP_ARCHIVE");
        freezes.then(|| format!("{class} {}", when.text().unwrap_or_default()))
    };
    Rule {
        id: xml.id.unwrap_or_default(),
        prefix: xml.prefix.or(filter_prefix).unwrap_or_default(),
        tagged,
        deletes: xml.expiration.as_ref().and_then(WhenXml::text),
        freezes: xml.transitions.iter().find_map(frozen),
        old_versions: xml.noncurrent_version_expiration.is_some(),
    }
}

fn versioning(xml: &str) -> Result<bool, quick_xml::DeError> {
    let answer: VersioningXml = quick_xml::de::from_str(xml)?;
    Ok(answer.status.as_deref() == Some("Enabled"))
}

fn lock(xml: &str) -> Result<Option<String>, quick_xml::DeError> {
    let answer: LockXml = quick_xml::de::from_str(xml)?;
    if answer.object_lock_enabled.as_deref() != Some("Enabled") {
        return Ok(None);
    }
    let retention = answer.rule.and_then(|r| r.default_retention);
    Ok(retention.map(|r| {
        let span = match (r.days, r.years) {
            (Some(days), _) => format!("{days} days"),
            (None, years) => format!("{} years", years.unwrap_or(0)),
        };
        format!("{}, {span}", r.mode.unwrap_or_default())
    }))
}

fn lifecycle(xml: &str) -> Result<Vec<Rule>, quick_xml::DeError> {
    let answer: LifecycleXml = quick_xml::de::from_str(xml)?;
    let on = |r: &RuleXml| r.status.as_deref() == Some("Enabled");
    Ok(answer.rules.into_iter().filter(on).map(rule).collect())
}

impl<T> Answer<T> {
    fn reason(&mut self) -> Option<&mut String> {
        match self {
            Self::Unknown(reason) => Some(reason),
            _ => None,
        }
    }
}

impl BucketRules {
    /// Words of servers and clients.
    pub(super) fn reasons(&mut self) -> impl Iterator<Item = &mut String> {
        let all = [
            self.versioning.reason(),
            self.lock.reason(),
            self.lifecycle.reason(),
        ];
        all.into_iter().flatten()
    }
}

impl Bucket {
    /// Three requests.
    pub(super) async fn rules(&self) -> BucketRules {
        BucketRules {
            versioning: self.ask("versioning", "", versioning).await,
            lock: self
                .ask("object-lock", "ObjectLockConfigurationNotFoundError", lock)
                .await,
            lifecycle: self
                .ask("lifecycle", "NoSuchLifecycleConfiguration", lifecycle)
                .await,
        }
    }

    /// `none`: the code of the error that says that there is no such setting.
    async fn ask<T: Default>(
        &self,
        what: &str,
        none: &str,
        parse: impl Fn(&str) -> Result<T, quick_xml::DeError>,
    ) -> Answer<T> {
        let (status, body) = match self.get(what).await {
            Ok(answer) => answer,
            Err(error) => return Answer::Unknown(error.to_string()),
        };
        let text = String::from_utf8_lossy(&body);
        match status {
            StatusCode::OK => match parse(&text) {
                Ok(found) => Answer::Known(found),
                Err(error) => Answer::Unknown(error.to_string()),
            },
            StatusCode::NOT_FOUND if !none.is_empty() && text.contains(none) => {
                Answer::Known(T::default())
            }
            StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => Answer::Denied,
            other => Answer::Unknown(format!("the server answers {}", other.as_u16())),
        }
    }

    async fn get(&self, what: &str) -> Result<(StatusCode, Bytes), Box<dyn std::error::Error>> {
        let mut url = self.url.clone();
        url.set_query(Some(&format!("{what}=")));
        let mut request = Request::builder()
            .method(Method::GET)
            .uri(url.as_str().parse::<Uri>()?)
            .body(HttpRequestBody::empty())?;
        let credential = self.credentials.get_credential().await?;
        AwsAuthorizer::new(&credential, "s3", &self.region).try_authorize(&mut request, None)?;
        let client = ReqwestConnector::default().connect(&self.options)?;
        let response = client.execute(request).await?;
        let status = response.status();
        let body = response.into_body().bytes().await?;
        if body.len() > ANSWER_MAX_BYTES {
            return Err("an answer of more than a megabyte".into());
        }
        Ok((status, body))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_and_locks() {
        let ns = "xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"";
        let text = |inner: &str| {
            format!(
                "<?xml version=\"1.0\"?><VersioningConfiguration {ns}>{inner}</VersioningConfiguration>"
            )
        };
        assert!(versioning(&text("<Status>Enabled</Status>")).unwrap());
        assert!(!versioning(&text("<Status>Suspended</Status>")).unwrap());
        assert!(!versioning(&text("")).unwrap());
        let text = |inner: &str| {
            format!(
                "<ObjectLockConfiguration {ns}><ObjectLockEnabled>Enabled</ObjectLockEnabled>{inner}</ObjectLockConfiguration>"
            )
        };
        let rule = "<Rule><DefaultRetention><Mode>COMPLIANCE</Mode><Days>30</Days></DefaultRetention></Rule>";
        assert_eq!(
            lock(&text(rule)).unwrap().as_deref(),
            Some("COMPLIANCE, 30 days")
        );
        assert_eq!(lock(&text("")).unwrap(), None);
        assert!(lifecycle("no xml at all").is_err());
    }

    #[test]
    fn rules_as_providers_write_them() {
        let xml = "<LifecycleConfiguration>
            <Rule><ID>old</ID><Status>Enabled</Status><Prefix>myapp/</Prefix><Expiration><Days>30</Days></Expiration></Rule>
            <Rule><ID>off</ID><Status>Disabled</Status><Filter/><Expiration><Days>1</Days></Expiration></Rule>
            <Rule><ID>tagged</ID><Status>Enabled</Status><Filter><And><Prefix>x/</Prefix><Tag><Key>a</Key><Value>b</Value></Tag></And></Filter>
              <Expiration><Days>2</Days></Expiration></Rule>
            <Rule><ID>cold</ID><Status>Enabled</Status><Filter><Prefix></Prefix></Filter>
              <Transition><Days>10</Days><StorageClass>STANDARD_IA</StorageClass></Transition>
              <Transition><Days>90</Days><StorageClass>DEEP_ARCHIVE</StorageClass></Transition></Rule>
            <Rule><ID>sweep</ID><Status>Enabled</Status><Filter/><NoncurrentVersionExpiration><NoncurrentDays>30</NoncurrentDays></NoncurrentVersionExpiration>
              <Expiration><ExpiredObjectDeleteMarker>true</ExpiredObjectDeleteMarker></Expiration>
              <AbortIncompleteMultipartUpload><DaysAfterInitiation>7</DaysAfterInitiation></AbortIncompleteMultipartUpload></Rule>
            </LifecycleConfiguration>";
        let rules = lifecycle(xml).unwrap();
        let ids: Vec<&str> = rules.iter().map(|r| r.id.as_str()).collect();
        assert_eq!(ids, ["old", "tagged", "cold", "sweep"]);
        assert_eq!(rules[0].prefix, "myapp/");
        assert_eq!(rules[0].deletes.as_deref(), Some("after 30 days"));
        assert!(rules[1].tagged && rules[1].prefix == "x/");
        assert_eq!(
            rules[2].freezes.as_deref(),
            Some("DEEP_ARCHIVE after 90 days")
        );
        assert_eq!(rules[2].deletes, None);
        assert!(rules[3].old_versions && rules[3].deletes.is_none());
    }
}

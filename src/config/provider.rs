//! Providers that Litestream knows by the host of an `s3://` URL. Pure.

use url::Url;

use super::store::StoreParts;

/// `s3://BUCKET.nyc3.digitaloceanspaces.com/path` and its like: Litestream takes endpoint and region from the host.
pub(super) fn provider_of_url(parts: &mut StoreParts) {
    let Ok(mut url) = Url::parse(&parts.url) else {
        return;
    };
    let Some(provider) = url.host_str().and_then(provider_of_host) else {
        return;
    };
    if url.set_host(Some(&provider.bucket)).is_ok() {
        parts.url = url.into();
        parts.region = provider.region;
        parts.endpoint = provider.endpoint;
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Provider {
    bucket: String,
    region: Option<String>,
    endpoint: Option<String>,
}

fn provider_of_host(host: &str) -> Option<Provider> {
    let https = |host: String| Some(format!("https://{host}"));
    for domain in ["digitaloceanspaces.com", "linodeobjects.com"] {
        if let Some(front) = host.strip_suffix(domain).and_then(|f| f.strip_suffix('.')) {
            let (bucket, region) = front.rsplit_once('.')?;
            let endpoint = https(format!("{region}.{domain}"));
            return Some(Provider {
                bucket: bucket.into(),
                region: Some(region.into()),
                endpoint,
            });
        }
    }
    for domain in [
        "backblazeb2.com",
        "scw.cloud",
        "filebase.com",
        "amazonaws.com",
    ] {
        let Some(front) = host.strip_suffix(domain).and_then(|f| f.strip_suffix('.')) else {
            continue;
        };
        let (bucket, region) = match front.strip_suffix(".s3") {
            Some(bucket) => (bucket, None),
            None => front
                .rsplit_once('.')
                .and_then(|(b, region)| Some((b.strip_suffix(".s3")?, Some(region))))?,
        };
        let endpoint = match (domain, region) {
            ("amazonaws.com", _) => None,
            (_, Some(region)) => https(format!("s3.{region}.{domain}")),
            (_, None) => https(format!("s3.{domain}")),
        };
        return Some(Provider {
            bucket: bucket.into(),
            region: region.map(str::to_owned),
            endpoint,
        });
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn providers_by_host() {
        let provider = |host| provider_of_host(host).map(|p| (p.bucket, p.region, p.endpoint));
        let some = |b: &str, r: Option<&str>, e: Option<&str>| {
            Some((b.to_owned(), r.map(Into::into), e.map(Into::into)))
        };
        for (host, expected) in [
            (
                "b.nyc3.digitaloceanspaces.com",
                some(
                    "b",
                    Some("nyc3"),
                    Some("https://nyc3.digitaloceanspaces.com"),
                ),
            ),
            (
                "b.s3.us-west-000.backblazeb2.com",
                some(
                    "b",
                    Some("us-west-000"),
                    Some("https://s3.us-west-000.backblazeb2.com"),
                ),
            ),
            (
                "b.c.s3.eu-west-1.amazonaws.com",
                some("b.c", Some("eu-west-1"), None),
            ),
            ("b.s3.amazonaws.com", some("b", None, None)),
            (
                "b.s3.filebase.com",
                some("b", None, Some("https://s3.filebase.com")),
            ),
            (
                "b.s3.fr-par.scw.cloud",
                some("b", Some("fr-par"), Some("https://s3.fr-par.scw.cloud")),
            ),
            ("bucket", None),
            ("my.bucket", None),
            ("nyc3.digitaloceanspaces.com", None),
        ] {
            assert_eq!(provider(host), expected, "{host}");
        }
    }
}

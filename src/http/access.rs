//! Who may see more than that the process works. Without a token in the configuration everybody may read what is not sensitive.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use super::Shared;
use crate::config::Secret;

/// What an answer may say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sees {
    /// Names, states, times and amounts.
    Outside,
    /// Paths, stores, reasons, labels and commands, too.
    Everything,
}

/// Refuses whoever has not the token, if there is one.
pub(super) async fn guard(State(app): State<Shared>, request: Request, next: Next) -> Response {
    match sees(app.config.http_token.as_ref(), request.headers()) {
        None => {
            let ask = [(
                header::WWW_AUTHENTICATE,
                "Basic realm=\"Lifeboat\", charset=\"UTF-8\"",
            )];
            let words =
                "a token is needed: `Authorization: Bearer TOKEN`, or the token as password\n";
            (StatusCode::UNAUTHORIZED, ask, words).into_response()
        }
        Some(sees) => {
            let mut request = request;
            request.extensions_mut().insert(sees);
            next.run(request).await
        }
    }
}

/// `None`: a token is needed and this is not it.
pub(super) fn sees(token: Option<&Secret>, headers: &HeaderMap) -> Option<Sees> {
    let Some(token) = token else {
        return Some(Sees::Outside);
    };
    let given = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let given = match given.split_once(' ')? {
        (scheme, rest) if scheme.eq_ignore_ascii_case("bearer") => rest.trim().to_owned(),
        (scheme, rest) if scheme.eq_ignore_ascii_case("basic") => {
            let decoded = String::from_utf8(STANDARD.decode(rest.trim()).ok()?).ok()?;
            decoded.split_once(':')?.1.to_owned()
        }
        _ => return None,
    };
    // Digests take the same time to compare whatever they are of.
    let digest = |text: &str| Sha256::digest(text.as_bytes());
    (digest(&given) == digest(token.reveal())).then_some(Sees::Everything)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_opens_as_bearer_and_as_password() {
        let token = Secret::new("swordfish").unwrap();
        let with = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            sees(Some(&token), &headers)
        };
        assert_eq!(with("Bearer swordfish"), Some(Sees::Everything));
        assert_eq!(
            with(&format!("Basic {}", STANDARD.encode("any:swordfish"))),
            Some(Sees::Everything)
        );
        for wrong in [
            "Bearer swordfis",
            "Bearer ",
            "swordfish",
            "Digest swordfish",
            "Basic %%%",
            "Basic c3dvcmRmaXNo",
        ] {
            assert_eq!(with(wrong), None, "{wrong}");
        }
        assert_eq!(sees(Some(&token), &HeaderMap::new()), None);
        assert_eq!(sees(None, &HeaderMap::new()), Some(Sees::Outside));
    }
}

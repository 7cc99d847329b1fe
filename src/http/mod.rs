//! Health, readiness, metrics, an API and a page for people.
//!
//! | path | answer |
//! |---|---|
//! | `/healthz` | 200 while the process works |
//! | `/readyz` | 200 if every target is safe, else 503; JSON with reasons |
//! | `/up` | what of app and backup works, always 200: a red backup must not take an app out of a proxy |
//! | `/metrics` | Prometheus text |
//! | `/api/v1/status` | the same JSON as `/readyz`, always 200 |
//! | `/api/v1/targets/NAME/points` | what can be restored |
//! | `/api/v1/openapi.json` | describes the two |
//! | `/`, `/targets/NAME` | pages |
//!
//! With a token in the configuration, pages and API need it, and `/readyz` and `/up` say no more than states without it.
//! Nothing here changes anything.

mod access;
mod chart;
mod page;
mod points;
mod up;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Extension, Path, Query, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router, middleware};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::config::{Config, parse_time};
use crate::daemon::fleet::{Fleet, system_now};
use crate::daemon::postgres::is_of;
use crate::observe::facts::Board;
use crate::observe::health::Verdict;
use crate::observe::history::History;
use crate::observe::metrics;
use crate::observe::view::View;
use crate::retention::Held;
use crate::types::Millis;
use access::Sees;

/// Between two looks for the history of lags.
const LOOK_EVERY: Duration = Duration::from_secs(15);
/// Points in one answer, unless asked otherwise.
const POINTS: usize = 500;
const POINTS_MAX: usize = 10_000;

/// What is said of each without the token that is set.
const SEEN_OF_TARGETS: [&str; 5] = ["name", "safe", "state", "lag_seconds", "objective_seconds"];
const SEEN_OF_SERVICES: [&str; 3] = ["kind", "name", "state"];

/// No script, no frame, nothing from elsewhere.
const HEADERS: [(HeaderName, &str); 4] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; style-src 'self'; img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
];

/// What every answer is made of.
struct App {
    board: Arc<Board>,
    config: Arc<Config>,
    fleet: Arc<Fleet>,
    history: History,
    points: points::Cache,
}

type Shared = Arc<App>;

/// Serves until dropped.
pub async fn serve(
    listener: tokio::net::TcpListener,
    config: Arc<Config>,
    fleet: Arc<Fleet>,
    board: Arc<Board>,
) -> std::io::Result<()> {
    let app = Arc::new(App {
        board,
        config,
        fleet,
        history: History::default(),
        points: points::Cache::default(),
    });
    let look = async {
        loop {
            let verdicts = verdicts(&app.board).await;
            app.history.note(&verdicts, system_now());
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::select! {
        ended = axum::serve(listener, router(&app)).into_future() => ended,
        () = look => Ok(()),
    }
}

fn router(app: &Shared) -> Router {
    let guarded = Router::new()
        .route("/", get(overview))
        .route("/targets/{name}", get(target))
        .route("/api/v1/status", get(status))
        .route("/api/v1/targets/{name}/points", get(points))
        .layer(middleware::from_fn_with_state(
            Arc::clone(app),
            access::guard,
        ));
    Router::new()
        .merge(guarded)
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/up", get(up))
        .route("/metrics", get(scrape))
        .route("/api/v1/openapi.json", get(openapi))
        .route("/style.css", get(style))
        .with_state(Arc::clone(app))
}

/// Judges every target, with the WAL files as they are now.
pub async fn verdicts(board: &Arc<Board>) -> Vec<Verdict> {
    look(board, |view| view.verdicts()).await
}

/// Takes a view on a blocking thread, and what is wanted from it.
async fn look<T: Default + Send + 'static>(
    board: &Arc<Board>,
    want: impl FnOnce(&View) -> T + Send + 'static,
) -> T {
    let board = Arc::clone(board);
    let take = move || want(&View::take(&board, system_now()));
    // It panicked: said by the panic itself.
    tokio::task::spawn_blocking(take).await.unwrap_or_default()
}

/// The JSON of `/readyz` and `lifeboat status --json`. The status is that of the copies alone.
pub async fn status_json(board: &Arc<Board>) -> Value {
    look(board, |view| {
        let verdicts = view.verdicts();
        let safe = !verdicts.is_empty() && verdicts.iter().all(|v| v.safe);
        let status = if safe { "safe" } else { "unsafe" };
        json!({ "status": status, "targets": verdicts, "services": view.services() })
    })
    .await
}

/// [`status_json`] for whoever asks: with a token set and not given, states only.
async fn health(app: &App, headers: &HeaderMap) -> Value {
    let mut status = status_json(&app.board).await;
    if access::sees(app.config.http_token.as_ref(), headers).is_none() {
        for (list, seen) in [
            ("targets", &SEEN_OF_TARGETS[..]),
            ("services", &SEEN_OF_SERVICES),
        ] {
            for entry in status[list].as_array_mut().into_iter().flatten() {
                if let Some(entry) = entry.as_object_mut() {
                    entry.retain(|key, _| seen.contains(&key.as_str()));
                }
            }
        }
    }
    status
}

async fn ready(State(app): State<Shared>, headers: HeaderMap) -> Response {
    let status = health(&app, &headers).await;
    let code = if status["status"] == "safe" {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (code, Json(status)).into_response()
}

async fn up(State(app): State<Shared>, headers: HeaderMap) -> Json<Value> {
    let all = access::sees(app.config.http_token.as_ref(), &headers).is_some();
    let take =
        move |view: &View| up::up_json(&view.verdicts(), &view.apps(), &view.services(), all);
    Json(look(&app.board, take).await)
}

async fn status(State(app): State<Shared>) -> Json<Value> {
    Json(status_json(&app.board).await)
}

async fn scrape(State(app): State<Shared>) -> Response {
    match look(&app.board, metrics::render).await {
        Some(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        // Prometheus takes it for down, which it is.
        None => {
            let words = "the metrics cannot be told; see the log\n";
            (StatusCode::INTERNAL_SERVER_ERROR, words).into_response()
        }
    }
}

async fn openapi() -> impl IntoResponse {
    let json = [(header::CONTENT_TYPE, "application/json")];
    (json, include_str!("openapi.json"))
}

async fn style() -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE, "text/css; charset=utf-8"),
        (header::CACHE_CONTROL, "max-age=300"),
    ];
    (headers, include_str!("style.css"))
}

async fn overview(State(app): State<Shared>, Extension(sees): Extension<Sees>) -> Response {
    let shared = Arc::clone(&app);
    let cards = look(&app.board, move |view| {
        // What is shown is not older than what it is shown with.
        shared.history.note(&view.verdicts(), view.now);
        let cards = page::cards(view, |verdict| shared.history.of(verdict));
        (cards, view.services())
    });
    let (cards, services) = cards.await;
    let html = page::overview(
        (&cards, &services),
        system_now(),
        &app.config.instance,
        sees,
    );
    (HEADERS, Html(html)).into_response()
}

#[derive(Deserialize)]
struct TargetQuery {
    at: Option<String>,
}

async fn target(
    State(app): State<Shared>,
    Extension(sees): Extension<Sees>,
    Path(name): Path<String>,
    Query(query): Query<TargetQuery>,
) -> Response {
    let Some(points) = app.points.of(&app, &name).await else {
        return missing();
    };
    let text = query.at.filter(|t| !t.trim().is_empty());
    let asked = text.map(|text| page::Asked {
        at: time(&app, &text),
        text,
    });
    let zone = app.config.time_zone.iana_name().unwrap_or("UTC");
    let mine = app.config.targets.iter().find(|t| t.name == name);
    let of_server = app.config.postgres.iter().find(|s| is_of(s, &name));
    let of_files = app.config.files.iter().find(|f| f.name == name);
    let of_dir = || {
        let path = app.board.target(&name)?.facts().path;
        let dirs = app.config.dirs.iter();
        dirs.filter(|d| path.starts_with(&d.dir))
            .map(|d| &d.options.retention)
            .next()
    };
    let retention = mine
        .map(|t| &t.options.retention)
        .or(of_server.map(|s| &s.retention))
        .or(of_files.map(|f| &f.retention))
        .or_else(of_dir);
    let kept = page::Kept {
        policy: retention.map(page::policy),
        held: held(&app.board, &name),
    };
    let when = (system_now(), zone);
    let html = page::target(&name, &points, asked.as_ref(), when, &kept, sees);
    (HEADERS, Html(html)).into_response()
}

/// What retention keeps of a target, by store.
fn held(board: &Board, name: &str) -> BTreeMap<String, Held> {
    let of_target = board.target(name).map(|t| t.facts().stores);
    let of_target = of_target.into_iter().flatten().map(|s| (s.store, s.held));
    let of_dumps = board.postgres().into_iter().filter(|f| f.name == name);
    let of_files = board.files().into_iter().filter(|f| f.name == name);
    of_target
        .chain(of_dumps.map(|f| (f.store, f.held)))
        .chain(of_files.map(|f| (f.store, f.held)))
        .collect()
}

fn missing() -> Response {
    (
        StatusCode::NOT_FOUND,
        Json(json!({ "error": "there is no target of this name" })),
    )
        .into_response()
}

fn time(app: &App, text: &str) -> Result<Millis, String> {
    parse_time(text, jiff::Timestamp::now(), &app.config.time_zone).map_err(|e| e.to_string())
}

#[derive(Deserialize)]
struct PointsQuery {
    from: Option<String>,
    to: Option<String>,
    limit: Option<usize>,
}

async fn points(
    State(app): State<Shared>,
    Extension(sees): Extension<Sees>,
    Path(name): Path<String>,
    Query(query): Query<PointsQuery>,
) -> Response {
    let bound = |text: &Option<String>, open: i64| match text {
        Some(text) => time(&app, text),
        None => Ok(Millis(open)),
    };
    let range = match (bound(&query.from, i64::MIN), bound(&query.to, i64::MAX)) {
        (Ok(from), Ok(to)) => (from, to),
        (Err(error), _) | (_, Err(error)) => {
            return (StatusCode::BAD_REQUEST, Json(json!({ "error": error }))).into_response();
        }
    };
    let Some(points) = app.points.of(&app, &name).await else {
        return missing();
    };
    let limit = query.limit.unwrap_or(POINTS).min(POINTS_MAX);
    Json(points.json(&name, range, limit, sees)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The document names every path of the API, and nothing else.
    #[test]
    fn the_api_is_described() {
        let document: Value = serde_json::from_str(include_str!("openapi.json")).unwrap();
        let paths: Vec<&String> = document["paths"].as_object().unwrap().keys().collect();
        assert_eq!(
            paths,
            [
                "/api/v1/status",
                "/api/v1/targets/{name}/points",
                "/readyz",
                "/up"
            ]
        );
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    }
}

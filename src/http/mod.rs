//! Health, readiness, metrics and a page for people.
//!
//! | path | answer |
//! |---|---|
//! | `/healthz` | 200 while the process works |
//! | `/readyz` | 200 if every target is safe, else 503; JSON with reasons |
//! | `/up` | the same JSON, always 200: a red backup must not take an app out of a proxy |
//! | `/metrics` | Prometheus text |
//! | `/api/v1/status` | the same JSON as `/readyz`, always 200 |
//! | `/` | a page |
//!
//! Nothing here changes anything.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use crate::daemon::fleet::system_now;
use crate::observe::facts::Board;
use crate::observe::health::Verdict;
use crate::observe::metrics;
use crate::observe::view::View;

/// Serves until dropped.
pub async fn serve(listener: tokio::net::TcpListener, board: Arc<Board>) -> std::io::Result<()> {
    axum::serve(listener, router(board)).await
}

fn router(board: Arc<Board>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/up", get(up))
        .route("/api/v1/status", get(up))
        .route("/metrics", get(scrape))
        .route("/", get(page))
        .with_state(board)
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

/// The JSON of `/readyz` and `lifeboat status --json`.
pub fn status_json(verdicts: &[Verdict]) -> Value {
    let safe = !verdicts.is_empty() && verdicts.iter().all(|v| v.safe);
    json!({ "status": if safe { "safe" } else { "unsafe" }, "targets": verdicts })
}

async fn ready(State(board): State<Arc<Board>>) -> Response {
    let status = status_json(&verdicts(&board).await);
    let code = if status["status"] == "safe" {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (code, Json(status)).into_response()
}

async fn up(State(board): State<Arc<Board>>) -> Json<Value> {
    Json(status_json(&verdicts(&board).await))
}

async fn scrape(State(board): State<Arc<Board>>) -> impl IntoResponse {
    let text = look(&board, metrics::render).await;
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text)
}

async fn page(State(board): State<Arc<Board>>) -> Html<String> {
    let verdicts = verdicts(&board).await;
    let safe = !verdicts.is_empty() && verdicts.iter().all(|v| v.safe);
    let rows: String = verdicts.iter().map(row).collect();
    let (mark, word) = if safe {
        ("ok", "Everything is safe")
    } else {
        ("bad", "Not everything is safe")
    };
    Html(format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>\
<title>Lifeboat: {word}</title><style>:root{{color-scheme:light dark}}body{{font:16px system-ui;margin:2rem auto;max-width:60rem;padding:0 1rem}}\
table{{border-collapse:collapse;width:100%}}td,th{{text-align:left;padding:.5rem;border-bottom:1px solid #8886;vertical-align:top}}\
.ok{{color:light-dark(#14612b,#7fd99a)}}.bad{{color:light-dark(#a3121f,#ff9aa2)}}</style>\
<main><h1 class={mark}>{word}</h1><table><thead><tr><th>Target<th>State<th>Lag<th>Durable<th>What to do</tr></thead><tbody>{rows}</tbody></table></main></html>"
    ))
}

fn row(v: &Verdict) -> String {
    let stores: String = v
        .stores
        .iter()
        .map(|s| {
            let txid = s
                .durable_txid
                .as_deref()
                .map_or("nothing", |t| t.trim_start_matches('0'));
            format!("<div>{} in {}</div>", escape(txid), escape(&s.store))
        })
        .collect();
    let advice: String = v
        .reasons
        .iter()
        .chain(&v.hints)
        .map(|t| format!("<div>{}</div>", escape(t)))
        .collect();
    format!(
        "<tr><td>{}<td class={}>{}<td>{:.1} s<td>{stores}<td>{advice}</tr>",
        escape(&v.name),
        if v.safe { "ok" } else { "bad" },
        v.state,
        v.lag_seconds
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}

//! Small pictures as SVG, each with words for who does not see it.

use std::collections::BTreeSet;

use maud::{Markup, html};

use super::points::StorePoints;
use crate::observe::history::BUCKETS;
use crate::types::Millis;

const WIDTH: f64 = 360.0;
const HEIGHT: f64 = 48.0;
const LINE_WIDTH: f64 = 900.0;

/// Lag over the last hours; the dashed line is what is allowed.
pub(super) fn lag(lags: &[Option<f32>], objective: f64, words: &str) -> Markup {
    let worst = lags
        .iter()
        .flatten()
        .fold(0.0_f64, |a, b| a.max(f64::from(*b)));
    // The objective is always in the picture: a flat line at its top would look like trouble.
    let top = worst.max(objective * 1.25).max(0.001);
    let x = |i: usize| i as f64 * WIDTH / (BUCKETS - 1) as f64;
    let y = |lag: f64| HEIGHT - 2.0 - lag / top * (HEIGHT - 4.0);
    let first = BUCKETS.saturating_sub(lags.len());
    let mut path = String::new();
    let mut pen = false;
    for (i, lag) in lags.iter().enumerate() {
        match lag {
            Some(lag) => {
                let (x, y) = (x(first + i), y(f64::from(*lag)));
                let command = if pen { 'L' } else { 'M' };
                path.push_str(&format!("{command}{x:.1} {y:.1}"));
                if !pen {
                    // A single value is seen, too.
                    path.push_str("h2");
                }
                pen = true;
            }
            None => pen = false,
        }
    }
    let (width, height, limit) = (WIDTH, HEIGHT, format!("{:.1}", y(objective)));
    html! {
        svg.lag viewBox=(format!("0 0 {width} {height}")) role="img" aria-label=(words) {
            line.limit x1="0" x2=(width) y1=(limit) y2=(limit) {}
            path.curve d=(path) {}
        }
    }
}

/// The restorable window of a store: every point a line, labels above, drills below.
pub(super) fn timeline(store: &StorePoints, now: Millis, sees_labels: bool, words: &str) -> Markup {
    let oldest = store.points.first().map_or(now, |p| p.at);
    let span = now.since(oldest).max(1) as f64;
    // Rounded to a pixel: a hundred thousand points are nine hundred lines at most.
    let x =
        |at: Millis| (now.since(oldest) - now.since(at)) as f64 / span * (LINE_WIDTH - 8.0) + 4.0;
    let columns: BTreeSet<i64> = store
        .points
        .iter()
        .map(|p| x(p.at).round() as i64)
        .collect();
    let marks: String = columns.iter().map(|c| format!("M{c} 18v16")).collect();
    let inside = |at: &Millis| *at >= oldest;
    let labels = store
        .labels
        .iter()
        .filter(|l| sees_labels && inside(&l.point.at));
    let drills = store.drills.iter().filter(|(at, _)| inside(at));
    html! {
        svg.timeline viewBox=(format!("0 0 {LINE_WIDTH} 52")) role="img" aria-label=(words) {
            rect.window x="0" y="18" width=(LINE_WIDTH) height="16" rx="3" {}
            path.points d=(marks) {}
            @for label in labels {
                @let x = x(label.point.at);
                path.label d=(format!("M{x:.0} 17l-5 -9h10z")) { title { (label.label) " " (label.point.at) } }
            }
            @for (at, ok) in drills {
                circle class=(if *ok { "drill" } else { "drill failed" }) cx=(format!("{:.0}", x(*at))) cy="43" r="5" {
                    title { "drill " (at) (if *ok { ": passed" } else { ": failed" }) }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::points::Point;

    #[test]
    fn a_hundred_thousand_points_are_a_small_picture() {
        let point = |n: i64| Point {
            id: n.to_string(),
            at: Millis(n * 1000),
        };
        let store = StorePoints {
            points: (0..100_000).map(point).collect(),
            ..StorePoints::default()
        };
        let svg = timeline(&store, Millis(100_000_000), true, "words").into_string();
        assert!(svg.len() < 12_000, "{}", svg.len());
        assert!(svg.contains("M4 18v16") && svg.contains("M896 18v16"));
    }

    #[test]
    fn holes_break_the_curve() {
        let svg = lag(&[Some(1.0), Some(2.0), None, Some(0.0)], 30.0, "words").into_string();
        assert_eq!(svg.matches('M').count(), 2, "{svg}");
        assert!(
            lag(&[], 30.0, "<words>")
                .into_string()
                .contains("&lt;words&gt;")
        );
    }
}

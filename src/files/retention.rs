//! Which snapshots are kept, and why. Pure.
//!
//! Kept always: the newest, the newest complete one, the newest that a drill has proven, every labelled one, and what Lifeboat did not make. A
//! tier keeps the newest complete snapshot of each of its newest periods; a partial one only where a period has no other.

use std::collections::BTreeMap;
use std::fmt;

use jiff::{SignedDuration, Timestamp, tz::TimeZone};

use super::points::Point;
use crate::config::RetentionConfig;

/// Why a snapshot is kept or forgotten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The newest.
    Newest,
    /// The newest that is complete.
    NewestComplete,
    /// A drill has restored from it.
    Proven,
    /// A label pins it.
    Label(String),
    /// Within `point-in-time`.
    PointInTime,
    /// A tier, and the period.
    Tier(&'static str, String),
    /// Somebody else made it.
    Foreign,
    /// No rule keeps it.
    Unneeded,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Newest => f.write_str("newest"),
            Self::NewestComplete => f.write_str("newest complete"),
            Self::Proven => f.write_str("newest proven by a drill"),
            Self::Label(label) => write!(f, "label {label}"),
            Self::PointInTime => f.write_str("point in time"),
            Self::Tier(tier, period) => write!(f, "{tier} {period}"),
            Self::Foreign => f.write_str("not made by lifeboat"),
            Self::Unneeded => f.write_str("no rule keeps it"),
        }
    }
}

/// A snapshot and what becomes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Position among the points.
    pub index: usize,
    /// At least one; [`Reason::Unneeded`] alone means forget.
    pub reasons: Vec<Reason>,
}

impl Decision {
    /// Whether it stays.
    pub fn keeps(&self) -> bool {
        self.reasons != [Reason::Unneeded]
    }
}

/// Decides on every point. `points` are by time; `proven` is the id of the newest that a drill has proven; periods are those of `zone`.
pub fn decide(
    points: &[Point],
    policy: &RetentionConfig,
    proven: Option<&str>,
    now: Timestamp,
    zone: &TimeZone,
) -> Vec<Decision> {
    let mut reasons: Vec<Vec<Reason>> = vec![Vec::new(); points.len()];
    let mut keep = |index: usize, reason| reasons[index].push(reason);
    if let Some(last) = points.len().checked_sub(1) {
        keep(last, Reason::Newest);
    }
    if let Some(complete) = points.iter().rposition(|p| !p.partial) {
        keep(complete, Reason::NewestComplete);
    }
    let window = SignedDuration::try_from(policy.point_in_time).unwrap_or(SignedDuration::MAX);
    for (i, point) in points.iter().enumerate() {
        if proven == Some(point.id.as_str()) {
            keep(i, Reason::Proven);
        }
        for label in &point.labels {
            keep(i, Reason::Label(label.clone()));
        }
        if !point.ours {
            keep(i, Reason::Foreign);
        }
        if now.duration_since(point.time) <= window && !window.is_zero() {
            keep(i, Reason::PointInTime);
        }
    }
    for (tier, count, format) in [
        ("hourly", policy.hourly, "%Y-%m-%dT%H"),
        ("daily", policy.daily, "%Y-%m-%d"),
        ("weekly", policy.weekly, "%G-W%V"),
        ("monthly", policy.monthly, "%Y-%m"),
        ("yearly", policy.yearly, "%Y"),
    ] {
        // The last complete point of each period, or the last at all.
        let mut periods: BTreeMap<String, usize> = BTreeMap::new();
        for (i, point) in points.iter().enumerate() {
            let period = point
                .time
                .to_zoned(zone.clone())
                .strftime(format)
                .to_string();
            let better = |old: &usize| points[*old].partial || !point.partial;
            if periods.get(&period).is_none_or(better) {
                periods.insert(period, i);
            }
        }
        for (period, index) in periods.into_iter().rev().take(count as usize) {
            keep(index, Reason::Tier(tier, period));
        }
    }
    reasons
        .into_iter()
        .enumerate()
        .map(|(index, mut reasons)| {
            if reasons.is_empty() {
                reasons.push(Reason::Unneeded);
            }
            Decision { index, reasons }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn point(time: &str) -> Point {
        let time: Timestamp = time.parse().unwrap();
        Point {
            id: time.to_string(),
            time,
            host: String::new(),
            paths: Vec::new(),
            files: 0,
            bytes: 0,
            added: 0,
            partial: false,
            labels: Vec::new(),
            ours: true,
        }
    }

    fn policy() -> RetentionConfig {
        RetentionConfig::plain(Duration::ZERO)
    }

    fn kept(points: &[Point], policy: &RetentionConfig, proven: Option<&str>) -> Vec<usize> {
        let now = "2026-11-21T12:00:00Z".parse().unwrap();
        let decisions = decide(points, policy, proven, now, &TimeZone::UTC);
        assert_eq!(decisions.len(), points.len());
        decisions
            .iter()
            .filter(|d| d.keeps())
            .map(|d| d.index)
            .collect()
    }

    #[test]
    fn tiers_keep_the_last_complete_point_of_each_period() {
        let mut points: Vec<Point> = [
            "2025-01-01T00:00:00Z",
            "2026-11-19T10:00:00Z",
            "2026-11-19T20:00:00Z",
            "2026-11-20T10:00:00Z",
            "2026-11-20T20:00:00Z",
            "2026-11-21T10:00:00Z",
        ]
        .map(point)
        .into();
        let daily = RetentionConfig {
            daily: 2,
            ..policy()
        };
        assert_eq!(kept(&points, &daily, None), [4, 5]);
        points[4].partial = true;
        assert_eq!(kept(&points, &daily, None), [3, 5], "complete before newer");
        points[3].partial = true;
        assert_eq!(kept(&points, &daily, None), [4, 5], "partial before none");
        let yearly = RetentionConfig {
            yearly: 5,
            ..policy()
        };
        assert_eq!(kept(&points, &yearly, None), [0, 5]);
        let window = RetentionConfig::plain(Duration::from_secs(86_400));
        assert_eq!(kept(&points, &window, None), [4, 5]);
    }

    #[test]
    fn some_are_kept_whatever_the_policy() {
        let mut points: Vec<Point> = (10..16)
            .map(|h| point(&format!("2020-01-01T{h}:00:00Z")))
            .collect();
        assert_eq!(
            kept(&points, &policy(), None),
            [5],
            "the newest, however old"
        );
        points[5].partial = true;
        assert_eq!(kept(&points, &policy(), None), [4, 5]);
        points[0].labels.push("v1".into());
        points[1].ours = false;
        let proven = points[2].id.clone();
        assert_eq!(kept(&points, &policy(), Some(&proven)), [0, 1, 2, 4, 5]);
        assert!(kept(&[], &policy(), None).is_empty());
    }

    #[test]
    fn periods_are_those_of_the_zone() {
        let points = ["2026-11-19T22:30:00Z", "2026-11-19T23:30:00Z"].map(point);
        let daily = RetentionConfig {
            daily: 9,
            ..policy()
        };
        let now = "2026-11-21T12:00:00Z".parse().unwrap();
        let keeps = |zone: &str| {
            let zone = TimeZone::get(zone).unwrap();
            decide(&points, &daily, None, now, &zone)
                .iter()
                .filter(|d| d.keeps())
                .count()
        };
        assert_eq!(keeps("UTC"), 1);
        assert_eq!(
            keeps("Europe/Berlin"),
            2,
            "midnight lies between them there"
        );
    }
}

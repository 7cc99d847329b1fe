//! Which lines of the log are told, and which are only counted. Pure: it is given the time.
//!
//! A line is the same as an earlier one if it comes from the same place in the code and differs in nothing but numbers. The first is told at
//! once. While its window lasts, more of them are counted; at its end one line says how many there were, and the next window is twice as
//! long. Whoever fails, works again and fails again begins anew: news is told, up to [`EPISODES`] times in a window.
//!
//! Nothing is dropped without being counted, and no more than [`LINES_MAX`] lines are known at once: the one whose window ends first makes
//! room, with its sum.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tracing::Level;
use tracing::callsite::Identifier;

/// After the first line, so long until the first sum.
const WINDOW_MIN: Duration = Duration::from_secs(10 * 60);
/// What lasts a night is a dozen lines.
const WINDOW_MAX: Duration = Duration::from_secs(3600);
/// What starts and ends all the time is told so often in a window, and counted from there on.
const EPISODES: u32 = 5;
/// Bound on memory: a few hundred bytes each, [`TEXT_MAX`] at the most.
const LINES_MAX: usize = 1_000;
/// Longer texts are cut where they are kept for a sum.
const TEXT_MAX: usize = 1_000;

/// What makes two lines the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// The place in the code.
    pub(super) callsite: Identifier,
    /// Hash of what it says, without numbers.
    pub(super) words: u64,
}

/// A line, as far as its sum will say it again.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) level: Level,
    pub(super) message: String,
    pub(super) target: Option<String>,
    pub(super) store: Option<String>,
    pub(super) error: Option<String>,
    /// Hash of what it is about; `None` if it does not say.
    pub(super) subject: Option<u64>,
}

impl Line {
    /// A trouble, or news that something works.
    fn is_trouble(&self) -> bool {
        self.level <= Level::WARN
    }

    fn cut(mut self) -> Self {
        let texts = [Some(&mut self.message), self.error.as_mut()];
        for text in texts.into_iter().flatten() {
            if text.len() > TEXT_MAX {
                text.truncate(text.floor_char_boundary(TEXT_MAX));
                text.push_str("...");
            }
        }
        self
    }
}

/// How often a line was not told.
#[derive(Clone, Debug)]
pub(super) struct Sum {
    /// The last of them.
    pub(super) line: Line,
    pub(super) times: u64,
    /// Since the window began.
    pub(super) during: Duration,
}

impl Sum {
    /// In words.
    pub(super) fn message(&self) -> String {
        let times = match self.times {
            1 => "once more".to_owned(),
            n => format!("{n} times"),
        };
        let (message, during) = (&self.line.message, words(self.during));
        format!("{message} (repeated {times} in {during})")
    }
}

fn words(during: Duration) -> String {
    match during.as_secs() {
        0..2 => "a second".into(),
        2..120 => format!("{} seconds", during.as_secs()),
        120..7_200 => format!("{} minutes", during.as_secs() / 60),
        s => format!("{} hours", s / 3_600),
    }
}

#[derive(Debug)]
struct Window {
    line: Line,
    began: Instant,
    length: Duration,
    /// Not told.
    times: u64,
    /// Told.
    episodes: u32,
    /// It was followed by better news, or worse: the next one is news.
    is_over: bool,
}

impl Window {
    fn new(line: Line, now: Instant) -> Self {
        Self {
            line: line.cut(),
            began: now,
            length: WINDOW_MIN,
            times: 0,
            episodes: 1,
            is_over: false,
        }
    }

    fn ends(&self) -> Instant {
        self.began + self.length
    }

    /// What was not told so far; `None` if that is nothing. Counting begins anew.
    fn sum(&mut self, now: Instant) -> Option<Sum> {
        let times = std::mem::take(&mut self.times);
        (times > 0).then(|| Sum {
            line: self.line.clone(),
            times,
            during: now.saturating_duration_since(self.began),
        })
    }

    /// A longer one after it.
    fn next(&mut self, now: Instant) -> Option<Sum> {
        let sum = self.sum(now);
        self.began = now;
        self.length = (self.length * 2).min(WINDOW_MAX);
        self.episodes = 0;
        sum
    }
}

/// Whether a line is told, and what is to be said before it.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    pub(super) tell: bool,
    pub(super) sums: Vec<Sum>,
}

/// The lines that were told lately.
#[derive(Debug, Default)]
pub(super) struct Repeats(HashMap<Key, Window>);

impl Repeats {
    /// Takes in a line.
    pub(super) fn note(&mut self, key: Key, line: Line, now: Instant) -> Verdict {
        let mut sums = self.turn(&line, now);
        if let Some(window) = self.0.get_mut(&key) {
            let quiet = window.times == 0;
            if now < window.ends() || !quiet {
                if now >= window.ends() {
                    sums.extend(window.next(now));
                }
                let news = std::mem::take(&mut window.is_over) && window.episodes < EPISODES;
                if news {
                    window.episodes += 1;
                } else {
                    window.times += 1;
                    window.line = line.cut();
                }
                return Verdict { tell: news, sums };
            }
        } else if self.0.len() >= LINES_MAX {
            sums.extend(self.make_room(now));
        }
        self.0.insert(key, Window::new(line, now));
        Verdict { tell: true, sums }
    }

    /// Good news ends the troubles of the same subject, and the other way round.
    fn turn(&mut self, line: &Line, now: Instant) -> Vec<Sum> {
        let Some(subject) = line.subject else {
            return Vec::new();
        };
        let others = self.0.values_mut().filter(|w| {
            w.line.subject == Some(subject) && w.line.is_trouble() != line.is_trouble()
        });
        let ended = others.filter_map(|w| {
            w.is_over = true;
            // What starts and ends all the time is summed when its window ends.
            if w.episodes >= EPISODES {
                return None;
            }
            w.sum(now)
        });
        ended.collect()
    }

    fn make_room(&mut self, now: Instant) -> Vec<Sum> {
        self.0.retain(|_, w| now < w.ends() || w.times > 0);
        if self.0.len() < LINES_MAX {
            return Vec::new();
        }
        let first = self.0.iter().min_by_key(|(_, w)| w.ends());
        let first = first.map(|(key, _)| key.clone());
        let window = first.and_then(|key| self.0.remove(&key));
        window.and_then(|mut w| w.sum(now)).into_iter().collect()
    }

    /// Sums of the windows that have ended.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Sum> {
        self.0.retain(|_, w| now < w.ends() || w.times > 0);
        let ended = self.0.values_mut().filter(|w| now >= w.ends());
        ended.filter_map(|w| w.next(now)).collect()
    }

    /// When the next one has something to say.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let waiting = self.0.values().filter(|w| w.times > 0);
        waiting.map(Window::ends).min()
    }

    /// All that was not told: the process ends.
    pub(super) fn rest(&mut self, now: Instant) -> Vec<Sum> {
        let windows = self.0.values_mut();
        windows.filter_map(|w| w.sum(now)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Here;

    impl tracing::callsite::Callsite for Here {
        fn set_interest(&self, _: tracing::subscriber::Interest) {}

        fn metadata(&self) -> &tracing::Metadata<'_> {
            unreachable!("nobody asks")
        }
    }

    fn key(words: u64) -> Key {
        Key {
            callsite: Identifier(&Here),
            words,
        }
    }

    fn line(level: Level, message: &str) -> Line {
        Line {
            level,
            message: message.into(),
            target: Some("app".into()),
            store: None,
            error: None,
            subject: Some(1),
        }
    }

    struct Log {
        repeats: Repeats,
        begun: Instant,
        /// What a reader sees.
        seen: Vec<String>,
    }

    impl Log {
        fn new() -> Self {
            Self {
                repeats: Repeats::default(),
                begun: Instant::now(),
                seen: Vec::new(),
            }
        }

        fn at(&self, seconds: u64) -> Instant {
            self.begun + Duration::from_secs(seconds)
        }

        fn note(&mut self, seconds: u64, level: Level, words: u64, message: &str) {
            let now = self.at(seconds);
            // As the thread does that waits for the ends of windows.
            while let Some(due) = self.repeats.next_due().filter(|due| *due <= now) {
                let sums = self.repeats.due(due);
                self.seen.extend(sums.iter().map(Sum::message));
            }
            let verdict = self.repeats.note(key(words), line(level, message), now);
            self.seen.extend(verdict.sums.iter().map(Sum::message));
            if verdict.tell {
                self.seen.push(message.to_owned());
            }
        }
    }

    #[test]
    fn a_night_of_the_same_trouble_is_a_dozen_lines_and_each_is_counted() {
        let mut log = Log::new();
        let tries = 8 * 3600 / 15;
        for n in 0..tries {
            log.note(n * 15, Level::WARN, 1, "upload failed");
        }
        let (first, rest) = (log.seen[0].clone(), log.seen.len());
        assert_eq!(first, "upload failed");
        assert_eq!(
            log.seen[1],
            "upload failed (repeated 39 times in 10 minutes)"
        );
        assert!((9..=12).contains(&rest), "{:#?}", log.seen);
        log.seen.extend(
            log.repeats
                .rest(log.at(tries * 15))
                .iter()
                .map(Sum::message),
        );
        let counted = |l: &String| {
            let number = l.split("repeated ").nth(1)?.split(' ').next()?;
            number.parse::<u64>().ok()
        };
        let counted: u64 = log.seen.iter().filter_map(counted).sum();
        assert_eq!(counted + 1, tries, "none is lost: {:#?}", log.seen);
    }

    #[test]
    fn a_recovery_ends_the_row_and_the_next_failure_is_news() {
        let mut log = Log::new();
        for second in 0..3 {
            log.note(second, Level::ERROR, 1, "down");
        }
        log.note(40, Level::INFO, 2, "up");
        log.note(50, Level::ERROR, 1, "down");
        assert_eq!(
            log.seen,
            [
                "down",
                "down (repeated 2 times in 40 seconds)",
                "up",
                "down"
            ]
        );
        // The same words of another subject end nothing.
        let other = Line {
            subject: Some(2),
            ..line(Level::INFO, "up")
        };
        log.note(60, Level::ERROR, 1, "down");
        let verdict = log.repeats.note(key(3), other, log.at(61));
        assert!(verdict.tell && verdict.sums.is_empty());
    }

    #[test]
    fn what_flaps_is_told_a_few_times_and_then_counted() {
        let mut log = Log::new();
        for n in 0..100 {
            log.note(n * 5, Level::WARN, 1, "down");
            log.note(n * 5 + 2, Level::INFO, 2, "up");
        }
        let told = log.seen.iter().filter(|l| *l == "down").count();
        assert_eq!(told, EPISODES as usize, "{:#?}", log.seen);
        assert_eq!(log.seen.len(), 2 * told, "{:#?}", log.seen);
        log.note(700, Level::WARN, 1, "down");
        let sum = "down (repeated 95 times in 10 minutes)";
        assert!(log.seen.contains(&sum.to_owned()), "{:#?}", log.seen);
    }

    #[test]
    fn another_error_is_told_at_once_and_an_old_one_again_after_its_window() {
        let mut log = Log::new();
        log.note(0, Level::WARN, 1, "timeout");
        log.note(1, Level::WARN, 2, "denied");
        log.note(599, Level::WARN, 2, "denied");
        log.note(601, Level::WARN, 1, "timeout");
        let sum = "denied (repeated once more in 10 minutes)";
        assert_eq!(log.seen, ["timeout", "denied", sum, "timeout"]);
    }

    #[test]
    fn memory_is_bounded_and_what_makes_room_is_summed() {
        let mut log = Log::new();
        log.note(0, Level::WARN, 0, "first");
        log.note(1, Level::WARN, 0, "first");
        for n in 1..10 * LINES_MAX as u64 {
            log.note(2, Level::WARN, n, "another");
        }
        assert_eq!(log.repeats.0.len(), LINES_MAX);
        let sum = "first (repeated once more in 2 seconds)".to_owned();
        assert!(log.seen.contains(&sum));
        let long = line(Level::WARN, &"é".repeat(TEXT_MAX)).cut();
        assert!(long.message.len() <= TEXT_MAX + 3);
    }
}

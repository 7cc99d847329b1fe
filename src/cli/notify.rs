//! `notify test`: do messages arrive?

use serde_json::json;

use super::args::NotifyAction;
use super::{Failure, ok};
use crate::config::Config;
use crate::notify;

pub(super) async fn run(
    config: Config,
    action: NotifyAction,
    as_json: bool,
) -> Result<(), Failure> {
    let NotifyAction::Test { channels: names } = action;
    if config.notify.is_empty() {
        return Err(Failure::new(
            2,
            "nobody is to be told: there is no `notify` in the configuration",
            Some("for example `notify: [{ slack: ${SLACK_WEBHOOK_URL} }]`; see docs/notifications.md".into()),
        ));
    }
    let known = || {
        config
            .notify
            .iter()
            .map(|n| n.name.as_str())
            .collect::<Vec<_>>()
    };
    if let Some(unknown) = names.iter().find(|n| !known().contains(&n.as_str())) {
        return Err(Failure::new(
            2,
            format!("no channel is named \"{unknown}\""),
            Some(format!("there are {}", known().join(", "))),
        ));
    }
    let chosen = config
        .notify
        .iter()
        .filter(|n| names.is_empty() || names.contains(&n.name));
    let (mut shown, mut failed, mut count) = (Vec::new(), Vec::new(), 0);
    for channel in chosen {
        count += 1;
        let result = notify::test(channel, &config.instance).await;
        let error = result.as_ref().err().map(ToString::to_string);
        let hint = result.as_ref().err().map(notify::send::SendError::hint);
        if !as_json {
            match (&error, hint) {
                (Some(error), Some(hint)) => println!("{}: {error}\n    {hint}", channel.name),
                _ => println!("{}: accepted by the receiver", channel.name),
            }
        }
        if error.is_some() {
            failed.push(channel.name.as_str());
        }
        shown.push(json!({ "channel": channel.name, "kind": channel.channel.word(), "ok": error.is_none(), "error": error, "hint": hint }));
    }
    if as_json {
        println!("{}", json!({ "channels": shown }));
    }
    if failed.is_empty() {
        ok(&format!("notify test channels={count}"));
        return Ok(());
    }
    Err(Failure::new(
        1,
        format!("{} would not be told", failed.join(", ")),
        Some("the lines above say why".into()),
    ))
}

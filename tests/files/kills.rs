//! Runs that were killed.

use crate::site::{Running, Site, noise, packs, picture, wait_for};

#[test]
fn a_killed_run_is_gone_on_with() {
    let site = Site::new();
    site.write("first", b"first");
    site.backup();
    for n in 0..24 {
        site.write(&format!("big{n}"), &noise(n, 2_000_000));
    }
    let before = packs(&site).len();
    let mut run = Running(site.prepared(&["snapshot"]).spawn().unwrap());
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while packs(&site).len() < before + 4 {
        assert!(std::time::Instant::now() < deadline, "no packs");
        assert!(
            run.0.try_wait().unwrap().is_none(),
            "it was too fast to be killed"
        );
    }
    run.0.kill().unwrap();
    run.0.wait().unwrap();
    assert_eq!(site.points().len(), 1, "nothing was recorded");
    site.restic(&["unlock"]);
    site.restic(&["check", "--read-data"]);
    let mut run = Running(site.prepared(&["snapshot"]).spawn().unwrap());
    wait_for("pack", || packs(&site).len() > before + 4);
    run.0.kill().unwrap();
    run.0.wait().unwrap();
    let second = site.backup();
    assert_eq!(second["resumed"], true, "{second}");
    let uploaded = second["uploaded"].as_u64().unwrap();
    assert!(uploaded < 48_000_000 - 12_000_000, "{uploaded} bytes again");
    site.ok(&["verify"]);
    site.ok(&["prune"]);
    site.restic(&["check", "--read-data"]);
}

#[test]
fn heavy_kills_at_random_moments_never_damage_what_was_there() {
    let site = Site::new();
    let mut known: Vec<(String, Vec<String>)> = Vec::new();
    let seed = std::env::var("SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(7_u64);
    println!("SEED={seed}");
    let moments = noise(seed, 8 * 16);
    for (round, moment) in moments.chunks(8).enumerate() {
        for n in 0..6 {
            site.write(
                &format!("r{round}/f{n}"),
                &noise((round * 10 + n) as u64, 900_000),
            );
        }
        site.write("same", &noise(round as u64, 2_000_000));
        let what = if round % 4 == 3 { "prune" } else { "snapshot" };
        let mut run = Running(site.prepared(&[what]).spawn().unwrap());
        let micros = u64::from_le_bytes(moment.try_into().unwrap()) % 1_500_000;
        std::thread::sleep(std::time::Duration::from_micros(micros));
        run.0.kill().unwrap();
        run.0.wait().unwrap();
        // The next run goes on whatever was left behind.
        let done = site.backup();
        let id = done["point"]["id"].as_str().unwrap().to_owned();
        known.push((id, picture(&site.path("data"))));
    }
    site.restic(&["unlock"]);
    site.restic(&["check", "--read-data"]);
    let there: Vec<String> = site
        .points()
        .iter()
        .map(|p| p["id"].as_str().unwrap().to_owned())
        .collect();
    for (id, wanted) in &known {
        assert!(there.contains(id), "{id} was kept by point-in-time");
        let to = format!("back-{}", &id[..8]);
        site.ok(&["restore", "uploads", "--snapshot", id, "-o", &to]);
        assert_eq!(&picture(&site.path(&to)), wanted);
        std::fs::remove_dir_all(site.path(&to)).unwrap();
    }
}

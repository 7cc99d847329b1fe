//! An app that goes on while its files are backed up.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::site::{Site, noise, words};

/// A version of a file: every byte the same, so that a mixture shows.
fn version(path: &Path, n: u8, bytes: usize) {
    std::fs::write(path, vec![n; bytes]).unwrap();
}

/// Rewrites in place, replaces, appends to, shortens, deletes and makes files, and turns folders into links and back, until told to stop.
fn app(root: &Path, outside: &Path, stop: &AtomicBool) {
    let mut n = 0_u8;
    while !stop.load(Ordering::Relaxed) {
        n = n.wrapping_add(1).max(1);
        version(&root.join("live/rewritten"), n, 300_000);
        version(&root.join("live/.new"), n, 200_000);
        std::fs::rename(root.join("live/.new"), root.join("live/replaced")).unwrap();
        version(&root.join("live/shrinks"), n, 100_000 + usize::from(n));
        let fresh = root.join(format!("live/fresh{}", n % 32));
        match fresh.exists() {
            true => std::fs::remove_file(&fresh).unwrap(),
            false => version(&fresh, n, 10_000),
        }
        let (folder, away) = (root.join("live/folder"), root.join("live/.away"));
        if folder.is_symlink() {
            std::fs::remove_file(&folder).unwrap();
            std::fs::rename(&away, &folder).unwrap();
        } else {
            std::fs::rename(&folder, &away).unwrap();
            std::os::unix::fs::symlink(outside, &folder).unwrap();
        }
    }
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn what_changes_meanwhile_is_whole_or_named() {
    let site = Site::new();
    for n in 0..200 {
        site.write(&format!("quiet/{n}"), &noise(n, 40_000));
        site.write(&format!("live/folder/{n}"), &[1]);
    }
    let outside = site.path("outside");
    std::fs::create_dir(&outside).unwrap();
    for n in 0..200 {
        std::fs::write(outside.join(n.to_string()), "SECRET OUTSIDE").unwrap();
    }
    let stop = AtomicBool::new(false);
    let mut partial = 0;
    std::thread::scope(|scope| {
        // Also when an assertion fails.
        let _stop = Stop(&stop);
        scope.spawn(|| app(&site.path("data"), &outside, &stop));
        for _ in 0..4 {
            let out = site.run(&["snapshot", "uploads", "--json"]);
            let text = String::from_utf8_lossy(&out.stdout).into_owned();
            let first = text.lines().next().unwrap_or_default();
            let value: serde_json::Value = serde_json::from_str(first).unwrap_or_else(|e| {
                panic!("{e}: {text}{}", String::from_utf8_lossy(&out.stderr));
            });
            let unreadable = value["backup"]["unreadable"].as_object().unwrap().clone();
            let point = &value["backup"]["point"];
            assert_eq!(point["partial"], !unreadable.is_empty(), "{value}");
            assert_eq!(out.status.success(), unreadable.is_empty(), "{value}");
            partial += u32::from(!unreadable.is_empty());
            let id = point["id"].as_str().unwrap();
            let to = format!("back-{id}");
            let out = site.run(&["restore", "uploads", "--snapshot", id, "-o", &to]);
            assert!(out.status.success(), "{}", words(&out));
            looked_at(&site, &site.path(&to), &unreadable);
        }
    });
    println!("{partial} of 4 were partial");
    site.restic(&["check", "--read-data"]);
}

fn looked_at(site: &Site, back: &Path, unreadable: &serde_json::Map<String, serde_json::Value>) {
    for n in 0..200 {
        let file = std::fs::read(back.join(format!("quiet/{n}"))).unwrap();
        assert!(file == noise(n, 40_000), "quiet/{n}");
    }
    for entry in std::fs::read_dir(back.join("live")).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if entry.file_type().unwrap().is_symlink() {
            continue;
        }
        if entry.file_type().unwrap().is_dir() {
            for below in std::fs::read_dir(entry.path()).unwrap() {
                let content = std::fs::read(below.unwrap().path()).unwrap();
                assert_eq!(content, [1], "nothing from outside");
            }
            continue;
        }
        let content = std::fs::read(entry.path()).unwrap();
        let whole = content.windows(2).all(|w| w[0] == w[1]);
        let named = unreadable.contains_key(site.data(&format!("live/{name}")).to_str().unwrap());
        assert!(whole || named, "{name} is a mixture that nobody named");
    }
}

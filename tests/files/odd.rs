//! What file systems have besides plain files.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, XattrFlags, lgetxattr, lsetxattr, mkdirat, mknodat};

use crate::site::{Site, picture, words};

/// An access control list in the kernel's form: version 2, then tag, permissions and id of each entry.
fn acl(user: u32) -> Vec<u8> {
    const NOBODY: u32 = u32::MAX;
    let entries: [(u16, u16, u32); 5] = [
        (0x01, 6, NOBODY),
        (0x02, 6, user),
        (0x04, 4, NOBODY),
        (0x10, 6, NOBODY),
        (0x20, 0, NOBODY),
    ];
    let mut out = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        out.extend(tag.to_le_bytes());
        out.extend(permissions.to_le_bytes());
        out.extend(id.to_le_bytes());
    }
    out
}

const ATTRIBUTES: [(&str, &str); 7] = [
    ("file", "user.text"),
    ("file", "user.bytes"),
    ("file", "user.empty"),
    ("file", "system.posix_acl_access"),
    ("dir", "user.of a folder"),
    ("dir", "system.posix_acl_default"),
    ("read-only", "user.text"),
];

fn attributes(root: &Path) -> Vec<Option<Vec<u8>>> {
    let one = |(name, attribute): &(&str, &str)| {
        let mut value = vec![0; 1 << 12];
        let length = lgetxattr(root.join(name), *attribute, &mut value[..]).ok()?;
        Some(value[..length].to_vec())
    };
    ATTRIBUTES.iter().map(one).collect()
}

#[test]
fn extended_attributes_and_access_lists_survive_both_ways() {
    let site = Site::new();
    for name in ["file", "dir/below", "read-only"] {
        site.write(name, b"content");
    }
    for (name, attribute) in ATTRIBUTES {
        let value = match attribute {
            "user.bytes" => b"\0\xff\n\"".to_vec(),
            "user.empty" => Vec::new(),
            _ if attribute.starts_with("system.") => acl(1234),
            _ => vec![b'x'; 1000],
        };
        lsetxattr(site.data(name), attribute, &value, XattrFlags::empty())
            .expect("the temporary folder needs a file system with extended attributes and ACLs");
    }
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::Permissions::from_mode(0o444);
    std::fs::set_permissions(site.data("read-only"), mode).unwrap();
    let (wanted, before) = (attributes(&site.path("data")), picture(&site.path("data")));
    assert!(wanted.iter().all(Option::is_some), "{wanted:?}");
    site.backup();
    site.ok(&["restore", "uploads", "-o", "ours"]);
    assert_eq!(attributes(&site.path("ours")), wanted);
    assert_eq!(picture(&site.path("ours")), before);
    let theirs = site.path("theirs");
    site.restic(&["restore", "latest", "--target", theirs.to_str().unwrap()]);
    let theirs = theirs.join(site.path("data").strip_prefix("/").unwrap());
    assert_eq!(attributes(&theirs), wanted);
    // And from restic to ours.
    let data = site.path("data");
    site.restic(&["backup", data.to_str().unwrap()]);
    site.ok(&["restore", "uploads", "-o", "from-restic"]);
    assert_eq!(attributes(&site.path("from-restic")), wanted);
    // An attribute alone is a change.
    lsetxattr(site.data("file"), "user.text", b"new", XattrFlags::empty()).unwrap();
    site.backup();
    site.ok(&["restore", "uploads", "--path", "file", "-o", "again"]);
    let mut value = [0; 16];
    let length = lgetxattr(site.path("again/file"), "user.text", &mut value[..]).unwrap();
    assert_eq!(&value[..length], b"new");
    // In place and back.
    site.ok(&["restore", "uploads", "--in-place"]);
    site.ok(&["restore", "uploads", "--undo"]);
    let mut now = attributes(&site.path("data"));
    now[0].clone_from(&wanted[0]);
    assert_eq!(now, wanted);
}

#[test]
fn pipes_sockets_and_devices_hold_nothing_up() {
    let site = Site::new();
    site.write("file", b"content");
    let mode = Mode::from_raw_mode(0o640);
    mknodat(CWD, site.data("pipe"), FileType::Fifo, mode, 0).unwrap();
    let null = rustix::fs::makedev(1, 3);
    mknodat(
        CWD,
        site.data("null"),
        FileType::CharacterDevice,
        mode,
        null,
    )
    .expect("the tests of files need root");
    let block = rustix::fs::makedev(7, 99);
    mknodat(CWD, site.data("block"), FileType::BlockDevice, mode, block).unwrap();
    let _listener = UnixListener::bind(site.data("socket")).unwrap();
    let before = picture(&site.path("data"));
    site.ok(&["snapshot", "uploads"]);
    site.restic(&["check", "--read-data"]);
    site.ok(&["verify"]);
    site.ok(&["drill"]);
    site.ok(&["restore", "uploads", "-o", "back"]);
    assert_eq!(picture(&site.path("back")), before);
    let kind = |name: &str| {
        let found = site.path("back").join(name).symlink_metadata();
        found.unwrap().file_type()
    };
    assert!(kind("pipe").is_fifo() && kind("socket").is_socket());
    assert!(kind("null").is_char_device() && kind("block").is_block_device());
}

/// A folder below folders below folders, made step by step, because its whole path is longer than a system call takes.
fn deep(root: &Path, levels: usize) -> PathBuf {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY;
    let mut folder = rustix::fs::open(root, flags, Mode::empty()).unwrap();
    let mut path = root.to_owned();
    let name = "n".repeat(250);
    for _ in 0..levels {
        mkdirat(&folder, &name, Mode::from_raw_mode(0o755)).unwrap();
        folder = rustix::fs::openat(&folder, &name, flags, Mode::empty()).unwrap();
        path.push(&name);
    }
    let flags = OFlags::CREATE | OFlags::WRONLY;
    let file = rustix::fs::openat(&folder, "end", flags, Mode::from_raw_mode(0o644)).unwrap();
    rustix::io::write(&file, b"at the end").unwrap();
    path.join("end")
}

#[test]
fn paths_of_any_length_are_kept_or_named() {
    let site = Site::new();
    site.write("short", b"short");
    let end = deep(&site.path("data"), 15);
    assert!(end.as_os_str().len() > 3700);
    let before = picture(&site.path("data"));
    site.ok(&["snapshot", "uploads"]);
    site.ok(&["restore", "uploads", "-o", "back"]);
    assert_eq!(picture(&site.path("back")), before);
    site.restic(&["check", "--read-data"]);
    // To a place where the paths are too long: that is said, and the rest is there.
    let far = "f".repeat(200);
    let far = [far.as_str(), &far, &far].join("/");
    let text = site.refused(&["restore", "uploads", "-o", &far], 5);
    assert!(
        text.contains("could not be restored: File name too long"),
        "{text}"
    );
    assert_eq!(
        std::fs::read(site.path(&far).join("short")).unwrap(),
        b"short"
    );
    // Longer than any path can be: named, and the run is partial.
    let second = site.path("data").join("second");
    std::fs::create_dir(&second).unwrap();
    deep(&second, 18);
    let text = site.refused(&["snapshot", "uploads"], 1);
    assert!(
        text.contains("PARTIAL") && text.contains("File name too long"),
        "{text}"
    );
    assert_eq!(site.points()[1]["partial"], true);
    // Python's own removal goes step by step, too.
    let out = std::process::Command::new("rm")
        .arg("-rf")
        .arg(second)
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", words(&out));
}

/// A path of the configuration that is a link means what it leads to.
#[test]
fn a_linked_folder_is_followed_once_and_links_in_it_never() {
    let mut site = Site::new();
    site.write("inside", b"inside");
    std::fs::write(site.path("outside"), b"outside").unwrap();
    std::os::unix::fs::symlink(site.path("outside"), site.data("link")).unwrap();
    let real = site.path("real");
    std::fs::rename(site.path("data"), &real).unwrap();
    std::os::unix::fs::symlink(&real, site.path("data")).unwrap();
    let backup = site.backup();
    assert_eq!(backup["point"]["files"], 2, "{backup}");
    site.extra += "    # the same again\n";
    site.ok(&["restore", "uploads", "-o", "back"]);
    let back = site.path("back");
    assert_eq!(std::fs::read(back.join("inside")).unwrap(), b"inside");
    let link = std::fs::read_link(back.join("link")).unwrap();
    assert_eq!(
        link.as_os_str().as_bytes(),
        site.path("outside").as_os_str().as_bytes()
    );
}

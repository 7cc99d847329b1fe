#!/usr/bin/env python3
"""Files: round trip of many files with restic as referee, a second run after 1% changed, peak memory of every command.

usage: bench/files.py LIFEBOAT [FILES] [BYTES]      (default 100000 files, 2 GB)
       bench/files.py LIFEBOAT 1000000 200000000    (a million small files, in 65,000 folders; some minutes)
"""
import hashlib, os, random, subprocess, sys, tempfile, time

lifeboat = os.path.abspath(sys.argv[1])
count = int(sys.argv[2]) if len(sys.argv) > 2 else 100_000
total = int(sys.argv[3]) if len(sys.argv) > 3 else 2_000_000_000
# With a million files restic would take most of the time: it backs up and restores fewer, and only reads ours.
referee = count < 500_000
chance = random.Random(1)


def write(path, size):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as f:
        f.write(chance.randbytes(size))


def measured(words, env=None):
    """Seconds, CPU seconds and peak resident MiB of a command that must succeed."""
    begun = time.time()
    out = subprocess.run(["/usr/bin/time", "-f", "%M %U %S", *words], capture_output=True, text=True, env={**os.environ, **(env or {})})
    assert out.returncode == 0, out.stdout + out.stderr
    peak, user, system = out.stderr.strip().splitlines()[-1].split()
    return time.time() - begun, float(user) + float(system), int(peak) / 1024, out.stdout


def picture(root):
    """Name, kind, mode, owner, size, time and hash of everything, as one number for each."""
    found = {}
    for folder, dirs, files in os.walk(root):
        for name in dirs + files:
            path = os.path.join(folder, name)
            s = os.lstat(path)
            is_file = not os.path.isdir(path)
            seen = hashlib.sha256(repr((s.st_mode, s.st_uid, s.st_gid, s.st_size if is_file else 0, s.st_mtime_ns)).encode())
            if is_file:
                seen.update(open(path, "rb").read())
            found[os.path.relpath(path, root)] = seen.digest()[:16]
    return found


def size_of(folder):
    return sum(os.path.getsize(os.path.join(d, f)) for d, _, files in os.walk(folder) for f in files)


with tempfile.TemporaryDirectory() as base:
    data, store, other = f"{base}/data", f"{base}/store", f"{base}/theirs"
    names = []
    for i in range(count):
        h = f"{(i * 2654435761) & 0xFFFFFFFF:08x}"
        names.append(f"{data}/{h[:2]}/{h[2:4]}/{h}{i}")
        write(names[-1], min(int(chance.expovariate(count / total)), 1 << 26))
    config = f"{base}/lifeboat.yml"
    with open(config, "w") as f:
        f.write(f"store: file://{store}\nstate-dir: {base}/state\nhttp: off\nfiles:\n  - {{ name: files, paths: [{data}], password: bench, create: true }}\n")
    env = {"RESTIC_PASSWORD": "bench"}
    restic = ["restic", "--no-cache", "-q", "-r", f"{store}/files"]
    theirs = ["restic", "--no-cache", "-q", "-r", other]
    subprocess.run([*theirs, "init"], check=True, env={**os.environ, **env})
    wanted = picture(data)
    folders = len(wanted) - count
    print(f"{count} files in {folders} folders, {size_of(data)} bytes")

    def line(what, result, extra=""):
        print(f"{what:<34}{result[0]:8.1f} s  {result[1]:8.1f} s CPU  {result[2]:7.0f} MiB peak  {extra}", flush=True)

    def run(*words):
        return measured([lifeboat, *words, "--config", config])

    def backed_up(what):
        before = size_of(store), size_of(other)
        line(f"lifeboat, {what}", run("snapshot", "files"), f"{size_of(store) - before[0]} bytes more")
        if referee:
            line(f"restic, {what}", measured([*theirs, "backup", data], env), f"{size_of(other) - before[1]} bytes more")

    def removed(folder):
        subprocess.run(["rm", "-rf", folder], check=True)

    backed_up("first backup")
    backed_up("nothing changed")
    changed = count // 100
    for name in chance.sample(names, changed):
        write(name, os.path.getsize(name) + 1)
    backed_up(f"{changed} files changed")
    wanted = picture(data)
    line("lifeboat restores ours", run("restore", "files", "-o", f"{base}/r2"))
    assert picture(f"{base}/r2") == wanted, "our restore differs"
    removed(f"{base}/r2")
    line("lifeboat verifies ours", run("verify", "files"))
    line("lifeboat drills ours", run("drill", "files"))
    line("lifeboat prunes ours", run("prune", "files"))
    line("restic check --read-data of ours", measured([*restic, "check", "--read-data"], env))
    if not referee:
        print("our restore is equal to the folder: names, modes, owners, times, content")
        sys.exit()
    line("restic restores ours", measured([*restic, "restore", "latest", "--target", f"{base}/r1"], env))
    assert picture(f"{base}/r1{data}") == wanted, "restic's restore differs"
    removed(f"{base}/r1")
    line("restic checks theirs", measured([*theirs, "check", "--read-data"], env))
    line("restic restores theirs", measured([*theirs, "restore", "latest", "--target", f"{base}/r1"], env))
    print("both restores of ours are equal to the folder: names, modes, owners, times, content")

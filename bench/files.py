#!/usr/bin/env python3
"""Files: round trip of many files with restic as referee, a second run after 1% changed, peak memory.

usage: bench/files.py LIFEBOAT [FILES] [BYTES]      (default 100000 files, 2 GB)
"""
import hashlib, os, random, resource, subprocess, sys, tempfile, time

lifeboat = os.path.abspath(sys.argv[1])
count = int(sys.argv[2]) if len(sys.argv) > 2 else 100_000
total = int(sys.argv[3]) if len(sys.argv) > 3 else 2_000_000_000
chance = random.Random(1)


def write(path, size):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as f:
        f.write(chance.randbytes(size))


def measured(words, env=None):
    """Seconds, CPU seconds and peak resident MiB of a command that must succeed."""
    begun, before = time.time(), resource.getrusage(resource.RUSAGE_CHILDREN)
    out = subprocess.run(["/usr/bin/time", "-f", "%M %U %S", *words], capture_output=True, text=True, env={**os.environ, **(env or {})})
    assert out.returncode == 0, out.stdout + out.stderr
    peak, user, system = out.stderr.strip().splitlines()[-1].split()
    return time.time() - begun, float(user) + float(system), int(peak) / 1024, out.stdout


def picture(root):
    """Name, kind, mode, owner, size, time and hash of everything."""
    found = {}
    for folder, dirs, files in os.walk(root):
        for name in dirs + files:
            path = os.path.join(folder, name)
            s = os.lstat(path)
            is_file = not os.path.isdir(path)
            content = hashlib.sha256(open(path, "rb").read()).hexdigest() if is_file else ""
            found[os.path.relpath(path, root)] = (s.st_mode, s.st_uid, s.st_gid, s.st_size if is_file else 0, s.st_mtime_ns, content)
    return found


def size_of(folder):
    return sum(os.path.getsize(os.path.join(d, f)) for d, _, files in os.walk(folder) for f in files)


with tempfile.TemporaryDirectory() as base:
    data, store = f"{base}/data", f"{base}/store"
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
    theirs = ["restic", "--no-cache", "-q", "-r", f"{base}/theirs"]
    subprocess.run([*theirs, "init"], check=True, env={**os.environ, **env})
    print(f"{count} files, {size_of(data)} bytes")

    def line(what, result, extra=""):
        print(f"{what:<34}{result[0]:8.1f} s  {result[1]:8.1f} s CPU  {result[2]:7.0f} MiB peak  {extra}", flush=True)

    backup = [lifeboat, "snapshot", "files", "--config", config]
    line("lifeboat, first", measured(backup), f"{size_of(store)} bytes in the store")
    line("restic, first", measured([*theirs, "backup", data], env), f"{size_of(base + '/theirs')} bytes in the store")
    before = size_of(store), size_of(base + "/theirs")
    line("lifeboat, nothing changed", measured(backup), f"{size_of(store) - before[0]} bytes more")
    for name in chance.sample(names, count // 100):
        write(name, os.path.getsize(name) + 1)
    before = size_of(store), size_of(base + "/theirs")
    changed = count // 100
    line(f"lifeboat, {changed} files changed", measured(backup), f"{size_of(store) - before[0]} bytes more")
    line(f"restic, {changed} files changed", measured([*theirs, "backup", data], env), f"{size_of(base + '/theirs') - before[1]} bytes more")
    wanted = picture(data)
    line("restic check --read-data of ours", measured([*restic, "check", "--read-data"], env))
    line("restic restores ours", measured([*restic, "restore", "latest", "--target", f"{base}/r1"], env))
    assert picture(f"{base}/r1{data}") == wanted, "restic's restore differs"
    subprocess.run(["rm", "-rf", f"{base}/r1"], check=True)
    line("lifeboat restores ours", measured([lifeboat, "restore", "files", "-o", f"{base}/r2", "--config", config]))
    assert picture(f"{base}/r2") == wanted, "our restore differs"
    print("both restores are equal to the folder: names, modes, owners, times, content")

"""Lifeboat and Litestream on the same work, in one run; prints ratios (below 1: Lifeboat needs less).

usage: side_by_side.py [snapshot] [restore] [delay] [rate] [seed] [idle]      (default: all)
environment: BENCH_MIB (size of the database, default 1024), BENCH_LIFEBOAT, BENCH_LITESTREAM (other binaries)
"""
import os
import random
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LIFEBOAT = os.environ.get("BENCH_LIFEBOAT", ROOT + "/target/release/lifeboat")
LITESTREAM = os.environ.get("BENCH_LITESTREAM", ROOT + "/.tools/venv/bin/litestream")
MIB = int(os.environ.get("BENCH_MIB", "1024"))
TICKS = os.sysconf("SC_CLK_TCK")
ENV = {k: v for k, v in os.environ.items() if k != "AWS_CA_BUNDLE"}
rows = []


def row(what, ours, theirs, unit):
    ratio = ours / theirs if theirs else float("nan")
    rows.append((what, ours, theirs, unit, ratio))
    print("%-44s %12.2f %12.2f %-6s %8.3f" % rows[-1], flush=True)


def make(path, mib):
    c = sqlite3.connect(path, isolation_level=None)
    c.execute("pragma journal_mode=wal")
    c.execute("pragma synchronous=normal")
    c.execute("create table t(id integer primary key, a)")
    rnd = random.Random(1)
    words = [rnd.randbytes(40) for _ in range(2000)]
    left = mib << 20
    while left > 0:
        c.execute("begin")
        for _ in range(2000):
            c.execute("insert into t(a) values(?)", (b"".join(rnd.choices(words, k=24)),))
        c.execute("commit")
        left -= 2000 * 1010
    c.execute("pragma wal_checkpoint(truncate)")
    c.close()


def size(folder):
    total = 0
    for base, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.path.getsize(os.path.join(base, name))
            except FileNotFoundError:
                pass
    return total


class Sidecar:
    def __init__(self, kind, folder, databases):
        self.kind, self.folder = kind, folder
        self.store = os.path.join(folder, kind + "-store")
        self.state = os.path.join(folder, kind + "-state")
        self.config = os.path.join(folder, kind + ".yml")
        with open(self.config, "w") as f:
            if kind == "lifeboat":
                f.write("store: {url: 'file://%s'}\nstate-dir: %s\nhttp: off\nsqlite:\n" % (self.store, self.state))
                for db in databases:
                    f.write("  - path: %s\n" % db)
            else:
                f.write("dbs:\n")
                for db in databases:
                    name = os.path.basename(db).split(".")[0]
                    f.write("  - path: %s\n    replica:\n      type: file\n      path: %s/%s\n" % (db, self.store, name))

    def start(self):
        command = [LIFEBOAT, "run", "--config"] if self.kind == "lifeboat" else [LITESTREAM, "replicate", "-config"]
        log = open(self.config + ".log", "w")
        self.process = subprocess.Popen(command + [self.config], stdout=log, stderr=log, env=ENV)
        return self

    def cpu(self):
        with open("/proc/%d/stat" % self.process.pid) as f:
            fields = f.read().rsplit(") ", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def memory(self, key):
        with open("/proc/%d/status" % self.process.pid) as f:
            for line in f:
                if line.startswith(key):
                    return int(line.split()[1]) / 1024

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def newest(self):
        best = 0
        for folder in ("app/ltx/0",):
            try:
                names = os.listdir(os.path.join(self.store, folder))
            except FileNotFoundError:
                continue
            for name in names:
                if name.endswith(".ltx"):
                    best = max(best, int(name[17:33], 16))
        return best

    def base(self):
        try:
            return any(n.endswith(".ltx") for n in os.listdir(os.path.join(self.store, "app/ltx/9")))
        except FileNotFoundError:
            return False

    def restore(self, out):
        if self.kind == "lifeboat":
            return [LIFEBOAT, "restore", "app", "-o", out, "--verify", "none", "--config", self.config]
        return [LITESTREAM, "restore", "-config", self.config, "-o", out, os.path.join(self.folder, "app.db")]


def quiet(sidecar, seconds=5, limit=180):
    """Until CPU use has stopped."""
    end, last, since = time.time() + limit, -1, time.time()
    while time.time() < end:
        now = sidecar.cpu()
        if now > last + 0.05:
            last, since = now, time.time()
        if time.time() - since > seconds and sidecar.base():
            return
        time.sleep(0.2)


def snapshot_and_restore(work, want):
    source = os.path.join(work, "source.db")
    make(source, MIB)
    found = {}
    for kind in ("lifeboat", "litestream"):
        folder = os.path.join(work, kind)
        os.mkdir(folder)
        db = os.path.join(folder, "app.db")
        shutil.copy(source, db)
        c = sqlite3.connect(db, isolation_level=None)
        c.execute("insert into t(a) values(1)")
        sidecar = Sidecar(kind, folder, [db]).start()
        begun = time.time()
        while not sidecar.base() and time.time() - begun < 300:
            time.sleep(0.02)
        base = time.time() - begun
        quiet(sidecar)
        local = size(sidecar.state) + size(os.path.join(folder, ".app.db-litestream"))
        figures = dict(stored=size(sidecar.store) / 1e6, local=local / 1e6, cpu=sidecar.cpu(), peak=sidecar.memory("VmHWM"), base=base)
        sidecar.stop()
        out = os.path.join(folder, "out.db")
        times = []
        for _ in range(3):
            if os.path.exists(out):
                os.remove(out)
            begun = time.time()
            subprocess.run(sidecar.restore(out), check=True, env=ENV, capture_output=True)
            times.append(time.time() - begun)
        figures["restore"] = statistics.median(times)
        begun = time.time()
        shutil.copy(db, out)
        figures["cp"] = time.time() - begun
        found[kind] = figures
        c.close()
        shutil.rmtree(folder)
    a, b = found["lifeboat"], found["litestream"]
    if "snapshot" in want:
        row("first copy: bytes in the store", a["stored"], b["stored"], "MB")
        row("first copy: bytes kept locally", a["local"], b["local"], "MB")
        row("first copy: CPU", a["cpu"], b["cpu"], "s")
        row("first copy: peak memory", a["peak"], b["peak"], "MiB")
        row("first copy: until it is there", a["base"], b["base"], "s")
    if "restore" in want:
        row("restore", a["restore"], b["restore"], "s")
        row("restore, beside plain cp", a["restore"], a["cp"], "s")


def delay(work):
    found = {}
    for kind in ("lifeboat", "litestream"):
        folder = os.path.join(work, "delay-" + kind)
        os.mkdir(folder)
        db = os.path.join(folder, "app.db")
        make(db, 8)
        sidecar = Sidecar(kind, folder, [db]).start()
        quiet(sidecar, 2, 30)
        c = sqlite3.connect(db, isolation_level=None, timeout=5)
        c.execute("pragma synchronous=normal")
        lone = []
        for i in range(8):
            time.sleep(1.7)
            before = sidecar.newest()
            c.execute("update t set a=? where id=?", (os.urandom(500), i + 1))
            begun = time.time()
            while sidecar.newest() == before and time.time() - begun < 5:
                time.sleep(0.001)
            lone.append((time.time() - begun) * 1e3)
        cpu, begun, n = sidecar.cpu(), time.time(), 0
        while time.time() - begun < 15:
            c.execute("update t set a=? where id=?", (os.urandom(500), random.randint(1, 5000)))
            n += 1
            time.sleep(max(0, begun + n / 200 - time.time()))
        busy = (sidecar.cpu() - cpu) / (time.time() - begun) * 100
        found[kind] = (statistics.median(lone), max(lone), busy)
        sidecar.stop()
        c.close()
    a, b = found["lifeboat"], found["litestream"]
    row("lone commit to stored object, median", a[0], b[0], "ms")
    row("lone commit to stored object, longest", a[1], b[1], "ms")
    row("200 commits/s: CPU of a core", a[2], b[2], "%")


def writers(db, seconds):
    script = (
        "import sqlite3,os,random,time,sys\n"
        "c=sqlite3.connect(sys.argv[1],isolation_level=None,timeout=20); c.execute('pragma synchronous=normal')\n"
        "end=time.time()+float(sys.argv[2]); n=0; worst=0\n"
        "while time.time()<end:\n"
        "    t=time.time(); c.execute('update t set a=? where id=?',(os.urandom(500),random.randint(1,5000))); worst=max(worst,time.time()-t); n+=1\n"
        "print(n,worst)"
    )
    processes = [subprocess.Popen([sys.executable, "-c", script, db, str(seconds)], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    results = [p.communicate()[0].split() for p in processes]
    return sum(int(r[0]) for r in results) / seconds, max(float(r[1]) for r in results) * 1e3


def rate(work):
    found = {}
    for kind in ("alone", "lifeboat", "litestream"):
        folder = os.path.join(work, "rate-" + kind)
        os.mkdir(folder)
        db = os.path.join(folder, "app.db")
        make(db, 8)
        sidecar = None
        if kind != "alone":
            sidecar = Sidecar(kind, folder, [db]).start()
            quiet(sidecar, 2, 30)
        found[kind] = writers(db, 10) + (os.path.getsize(db + "-wal") / 1e6 if os.path.exists(db + "-wal") else 0,)
        if sidecar:
            sidecar.stop()
    alone = found["alone"]
    print("three writers alone: %.0f commits/s, longest stall %.0f ms" % alone[:2])
    a, b = found["lifeboat"], found["litestream"]
    row("three writers: commits/s beside it", a[0], b[0], "1/s")
    row("three writers: share of the rate alone", 100 * a[0] / alone[0], 100 * b[0] / alone[0], "%")
    row("three writers: longest stall", a[1], b[1], "ms")
    row("three writers: WAL at the end", a[2], b[2], "MB")


PACED = (
    "import sqlite3,os,random,time,sys\n"
    "c=sqlite3.connect(sys.argv[1],isolation_level=None,timeout=20); c.execute('pragma synchronous=normal')\n"
    "rows=c.execute('select max(id) from t').fetchone()[0]; begun=time.time(); end=begun+float(sys.argv[2]); n=0; took=[]\n"
    "while time.time()<end:\n"
    "    t=time.time(); c.execute('update t set a=? where id=?',(os.urandom(500),random.randint(1,rows))); took.append(time.time()-t); n+=1\n"
    "    time.sleep(max(0,begun+n/200-time.time()))\n"
    "took.sort(); print(n,took[-1]*1e3,took[int(len(took)*0.999)]*1e3)"
)


def seed(work):
    """An app of 200 commits/s while the first copy of a large database is made."""
    source = os.path.join(work, "seed.db")
    make(source, MIB)
    found = {}
    for kind in ("alone", "lifeboat", "litestream"):
        folder = os.path.join(work, "seed-" + kind)
        os.mkdir(folder)
        db = os.path.join(folder, "app.db")
        shutil.copy(source, db)
        app = subprocess.Popen([sys.executable, "-c", PACED, db, "30"], stdout=subprocess.PIPE, text=True)
        sidecar, wal, base = None, 0, 0.0
        if kind != "alone":
            time.sleep(1)
            sidecar = Sidecar(kind, folder, [db]).start()
            begun = time.time()
        while app.poll() is None:
            if os.path.exists(db + "-wal"):
                wal = max(wal, os.path.getsize(db + "-wal"))
            if sidecar and not base and sidecar.base():
                base = time.time() - begun
            time.sleep(0.05)
        n, longest, p999 = map(float, app.communicate()[0].split())
        found[kind] = (n / 30, longest, p999, wal / 1e6, base)
        if sidecar:
            sidecar.stop()
        shutil.rmtree(folder)
    print("first copy under load, alone: %.0f commits/s, longest %.1f ms, 99.9 %% %.1f ms, WAL %.1f MB" % found["alone"][:4])
    for i, (what, unit) in enumerate((("commits/s", "1/s"), ("longest commit", "ms"), ("commit, 99.9 %", "ms"), ("largest WAL", "MB"), ("until it is there", "s"))):
        row("first copy under load: " + what, found["lifeboat"][i], found["litestream"][i], unit)


def idle(work):
    found = {}
    for kind in ("lifeboat", "litestream"):
        folder = os.path.join(work, "idle-" + kind)
        os.mkdir(folder)
        names = [os.path.join(folder, "db%03d.db" % i) for i in range(100)]
        for name in names:
            c = sqlite3.connect(name, isolation_level=None)
            c.execute("pragma journal_mode=wal")
            c.execute("create table t(a)")
            c.close()
        sidecar = Sidecar(kind, folder, names).start()
        time.sleep(75)
        cpu = sidecar.cpu()
        time.sleep(30)
        found[kind] = ((sidecar.cpu() - cpu) / 30 * 100, sidecar.memory("VmRSS"))
        sidecar.stop()
    a, b = found["lifeboat"], found["litestream"]
    row("100 idle databases: CPU of a core", a[0], b[0], "%")
    row("100 idle databases: memory", a[1], b[1], "MiB")


def main():
    want = set(sys.argv[1:]) or {"snapshot", "restore", "delay", "rate", "seed", "idle"}
    print("%-44s %12s %12s %-6s %8s" % ("", "Lifeboat", "Litestream", "", "ratio"))
    work = tempfile.mkdtemp(prefix="lifeboat-bench-")
    try:
        if want & {"snapshot", "restore"}:
            snapshot_and_restore(work, want)
        if "delay" in want:
            delay(work)
        if "rate" in want:
            rate(work)
        if "seed" in want:
            seed(work)
        if "idle" in want:
            idle(work)
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()

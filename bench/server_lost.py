"""From "the server is lost" to "the app's data is back and verified", on a new server that has nothing but the store.

The store is a real S3 server on this machine, so the network costs nothing here: what counts is reading, decompressing, checking and
writing. Beside it stands a plain copy of the same file, with fsync.

usage: server_lost.py
environment: BENCH_MIB (size of the database, default 1024), BENCH_RUNS (default 3), BENCH_LIFEBOAT (another binary)
"""
import hashlib
import os
import shutil
import signal
import socket
import sqlite3
import statistics
import subprocess
import tempfile
import time

from side_by_side import ENV, LIFEBOAT, MIB, ROOT, make

RUNS = int(os.environ.get("BENCH_RUNS", "3"))
KEY, SECRET = "AKEXAMPLE", "secret-of-this-bench"


def digest(path):
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def store(work):
    """A real S3 server over a folder."""
    os.makedirs(os.path.join(work, "s3", "bucket"))
    with socket.create_server(("127.0.0.1", 0)) as s:
        port = s.getsockname()[1]
    server = os.path.join(ROOT, ".tools/bin/s3s-fs")
    if not os.path.exists(server):
        raise SystemExit("the S3 server is missing: run bin/install-dev")
    args = ["--host", "127.0.0.1", "--port", str(port), "--access-key", KEY, "--secret-key", SECRET, os.path.join(work, "s3")]
    child = subprocess.Popen([server] + args, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.time() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return child, port
        except OSError:
            if time.time() > end:
                raise SystemExit("the S3 server does not listen")
            time.sleep(0.05)


class Host:
    """A volume, a state directory, and the sidecar's configuration."""

    def __init__(self, work, name, port):
        self.folder = os.path.join(work, name)
        os.makedirs(os.path.join(self.folder, "volume"))
        self.database = os.path.join(self.folder, "volume", "production.sqlite3")
        self.config = os.path.join(self.folder, "lifeboat.yml")
        with open(self.config, "w") as f:
            f.write(
                "store: {url: 's3://bucket/app', endpoint: 'http://127.0.0.1:%d', region: us-east-1, access-key-id: %s, secret-access-key: %s}\n"
                "state-dir: %s/state\nhttp: off\nsqlite:\n  - path: %s\n" % (port, KEY, SECRET, self.folder, self.database)
            )
        self.env = dict(ENV, LIFEBOAT_INSTANCE=name)

    def lifeboat(self, *words):
        done = subprocess.run([LIFEBOAT, *words, "--config", self.config], env=self.env, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)
        return done.stdout

    def sidecar(self):
        log = open(self.config + ".log", "w")
        return subprocess.Popen([LIFEBOAT, "run", "--config", self.config], env=self.env, stdout=log, stderr=log)


def print_row(what, seconds):
    print("%-64s %8.2f s" % (what, statistics.median(seconds)), flush=True)


def new_server(work, run, port, wanted, figures):
    """One recovery; `figures` grows by its parts."""
    host = Host(work, "new%d" % run, port)
    try:
        begun = time.time()
        host.lifeboat("restore", "--all", "--if-not-exists")
        restored = time.time()
        rows = sqlite3.connect(host.database).execute("select count(*) from t").fetchone()[0]
        back = time.time()
        if rows != wanted["rows"]:
            raise SystemExit("%d rows are back, not %d" % (rows, wanted["rows"]))
        figures["back"].append(back - begun)
        figures["restore"].append(restored - begun)
        # Not measured: the whole content is the lost server's.
        if digest(host.database) != wanted["digest"]:
            raise SystemExit("the restored database differs")
        copy = host.database + ".copy"
        begun = time.time()
        with open(host.database, "rb") as a, open(copy, "wb") as b:
            shutil.copyfileobj(a, b, 1 << 20)
            b.flush()
            os.fsync(b.fileno())
        figures["copy"].append(time.time() - begun)
        os.remove(copy)
        os.remove(host.database)
        begun = time.time()
        host.lifeboat("restore", "--all", "--if-not-exists", "--verify", "full")
        figures["full"].append(time.time() - begun)
        if run == 0:
            claim(host, figures)
    finally:
        shutil.rmtree(host.folder)


def claim(host, figures):
    """The new server goes on with the replica: until what is there is durable again."""
    begun = time.time()
    sidecar = host.sidecar()
    try:
        while not os.path.exists(os.path.join(host.folder, "state/lifeboat.sock")):
            if sidecar.poll() is not None:
                raise SystemExit(open(host.config + ".log").read())
            time.sleep(0.02)
        host.lifeboat("claim", "production")
        end = time.time() + 300
        while True:
            try:
                host.lifeboat("sync")
                break
            except SystemExit:
                if time.time() > end:
                    raise
                time.sleep(0.1)
        figures["claim"].append(time.time() - begun)
    finally:
        sidecar.send_signal(signal.SIGTERM)
        sidecar.wait(60)


def main():
    work = tempfile.mkdtemp(prefix="lifeboat-lost-")
    server = None
    try:
        server, port = store(work)
        old = Host(work, "old", port)
        make(old.database, MIB)
        sidecar = old.sidecar()
        app = sqlite3.connect(old.database, isolation_level=None, timeout=10)
        while not os.path.exists(os.path.join(old.folder, "state/lifeboat.sock")):
            time.sleep(0.02)
        old.lifeboat("sync", "--timeout", "600s")
        # Changes after the full copy: a restore applies them too.
        for i in range(20):
            app.execute("update t set a = randomblob(900) where id % 1000 = ?", (i,))
            time.sleep(0.1)
        old.lifeboat("sync")
        wanted = {"rows": app.execute("select count(*) from t").fetchone()[0]}
        # The server is lost at this moment.
        sidecar.kill()
        sidecar.wait()
        app.execute("pragma wal_checkpoint(truncate)")
        app.close()
        wanted["digest"] = digest(old.database)
        shutil.rmtree(old.folder)
        figures = {name: [] for name in ("restore", "back", "full", "copy", "claim")}
        for run in range(RUNS):
            new_server(work, run, port, wanted, figures)
        print("database: %d MiB, median of %d runs" % (MIB, RUNS))
        print_row("restored from S3, checksums and quick_check", figures["restore"])
        print_row("server lost -> app data back, verified, and answering", figures["back"])
        print_row("the same with --verify full (integrity and foreign keys)", figures["full"])
        print_row("beside it: a plain copy of the file with fsync", figures["copy"])
        print_row("and then: sidecar started, replica claimed, durable again", figures["claim"])
    finally:
        if server:
            server.kill()
            server.wait()
        shutil.rmtree(work)


main()

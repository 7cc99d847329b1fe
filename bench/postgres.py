#!/usr/bin/env python3
"""A dump by Lifeboat beside `pg_dump | gzip` and `pg_dump -Fc`, in one run: time, CPU, memory, size; then the restores.

Lifeboat does more than the others: it decodes the whole dump while it streams, counts every row, hashes before and after compression,
and its store flushes to disk. CPU is that of the clients; the server's work is the same for all. Memory is that of the whole tree of
processes (PSS), and of the `lifeboat` process alone.

usage: postgres.py
environment: BENCH_MIB (size of the database, default 1024), BENCH_RUNS (default 3), BENCH_LIFEBOAT (another binary)
"""
import glob
import os
import pwd
import resource
import shutil
import socket
import statistics
import subprocess
import tempfile
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LIFEBOAT = os.environ.get("BENCH_LIFEBOAT", os.path.join(ROOT, "target/release/lifeboat"))
MIB = int(os.environ.get("BENCH_MIB", "1024"))
RUNS = int(os.environ.get("BENCH_RUNS", "3"))
KEY, SECRET = "AKEXAMPLE", "secret-of-this-bench"


def programs():
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))
    if not found:
        raise SystemExit("no PostgreSQL server is installed: run bin/install-dev")
    return os.path.dirname(found[-1])


BIN = programs()


class Server:
    """A server of its own, without TCP; it refuses to run as root."""

    def __init__(self, work):
        self.folder = os.path.join(work, "server")
        os.makedirs(self.folder)
        self.as_user = []
        if os.getuid() == 0:
            user = pwd.getpwnam("postgres")
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            os.chmod(work, 0o755)
            self.as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        data = os.path.join(self.folder, "data")
        subprocess.run([*self.as_user, f"{BIN}/initdb", "-A", "trust", "-U", "boss", "-E", "UTF8", "--no-sync", "-D", data], check=True, stdout=subprocess.DEVNULL)
        options = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={self.folder}", "-c", "max_wal_size=4GB", "-c", "fsync=off"]
        self.child = subprocess.Popen([*self.as_user, f"{BIN}/postgres", "-D", data, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.env = {**os.environ, "PGHOST": self.folder, "PGUSER": "boss"}
        end = time.time() + 60
        while subprocess.run([f"{BIN}/psql", "-d", "postgres", "-c", "SELECT 1"], env=self.env, capture_output=True).returncode:
            assert time.time() < end, "the server does not answer"
            time.sleep(0.1)

    def sql(self, database, text):
        done = subprocess.run([f"{BIN}/psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", database, "-f", "-"], input=text, env=self.env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def fill(self):
        """Orders with names, prices and a JSON document: text that compresses as text does, and a tenth that does not."""
        self.sql("postgres", "CREATE DATABASE app")
        self.sql("app", """CREATE EXTENSION pgcrypto;
            CREATE TABLE orders (id bigint, customer text, at timestamptz, amount numeric, note text, document jsonb, token bytea);""")
        rows = 0
        while int(self.sql("app", "SELECT pg_database_size('app')")) < MIB << 20:
            step = min(200_000, MIB * 400)
            self.sql("app", f"""INSERT INTO orders SELECT n, 'Customer ' || md5((n % 5000)::text), '2026-01-01'::timestamptz + n * interval '7 second',
                (n::bigint * 7919 % 100000) / 100.0, repeat('Deliver to the back door, please; ring twice. ', 1 + n % 5),
                jsonb_build_object('items', n % 9, 'coupon', md5(n::text), 'gift', n % 3 = 0), gen_random_bytes(40)
                FROM generate_series({rows + 1}, {rows + step}) n;""")
            rows += step
        self.sql("app", "ALTER TABLE orders ADD PRIMARY KEY (id); CREATE INDEX ON orders (customer); VACUUM ANALYZE;")
        return rows, int(self.sql("app", "SELECT pg_database_size('app')"))

    def stop(self):
        self.child.terminate()
        self.child.wait()


def s3(work):
    """A real S3 server over a folder."""
    os.makedirs(os.path.join(work, "s3", "bucket"))
    with socket.create_server(("127.0.0.1", 0)) as s:
        port = s.getsockname()[1]
    server = os.path.join(ROOT, ".tools/bin/s3s-fs")
    if not os.path.exists(server):
        raise SystemExit("the S3 server is missing: run bin/install-dev")
    arguments = ["--host", "127.0.0.1", "--port", str(port), "--access-key", KEY, "--secret-key", SECRET, os.path.join(work, "s3")]
    child = subprocess.Popen([server, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.time() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return child, port
        except OSError:
            assert time.time() < end, "the S3 server does not listen"
            time.sleep(0.05)


def tree(pid):
    found, todo = [], [pid]
    while todo:
        one = todo.pop()
        found.append(one)
        for path in glob.glob(f"/proc/{one}/task/*/children"):
            try:
                todo += [int(p) for p in open(path).read().split()]
            except OSError:
                pass
    return found


def memory(pid):
    """MiB of all of them together, shared pages once; and of the first alone, at its highest."""
    total, own = 0, 0
    for one in tree(pid):
        try:
            for line in open(f"/proc/{one}/smaps_rollup"):
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
            if one == pid:
                own = next(int(l.split()[1]) for l in open(f"/proc/{one}/status") if l.startswith("VmHWM"))
        except (OSError, StopIteration):
            pass
    return total / 1024, own / 1024


def measured(words, env):
    """Seconds, CPU seconds of its tree, peak MiB of the tree and of itself, for a command that must succeed."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
    child = subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    peaks, done = [0.0, 0.0], threading.Event()

    def watch():
        while not done.wait(0.05):
            peaks[:] = [max(a, b) for a, b in zip(peaks, memory(child.pid))]

    watcher = threading.Thread(target=watch)
    watcher.start()
    text, _ = child.communicate()
    seconds = time.time() - begun
    done.set()
    watcher.join()
    assert child.returncode == 0, text
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, cpu, *peaks


def size_of(path):
    if os.path.isfile(path):
        return os.path.getsize(path)
    return sum(os.path.getsize(os.path.join(d, f)) for d, _, files in os.walk(path) for f in files)


def main():
    with tempfile.TemporaryDirectory() as work:
        server = Server(work)
        bucket, port = s3(work)
        try:
            run(work, server, port)
        finally:
            bucket.terminate()
            bucket.wait()
            server.stop()


def run(work, server, port):
    rows, size = server.fill()
    print(f"{subprocess.run([BIN + '/pg_dump', '--version'], capture_output=True, text=True).stdout.strip()}: {rows} rows, {size / 2**20:.0f} MiB on the server; {RUNS} runs each", flush=True)
    config = {}
    for name, store in (("file", f"store: file://{work}/store"), ("s3", f"store: {{ url: 's3://bucket/x', endpoint: 'http://127.0.0.1:{port}', region: us-east-1, access-key-id: {KEY}, secret-access-key: {SECRET} }}")):
        config[name] = os.path.join(work, f"{name}.yml")
        with open(config[name], "w") as f:
            f.write(f"{store}\nstate-dir: {work}/state\nhttp: off\npostgres:\n  - {{ name: app, url: 'postgres://boss@/app?host={server.folder}' }}\n")
    snapshot = lambda name: [LIFEBOAT, "snapshot", "app", "--config", config[name]]
    shell = lambda text: ["bash", "-c", f"set -e -o pipefail; {text}"]
    ways = {
        "pg_dump -Fc -Z0 > /dev/null": (shell(f"{BIN}/pg_dump -Fc -Z0 app > /dev/null"), None),
        "pg_dump | gzip": (shell(f"{BIN}/pg_dump app | gzip > {work}/plain.gz; sync {work}/plain.gz"), f"{work}/plain.gz"),
        "pg_dump -Fc": (shell(f"{BIN}/pg_dump -Fc -f {work}/custom app; sync {work}/custom"), f"{work}/custom"),
        "lifeboat, folder": (snapshot("file"), f"{work}/store"),
        "lifeboat, S3": (snapshot("s3"), f"{work}/s3/bucket"),
    }
    results = {name: [] for name in ways}
    sizes = {}
    for _ in range(RUNS):
        for name, (words, out) in ways.items():
            if name.startswith("lifeboat"):
                shutil.rmtree(out, ignore_errors=True)
                os.makedirs(out)
            results[name].append(measured(words, server.env))
            if out:
                sizes[name] = size_of(out)
    table(results, sizes, ("pg_dump | gzip", "pg_dump -Fc"))

    restores = {
        "pg_restore": shell(f"{BIN}/createdb restored && {BIN}/pg_restore -e -d restored {work}/custom && {BIN}/psql -q -d restored -c ANALYZE"),
        "lifeboat, folder": [LIFEBOAT, "restore", "app", "--into-new", "restored", "--config", config["file"]],
        "lifeboat, S3": [LIFEBOAT, "restore", "app", "--into-new", "restored", "--config", config["s3"]],
    }
    picture = lambda database: server.sql(database, "SELECT count(*), sum(hashtextextended(t::text, 0)) FROM orders t")
    wanted = picture("app")
    results = {name: [] for name in restores}
    for name, words in restores.items():
        results[name].append(measured(words, server.env))
        assert picture("restored") == wanted, f"{name}: the restored database differs"
        server.sql("postgres", "DROP DATABASE restored")
    print("\nrestores, each equal to the original by a hash over all rows:")
    table(results, {}, ("pg_restore",))


def table(results, sizes, against):
    middle = {name: [statistics.median(column) for column in zip(*runs)] for name, runs in results.items()}
    for name, (seconds, cpu, all_of_it, own) in middle.items():
        ratios = "  ".join(f"{seconds / middle[a][0]:.2f}x time, {cpu / middle[a][1]:.2f}x CPU of {a}" for a in against if a != name and name.startswith("lifeboat"))
        size = f"{sizes[name] / 2**20:7.0f} MiB stored" if name in sizes else " " * 18
        print(f"{name:<30}{seconds:7.1f} s {cpu:7.1f} s CPU {all_of_it:6.0f} MiB, itself {own:4.0f} MiB {size}  {ratios}", flush=True)


main()

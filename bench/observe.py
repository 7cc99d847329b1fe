"""What observing costs: a scrape with many databases, an idle time with them, looks at the app's databases and servers.

usage: observe.py [scrape] [idle] [insight] [queue] [postgres]      (default: all)
environment: BENCH_LIFEBOAT (another binary), BENCH_DATABASES (100), BENCH_IDLE (seconds, 900), BENCH_JOBS (500000),
             BENCH_POSTGRES (URL of a server that may be read; without it `postgres` is left out)

Everything is in a temporary folder and on loopback; times are of this process's clock, processor time is the daemon's own with that of the
programs that it has run.
"""
import json
import os
import shutil
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LIFEBOAT = os.environ.get("BENCH_LIFEBOAT", ROOT + "/target/release/lifeboat")
DATABASES = int(os.environ.get("BENCH_DATABASES", "100"))
IDLE = int(os.environ.get("BENCH_IDLE", "900"))
JOBS = int(os.environ.get("BENCH_JOBS", "500000"))
POSTGRES = os.environ.get("BENCH_POSTGRES")
TICKS = os.sysconf("SC_CLK_TCK")
# Between two scrapes, as Prometheus does by default in config/prometheus/prometheus.yml.
SCRAPE_EVERY = 30

# What insight asks of Solid Queue: the columns and indexes that matter to its questions.
QUEUE = """
create table solid_queue_jobs (id integer primary key autoincrement not null, queue_name varchar not null, class_name varchar not null,
  arguments text, priority integer default 0 not null, active_job_id varchar, scheduled_at datetime(6), finished_at datetime(6),
  concurrency_key varchar, created_at datetime(6) not null, updated_at datetime(6) not null);
create table solid_queue_pauses (id integer primary key autoincrement not null, queue_name varchar not null, created_at datetime(6) not null);
create table solid_queue_processes (id integer primary key autoincrement not null, kind varchar not null, last_heartbeat_at datetime(6) not null,
  supervisor_id bigint, pid integer not null, hostname varchar, metadata text, created_at datetime(6) not null, name varchar not null);
create table solid_queue_ready_executions (id integer primary key autoincrement not null, job_id bigint not null, queue_name varchar not null,
  priority integer default 0 not null, created_at datetime(6) not null);
create unique index ready_job on solid_queue_ready_executions (job_id);
create index ready_all on solid_queue_ready_executions (priority, job_id);
create index ready_queue on solid_queue_ready_executions (queue_name, priority, job_id);
create table solid_queue_scheduled_executions (id integer primary key autoincrement not null, job_id bigint not null, queue_name varchar not null,
  priority integer default 0 not null, scheduled_at datetime(6) not null, created_at datetime(6) not null);
create index scheduled_all on solid_queue_scheduled_executions (scheduled_at, priority, job_id);
create table solid_queue_claimed_executions (id integer primary key autoincrement not null, job_id bigint not null, process_id bigint,
  created_at datetime(6) not null);
create table solid_queue_blocked_executions (id integer primary key autoincrement not null, job_id bigint not null, queue_name varchar not null,
  priority integer default 0 not null, concurrency_key varchar not null, expires_at datetime(6) not null, created_at datetime(6) not null);
create table solid_queue_failed_executions (id integer primary key autoincrement not null, job_id bigint not null, error text,
  created_at datetime(6) not null);
"""


def row(what, value, unit):
    print("%-62s %14s %s" % (what, value if isinstance(value, str) else "%.2f" % value, unit), flush=True)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Daemon:
    """Lifeboat on a folder; `more` are lines of its configuration."""

    def __init__(self, folder, more):
        self.port = free_port()
        self.log = folder + "/log"
        config = folder + "/lifeboat.yml"
        with open(config, "w") as f:
            f.write("store: file://%s/store\nstate-dir: %s/state\nmin-free: 16MiB\n" % (folder, folder))
            f.write("http: { listen: 127.0.0.1:%d }\n%s" % (self.port, more))
        with open(self.log, "w") as log:
            self.process = subprocess.Popen([LIFEBOAT, "run", "--config", config], stdout=log, stderr=log)

    def get(self, path):
        return urllib.request.urlopen("http://127.0.0.1:%d%s" % (self.port, path), timeout=60).read()

    def until(self, what, done):
        end = time.time() + 900
        while True:
            try:
                if done():
                    return
            except OSError:
                pass
            if time.time() > end or self.process.poll() is not None:
                sys.exit("waited in vain for %s\n%s" % (what, open(self.log).read()[-3000:]))
            time.sleep(0.2)

    def status(self):
        # While something is not safe, the answer is 503 with the same body.
        return json.loads(self.get("/api/v1/status"))

    def cpu(self):
        """Seconds of processor time, and of the programs that it has run."""
        fields = open("/proc/%d/stat" % self.process.pid).read().rsplit(")", 1)[1].split()
        own, programs = (int(fields[11]) + int(fields[12]), int(fields[13]) + int(fields[14]))
        return own / TICKS, programs / TICKS

    def memory(self):
        lines = open("/proc/%d/status" % self.process.pid).read().splitlines()
        return {l.split(":")[0]: int(l.split()[1]) / 1024 for l in lines if l.startswith(("VmRSS", "VmHWM"))}

    def lines(self):
        return sum(1 for _ in open(self.log))

    def metric(self, name, labels=""):
        found = [l for l in self.get("/metrics").decode().splitlines() if l.startswith((name + "{", name + " ")) and labels in l]
        return sum(float(l.rsplit(" ", 1)[1]) for l in found)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


def database(path, script="", rows=50):
    c = sqlite3.connect(path, isolation_level=None)
    c.execute("pragma journal_mode=wal")
    c.executescript("create table t(a);" + script)
    c.execute("begin")
    c.executemany("insert into t values(?)", ((os.urandom(100),) for _ in range(rows)))
    c.execute("commit")
    return c


def many(folder, script=""):
    """Databases that an app holds open, and a daemon that has copied them all."""
    os.mkdir(folder + "/dbs")
    apps = [database("%s/dbs/d%d.sqlite3" % (folder, n), script) for n in range(DATABASES)]
    daemon = Daemon(folder, "sqlite:\n  - dir: %s/dbs\n" % folder)
    daemon.until("all to be safe", lambda: len(daemon.status()["targets"]) == DATABASES and daemon.status()["status"] == "safe")
    # The first roll-ups.
    time.sleep(20)
    return daemon, apps


def scrape(daemon):
    before, took, body = daemon.cpu()[0], [], b""
    for _ in range(100):
        begun = time.perf_counter()
        body = daemon.get("/metrics")
        took.append(time.perf_counter() - begun)
    cpu = (daemon.cpu()[0] - before) / 100
    series = sum(1 for l in body.splitlines() if l and not l.startswith(b"#"))
    row("a scrape with %d databases: median" % DATABASES, statistics.median(took) * 1000, "ms")
    row("  longest of 100", max(took) * 1000, "ms")
    row("  processor time", cpu * 1000, "ms")
    row("  series", float(series), "")
    row("  bytes", len(body) / 1000, "kB")


def idle(daemon):
    lines, before, begun = daemon.lines(), daemon.cpu(), time.time()
    requests = daemon.metric("lifeboat_store_requests_total")
    while time.time() - begun < IDLE:
        time.sleep(SCRAPE_EVERY)
        daemon.get("/metrics")
    seconds = time.time() - begun
    own, hour = daemon.cpu()[0] - before[0], 3600 / seconds
    row("%.0f idle seconds, scaled to an hour: processor time" % seconds, own * hour, "s")
    row("  of one core", own / seconds * 100, "%")
    row("  log lines in these seconds", float(daemon.lines() - lines), "")
    row("  requests to the store in these seconds", daemon.metric("lifeboat_store_requests_total") - requests, "")
    for name, mib in sorted(daemon.memory().items()):
        row("  " + name, mib, "MiB")


def insight(daemon, apps):
    """Each database is written to before each look, so that each look really reads."""
    looked, before, begun = daemon.metric("lifeboat_insight_seconds_total"), daemon.cpu()[0], time.time()
    while time.time() - begun < 120:
        for app in apps:
            app.execute("insert into t values(1)")
        time.sleep(10)
    seconds = time.time() - begun
    looks = daemon.metric("lifeboat_insight_seconds_total") - looked
    row("looks at %d databases with a queue, written every 10 s, in an hour" % DATABASES, looks / seconds * 3600, "s")
    row("  all processor time of the daemon, of one core", (daemon.cpu()[0] - before) / seconds * 100, "%")


def queue(folder):
    now = time.strftime("%Y-%m-%d %H:%M:%S.000000", time.gmtime())
    app = database(folder + "/queue.sqlite3", QUEUE)
    app.execute("begin")
    app.execute(
        """with recursive n(i) as (select 1 union all select i+1 from n where i<?)
        insert into solid_queue_jobs(queue_name,class_name,arguments,created_at,updated_at)
        select 'queue'||(i%5),'ReportJob','{"arguments":["'||hex(zeroblob(100))||'"]}',?,? from n""",
        (JOBS, now, now),
    )
    app.execute(
        "insert into solid_queue_ready_executions(job_id,queue_name,created_at) select id,queue_name,? from solid_queue_jobs", (now,)
    )
    app.execute(
        "insert into solid_queue_processes(kind,last_heartbeat_at,pid,created_at,name) values('Worker',?,1,?,'w')", (now, now)
    )
    app.execute("commit")
    app.execute("pragma wal_checkpoint(truncate)")
    daemon = Daemon(folder, "insight: { every: 1s }\nsqlite:\n  - path: %s/queue.sqlite3\n" % folder)
    daemon.until("the queue", lambda: daemon.status()["status"] == "safe" and daemon.metric("lifeboat_insight_timestamp_seconds") > 0)
    took = []
    for _ in range(20):
        before = daemon.metric("lifeboat_insight_seconds_total")
        app.execute("insert into t values(1)")
        daemon.until("a look", lambda: daemon.metric("lifeboat_insight_seconds_total") > before)
        took.append(daemon.metric("lifeboat_insight_seconds_total") - before)
    row("a look at %d ready jobs: median" % JOBS, statistics.median(took) * 1000, "ms")
    row("  longest of 20", max(took) * 1000, "ms")
    row("  jobs that it counted", daemon.metric("lifeboat_queue_jobs", 'state="ready"'), "")
    row("  questions given up", daemon.metric("lifeboat_insight_given_up_total"), "")
    daemon.stop()


def postgres(folder):
    daemon = Daemon(
        folder,
        'insight: { every: 1s }\npostgres:\n  - name: pg\n    url: "%s"\n    schedule: "0 3 1 1 *"\n' % POSTGRES,
    )
    daemon.until("the server", lambda: daemon.metric("pg_up") == 1 and daemon.metric("lifeboat_postgres_success_timestamp_seconds") > 0)
    time.sleep(5)
    before, begun = daemon.cpu(), time.time()
    time.sleep(60)
    seconds, after = time.time() - begun, daemon.cpu()
    looks = seconds / 1.0
    own, programs = after[0] - before[0], after[1] - before[1]
    row("a look at PostgreSQL: the programs' processor time", programs / looks * 1000, "ms")
    row("  the daemon's own", own / looks * 1000, "ms")
    row("  in an hour with `every: 30s`", (own + programs) / looks * 120, "s")
    daemon.stop()


def main():
    wanted = sys.argv[1:] or ["scrape", "idle", "insight", "queue", "postgres"]
    print("%s, %d cores" % (subprocess.run([LIFEBOAT, "--version"], capture_output=True, text=True).stdout.strip(), os.cpu_count()))
    for parts in (["scrape", "idle"], ["insight"], ["queue"], ["postgres"]):
        parts = [p for p in parts if p in wanted]
        if not parts or (parts == ["postgres"] and not POSTGRES):
            continue
        folder = tempfile.mkdtemp(prefix="observe-")
        try:
            if parts == ["queue"]:
                queue(folder)
            elif parts == ["postgres"]:
                postgres(folder)
            else:
                daemon, apps = many(folder, QUEUE if parts == ["insight"] else "")
                if "scrape" in parts:
                    scrape(daemon)
                if "idle" in parts:
                    idle(daemon)
                if "insight" in parts:
                    insight(daemon, apps)
                daemon.stop()
        finally:
            shutil.rmtree(folder, ignore_errors=True)


main()

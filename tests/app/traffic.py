"""Stand-in for an app: one process of transactions of every kind, with SQLite's own autocheckpoint on.

usage: traffic.py DB SEED SECONDS
Prints the number of committed transactions.
"""
import os
import random
import sqlite3
import sys
import time

path, seed, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
rnd = random.Random(seed)
commits = 0
end = time.time() + seconds


def connect():
    conn = sqlite3.connect(path, isolation_level=None, timeout=10)
    conn.execute("pragma wal_autocheckpoint=%d" % rnd.choice([20, 50, 1000]))
    conn.execute("pragma cache_size=8")  # spills
    return conn


def app_checkpoint(conn):
    conn.execute("pragma busy_timeout=20")
    kind = rnd.choice(["truncate", "restart", "full", "passive"])
    conn.execute("pragma wal_checkpoint(%s)" % kind).fetchall()
    conn.execute("pragma busy_timeout=10000")


while time.time() < end:
    conn = connect()
    for _ in range(rnd.randint(1, 60)):
        if time.time() > end:
            break
        kind = rnd.random()
        try:
            conn.execute("begin immediate")
            for _ in range(rnd.choice([1, 1, 1, 3, 40])):
                conn.execute("update t set a=? where id=?", (os.urandom(rnd.randint(10, 900)), rnd.randint(1, 3000)))
            if kind < 0.1:
                conn.execute("insert into t(a) values(zeroblob(50000))")
            if kind > 0.9:
                conn.execute("delete from t where id>3000")
            if 0.1 < kind < 0.13:
                # Grows the file by pages that are free again at the commit and have no frame.
                conn.execute("create table if not exists u(a)")
                conn.execute("insert into u values(zeroblob(400000))")
                conn.execute("drop table u")
            if 0.4 < kind < 0.5:
                conn.execute("rollback")
            else:
                conn.execute("commit")
                commits += 1
        except sqlite3.OperationalError:
            try:
                conn.execute("rollback")
            except sqlite3.OperationalError:
                pass
        if 0.30 < kind < 0.33:
            app_checkpoint(conn)
        if 0.33 < kind < 0.335:
            try:
                conn.execute("vacuum")
            except sqlite3.OperationalError:
                pass
        if kind < 0.02:
            conn.execute("begin")
            conn.execute("select * from t limit 1").fetchall()
            time.sleep(0.05)
            conn.execute("commit")
    conn.close()
print(commits)

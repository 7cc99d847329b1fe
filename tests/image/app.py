"""Stands in for a Rails app: at its start it makes the tables that are missing, as `db:prepare` does, and then writes all the time. Each line `beat N`
on stdout is a commit that the app was told of."""
import secrets
import signal
import sqlite3
import sys
import time

signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))


def connect():
    db = sqlite3.connect("/rails/storage/production.sqlite3", isolation_level=None, timeout=10)
    db.execute("pragma journal_mode=wal")
    db.execute("create table if not exists beats(id text primary key)")
    return db


db = None
while True:
    try:
        db = db or connect()
        beat = secrets.token_hex(8)
        db.execute("insert into beats values(?)", (beat,))
        print("beat", beat, flush=True)
    except sqlite3.Error as error:
        # As a web server: one request fails, the next one comes.
        print("error", error, flush=True)
        db = None
    time.sleep(0.02)

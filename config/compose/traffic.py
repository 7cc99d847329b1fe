"""An app that writes a row a second."""
import sqlite3
import time

db = sqlite3.connect("/rails/storage/production.sqlite3", isolation_level=None, timeout=10)
db.execute("pragma journal_mode=wal")
db.execute("create table if not exists visits(id integer primary key, at text default current_timestamp)")
while True:
    db.execute("insert into visits default values")
    time.sleep(1)

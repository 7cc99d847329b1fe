# shellcheck shell=bash
db=$LAB/root/rails/storage/app.sqlite3
mkdir -p uploads state
echo photo >uploads/photo
psql -q "$DATABASE_URL" -c "create table orders(id int primary key); insert into orders select generate_series(1, 100)"
count() { psql -XAt "$DATABASE_URL" -c 'select count(*) from orders'; }
cat >lifeboat.yml <<Y
store: s3://bucket
state-dir: state
http: off
min-free: 1MiB
sqlite: [{ path: $db }]
files: [{ name: uploads, paths: [$PWD/uploads], password: secret, create: true }]
postgres: [{ name: shop, url: "\${DATABASE_URL}" }]
Y
sql "$db" "pragma journal_mode=wal; create table t(a); insert into t values('first')" >/dev/null
at -25h "$LIFEBOAT" snapshot
daemon
running app
for n in $(seq 10); do
  sql "$db" "insert into t values($n)"
  "$LIFEBOAT" sync app >"$LAB/out"
done
all=first,$(seq -s, 10)

doc 'lifeboat list app'
says 'TXID 000000000000000a'
doc 'lifeboat restore app -o copy.sqlite3'
is "$(rows copy.sqlite3)" "$all"
again copy.sqlite3
doc 'lifeboat restore app -o copy.sqlite3 --at 2026-11-20T10:30'
is "$(rows copy.sqlite3)" first
again copy.sqlite3
doc 'lifeboat restore app -o copy.sqlite3 --txid a'
test "$(sql copy.sqlite3 'select count(*) from t')" -gt 5
again copy.sqlite3
doc 'lifeboat restore app --dry-run -o copy.sqlite3'
test ! -e copy.sqlite3
doc 'lifeboat restore --all -o restored/ --at 10m'
is "$(rows restored/app.sqlite3)" first
is "$(cat restored/uploads/photo)" photo
test -s restored/shop.pgc
"$LIFEBOAT" snapshot --label before-v42 >"$LAB/out" 2>&1 || fail snapshot
sql "$db" 'delete from t'
echo other >uploads/photo
psql -q "$DATABASE_URL" -c 'delete from orders'
doc 'lifeboat restore --all --label before-v42 --in-place'
is "$(rows "$db")" "$all"
is "$(cat uploads/photo)" photo
is "$(count)" 100
running app
# By the version of the deploy as well, for every kind of target.
"$LIFEBOAT" restore --all --label v42 -o version >"$LAB/out" 2>&1 || fail 'restore by version'
is "$(rows version/app.sqlite3)" "$all"
is "$(cat version/uploads/photo)" photo
test -s version/shop.pgc
doc 'lifeboat restore s3://bucket/app -o copy.sqlite3'
is "$(rows copy.sqlite3)" "$all"

sql "$db" "insert into t values('newer')"
"$LIFEBOAT" sync -q app
doc 'lifeboat restore app --in-place --at 10m'
is "$(rows "$db")" first
running app
doc 'lifeboat restore app --undo'
is "$(rows "$db")" "$all,newer"
running app

# Damage that is written through SQLite.
sql "$db" 'create index i on t(a)'
"$LIFEBOAT" sync -q app
python3 - "$db" <<'P'
import sqlite3, sys
c = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=10)
c.execute("pragma writable_schema=on")
c.execute("update sqlite_schema set rootpage=9999 where name='i'")
P
"$LIFEBOAT" sync -q app
doc 'lifeboat restore app --last-good --in-place'
is "$(sql "$db" 'pragma integrity_check')" ok
running app

# Production's replica, with jobs that wait and addresses of people.
mkdir production
sqlite3 "$SOLID" "pragma journal_mode=wal; create table users(email); insert into users values('a.person@example.org')" >/dev/null
cat >production/lifeboat.yml <<Y
store: s3://production-backups
state-dir: production/state
http: off
sqlite: [{ path: $SOLID, name: app }]
Y
"$LIFEBOAT" sync -q --config production/lifeboat.yml
echo "update users set email = 'nobody@example.com'; vacuum" >anonymous.sql
doc 'lifeboat restore app --from s3://production-backups/app --in-place --after-sql anonymous.sql'
is "$(sql "$db" 'select email from users')" nobody@example.com
is "$(sql "$db" 'select group_concat(queue_name) from solid_queue_pauses')" default
# What Rails does with it.
mkdir -p bin
printf '#!/bin/sh\n[ "$*" = "runner SolidQueue::Pause.delete_all" ] && exec sqlite3 %s "delete from solid_queue_pauses"\n' "$db" >bin/rails
chmod +x bin/rails
doc "bin/rails runner 'SolidQueue::Pause.delete_all'"
is "$(sql "$db" 'select count(*) from solid_queue_pauses')" 0

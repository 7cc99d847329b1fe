# shellcheck shell=bash
db=$LAB/root/rails/storage/production.sqlite3
app "$db"
mkdir -p "$LAB/root/data"
copy=$LAB/root/data/production.sqlite3
cat >lifeboat.yml <<Y
store: s3://my-backups/myapp
state-dir: state
http: off
min-free: 1MiB
sqlite: [{ path: $db }]
Y
"$LIFEBOAT" run 2>daemon.log & echo $! >pid
running
copied() { test -s "$copy" && [ "$(rows "$copy")" = "$1" ]; }
doc 'lifeboat follow production -o /data/production.sqlite3'
until_true copied first
sql "$db" "insert into t values('second')"
until_true copied first,second
test -s "$LAB/root/data/.production.sqlite3.lifeboat-follow.json"
stop
doc 'lifeboat follow s3://my-backups/myapp/production -o /data/production.sqlite3 --interval 500ms'
sql "$db" "insert into t values('third')"
until_true copied first,second,third
stop
doc 'lifeboat follow production -o copy.sqlite3 --once'
is "$(rows copy.sqlite3)" first,second,third

# The first server is gone; this one takes over with the copy.
kill "$(cat pid)" && wait
rm -rf state "$LAB/root/rails/storage"
mkdir "$LAB/root/rails/storage"
mv "$copy" "$db"
export LIFEBOAT_INSTANCE=web2
daemon
until_true grep -q 'lifeboat claim' "$LAB/daemon.log"
doc 'lifeboat claim production'
sql "$db" "insert into t values('on the standby')"
running
rm copy.sqlite3
"$LIFEBOAT" restore -q production -o copy.sqlite3
is "$(rows copy.sqlite3)" 'first,second,third,on the standby'

# shellcheck shell=bash
# The app of "Try it", since a day.
sql app.sqlite3 "pragma journal_mode=wal; create table t(a); insert into t values('first')" >/dev/null
mkdir lifeboat-store
at -25h "$LIFEBOAT" sync app.sqlite3
doc 'cargo run --release -- demo'
says 'lifeboat: ok demo'
doc 'cargo run --release -- run app.sqlite3'
until_true grep -q replicating "$LAB/daemon.log"
sql app.sqlite3 "insert into t values('second')"
until_true "$LIFEBOAT" sync -q app.sqlite3
doc 'cargo run --release -- restore app.sqlite3 -o copy.sqlite3'
says 'lifeboat: ok restore'
is "$(rows copy.sqlite3)" first,second
doc 'cargo run --release -- restore app.sqlite3 -o then.sqlite3 --at 10m'
says 'lifeboat: ok restore'
is "$(rows then.sqlite3)" first
stop

# The server of "For real", with the page's configuration.
db=$LAB/root/rails/storage/production.sqlite3
app "$db"
mkdir -p "$LAB/root/var/lib/lifeboat" "$LAB/root/data"
block '# lifeboat.yml' sed -E "s#/rails|/var#$LAB/root&#" >/dev/null
{ cat "$LAB/out"; echo "notify: [{ webhook: \"$RECEIVER\", after: 1h }]"; } >lifeboat.yml
at -25h "$LIFEBOAT" sync
doc 'lifeboat run'
running
doc 'lifeboat status'
says 'lifeboat: ok status safe'
doc 'lifeboat notify test'
sql "$db" "insert into t values('second')"
doc 'lifeboat sync'
doc 'lifeboat snapshot --label before-v42'
doc 'lifeboat list production'
says 'label before-v42'
doc 'lifeboat restore production --in-place --at 2026-11-20T10:30'
is "$(rows "$db")" first
until_true "$LIFEBOAT" sync -q
"$LIFEBOAT" restore production --undo >"$LAB/out" 2>&1 || fail undo
is "$(rows "$db")" first,second
running
doc 'lifeboat restore production --last-good -o sound.sqlite3'
is "$(rows sound.sqlite3)" first,second
doc 'lifeboat follow production -o /data/copy.sqlite3'
copied() { test -s "$LAB/root/data/copy.sqlite3" && [ "$(rows "$LAB/root/data/copy.sqlite3")" = first,second ]; }
until_true copied
doc 'lifeboat verify'
doc 'lifeboat prune --dry-run'
mkdir empty && cp "$db" empty/
(cd empty && unset LIFEBOAT_CONFIG && doc 'lifeboat init')
says 'wrote lifeboat.yml'
doc 'lifeboat doctor'
doc 'lifeboat evidence'

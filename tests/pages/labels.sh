# shellcheck shell=bash
storage=$LAB/root/rails/storage
for name in production production_queue production_cable; do app "$storage/$name.sqlite3"; done
cat >lifeboat.yml <<Y
store: file://$LAB/root/backups/myapp
state-dir: state
http: off
min-free: 1MiB
sqlite: [{ dir: $storage }, { path: $storage/production_cache.sqlite3 }]
Y
app "$storage/production_cache.sqlite3"
db=$storage/production.sqlite3
doc 'lifeboat snapshot --label before-v42'
# The line that the page shows.
says "$(grep -x 'lifeboat: ok snapshot .*' "$PAGE")"
doc 'lifeboat snapshot production --label nightly'
says 'label=nightly targets=1'
doc 'lifeboat list'
says 'label before-v42'
says 'version v42'
sql "$db" "insert into t values('later')"
doc 'lifeboat restore production --label before-v42 --in-place'
is "$(rows "$db")" first
sql "$db" "insert into t values('before the second try')"
"$LIFEBOAT" snapshot --label before-v42 >"$LAB/out" 2>&1 || fail again
sql "$db" "insert into t values('later')"
code=0
"$LIFEBOAT" restore --all --label v42 --in-place >"$LAB/out" 2>&1 || code=$?
is $code 2
says 'before-v42#2'
rm -rf state "$LAB/root/backups" && mkdir -p state "$LAB/root/backups"
"$LIFEBOAT" snapshot --label before-v42 >"$LAB/out" 2>&1 || fail anew
sql "$db" "insert into t values('after the deploy')"
doc 'lifeboat restore --all --label v42 --in-place'
is "$(rows "$db")" 'first,before the second try,later'
doc "lifeboat restore production --label 'before-v42#1' -o copy.sqlite3"
is "$(rows copy.sqlite3)" 'first,before the second try,later'

# shellcheck shell=bash
db=$LAB/root/rails/storage/production.sqlite3
sql "$db" "pragma journal_mode=wal; create table users(id); insert into users values(1); create table orders(created_at); insert into orders values(datetime('now'))" >/dev/null
{
  printf '%s\n' "store: file://$LAB/root/backups/myapp" 'state-dir: state' 'http: off' 'min-free: 1MiB'
  awk '/^```yaml/ { on = 1; next } /^```/ && on { exit } on' "$PAGE" | sed "s#/rails#$LAB/root/rails#"
} >lifeboat.yml
"$LIFEBOAT" sync -q
doc 'lifeboat drill'
doc 'lifeboat drill production --json'
says '"assert"'
# And the assertions of the page are asked.
sql "$db" 'delete from users'
"$LIFEBOAT" sync -q
code=0
"$LIFEBOAT" drill >"$LAB/out" 2>&1 || code=$?
is $code 5
says 'select count(*) > 0 from users'

# shellcheck shell=bash
query() { psql -XAt -v ON_ERROR_STOP=1 "${2:-$DATABASE_URL}" -c "$1"; }
count() { query 'select count(*) from orders'; }
other() { sed "s|/app|/$1|" <<<"$DATABASE_URL"; }
query 'create table orders(id int primary key, note text); insert into orders select n, md5(n::text) from generate_series(1, 500) n;
  create table customers(id int); insert into customers values (1); select lo_create(4711); create table secrets(id int)' >/dev/null
export DRILL_URL NEW_URL
DRILL_URL=$(other postgres)
NEW_URL=$(other elsewhere)
cat >lifeboat.yml <<Y
store: file://$LAB/root/backups/myapp
state-dir: state
http: off
min-free: 1MiB
postgres:
  - name: app
    url: \${DATABASE_URL}
    drill-url: \${DRILL_URL}
    retention: { daily: 30 }
Y
at -25h "$LIFEBOAT" snapshot
query "insert into orders values (501, 'today')" >/dev/null

doc 'lifeboat snapshot app'
doc 'lifeboat snapshot --label before-v42'
doc 'lifeboat list app'
says before-v42
query 'delete from orders where id > 10' >/dev/null
doc 'lifeboat restore app --in-place'
is "$(count)" 501
doc 'lifeboat restore app --undo'
is "$(count)" 10
doc 'lifeboat restore app --in-place --at 2026-11-20T10:30'
is "$(count)" 500
doc 'lifeboat restore app --into-new app_yesterday --at 24h'
is "$(query 'select count(*) from orders' "$(other app_yesterday)")" 500
doc 'LIFEBOAT_INTO=$NEW_URL lifeboat restore app'
is "$(query 'select count(*) from orders' "$NEW_URL")" 501
doc 'lifeboat restore app -o app.pgc'
pg_restore --list app.pgc >"$LAB/out"
says 'TABLE DATA public orders'
doc 'lifeboat restore app --table orders,public.customers'
says orders
doc 'lifeboat restore app --in-place --dry-run'
is "$(count)" 500

doc 'lifeboat prune app --dry-run'
doc 'lifeboat prune app --accept'
doc 'lifeboat verify app'
doc 'lifeboat drill app'

# The least rights, and a dump with them.
block "CREATE ROLE backup LOGIN PASSWORD '...';" psql -X -v ON_ERROR_STOP=1 "$DATABASE_URL"
query "alter role backup password 'least'" >/dev/null
DATABASE_URL=$(sed 's|//[^@]*@|//backup:least@|' <<<"$DATABASE_URL") "$LIFEBOAT" snapshot app >"$LAB/out" 2>&1 || fail 'a dump with the least rights'
says 'lifeboat: ok snapshot'

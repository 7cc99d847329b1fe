# shellcheck shell=bash
db=$LAB/root/rails/storage/production.sqlite3
app "$db"
printf '%s\n' "store: file://$LAB/root/backups/myapp" 'state-dir: state' 'http: off' 'min-free: 1MiB' "sqlite: [{ path: $db }]" >lifeboat.yml
daemon
running
doc 'lifeboat status'
says 'lifeboat: ok status safe'
doc 'lifeboat status --watch'
twice() { [ "$(grep -c '^production ' "$LAB/daemon.out")" -gt 1 ]; }
until_true twice
psql -q "$DATABASE_URL" -c 'create role the_role_of_the_url'
block 'GRANT pg_monitor TO the_role_of_the_url;' psql -v ON_ERROR_STOP=1 "$DATABASE_URL"

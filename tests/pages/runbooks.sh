# shellcheck shell=bash
# Lost server, without the hooks: a new one with an empty volume.
export LIFEBOAT_MIN_FREE_MB=1
cd "$PROJECT"
lab sidecar
lab settle
lab sql "insert into t values('before the loss')"
kamal accessory exec lifeboat --reuse "lifeboat sync" >"$LAB/out"
lab lose
doc 'kamal accessory boot lifeboat'
doc 'kamal accessory exec lifeboat --reuse "lifeboat restore --all --if-not-exists"'
is "$(lab sql 'select group_concat(a) from t')" 'first,before the loss'

# Staging, with production's replica in an S3 store and the staging script in its image.
cd "$LAB/work"
unset STUB LIFEBOAT_MIN_FREE_MB
production=$LAB/work/production/production.sqlite3
app "$production"
printf '%s\n' 'store: s3://my-backups/myapp' 'http: off' 'state-dir: production-state' "sqlite: [{ path: $production }]" >production.yml
"$LIFEBOAT" sync -q --config production.yml
db=$LAB/root/rails/storage/production.sqlite3
app "$db"
sql "$db" "update t set a = 'staging'"
printf '%s\n' "store: file://$LAB/root/backups/staging" 'http: off' 'state-dir: state' 'min-free: 1MiB' "sqlite: [{ path: $db }]" >lifeboat.yml
daemon
running
mkdir -p "$LAB/root/rails/config"
echo "update t set a = 'anonymous'" >"$LAB/root/rails/config/staging.sql"
doc 'lifeboat restore production --from s3://my-backups/myapp/production --in-place --after-sql /rails/config/staging.sql'
is "$(rows "$db")" anonymous
running
is "$("$LIFEBOAT" list production --json | grep -c my-backups)" 0 || true

# shellcheck shell=bash
mkdir -p "$LAB/root/etc"
db=$LAB/root/data/app.db
app "$db"
cat >"$LAB/root/etc/litestream.yml" <<Y
dbs:
  - path: $db
    replica: { url: "file://$LAB/root/backups/app" }
Y
litestream=$TOOLS/venv/bin/litestream
at_work() { test -n "$(find "$LAB/root/backups/app" -name '*.ltx')"; }
"$litestream" replicate -config "$LAB/root/etc/litestream.yml" >litestream.log 2>&1 &
pid=$!
until_true at_work
doc 'lifeboat config check --config /etc/litestream.yml'
kill $pid
wait $pid || true
before=$(find "$LAB/root/backups" -name '*.ltx' | sort)
doc 'lifeboat run --config /etc/litestream.yml'
until_true "$LIFEBOAT" sync -q --config "$LAB/root/etc/litestream.yml"
sql "$db" "insert into t values('with Lifeboat')"
doc 'lifeboat sync --config /etc/litestream.yml'
doc 'lifeboat list --config /etc/litestream.yml'
says TXID
doc 'lifeboat restore --config /etc/litestream.yml -o copy.db /data/app.db'
is "$(rows copy.db)" 'first,with Lifeboat'
# Continued, not begun anew.
for file in $before; do test -e "$file" || fail "$file is gone"; done

# To go back.
stop
"$litestream" replicate -config "$LAB/root/etc/litestream.yml" >litestream.log 2>&1 &
pid=$!
sql "$db" "insert into t values('with Litestream again')"
again() { rm -f back.db && "$litestream" restore -config "$LAB/root/etc/litestream.yml" -o back.db "$db" && [ "$(rows back.db)" = 'first,with Lifeboat,with Litestream again' ]; }
until_true again
kill $pid
wait $pid || true

# A server whose volume is empty, and one whose is not.
mkdir -p "$LAB/root/rails/storage"
cp "$LAB/root/etc/litestream.yml" litestream.yml
app "$LAB/root/rails/storage/production.sqlite3"
sed "s#$db#$LAB/root/rails/storage/production.sqlite3#; s#backups/app#backups/production#" litestream.yml >"$LAB/root/etc/litestream.yml"
"$litestream" replicate -config "$LAB/root/etc/litestream.yml" >litestream.log 2>&1 &
pid=$!
uploaded() { test -n "$(find "$LAB/root/backups/production" -name '*.ltx')"; }
until_true uploaded
kill $pid
wait $pid || true
export LIFEBOAT_CONFIG=$LAB/root/etc/litestream.yml LITESTREAM_CONFIG=$LAB/root/etc/litestream.yml
litestream() { "$TOOLS/venv/bin/litestream" "$1" -config "$LIFEBOAT_CONFIG" "${@:2}"; }
for tool in litestream lifeboat; do
  rm -f "$LAB"/root/rails/storage/*
  for times in 1 2; do
    case $tool in
      litestream) doc 'litestream restore -if-db-not-exists -if-replica-exists /rails/storage/production.sqlite3' ;;
      lifeboat) doc 'lifeboat restore -if-db-not-exists -if-replica-exists production' ;;
    esac
    is "$(rows "$LAB/root/rails/storage/production.sqlite3")" first
  done
done

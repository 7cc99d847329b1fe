# shellcheck shell=bash
# Litestream has replicated for a while; then its configuration is taken as it is.
mkdir -p "$LAB/root/etc"
db=$LAB/root/data/app.db
app "$db"
cat >"$LAB/root/etc/litestream.yml" <<Y
dbs:
  - path: $db
    replica:
      type: s3
      bucket: bucket
      path: app
      endpoint: $AWS_ENDPOINT_URL
      force-path-style: true
Y
"$TOOLS/venv/bin/litestream" replicate -config "$LAB/root/etc/litestream.yml" >litestream.log 2>&1 &
litestream=$!
uploaded() { "$LIFEBOAT" list s3://bucket/app || "$LIFEBOAT" list --config "$LAB/root/etc/litestream.yml" | grep TXID; }
until_true uploaded
kill $litestream
wait $litestream || true
doc 'lifeboat replicate -config /etc/litestream.yml'
until_true "$LIFEBOAT" sync -q --config "$LAB/root/etc/litestream.yml"
sql "$db" "insert into t values('with Lifeboat')"
"$LIFEBOAT" sync -q --config "$LAB/root/etc/litestream.yml"
doc 'lifeboat restore -config /etc/litestream.yml -o copy.db /data/app.db'
is "$(rows copy.db)" 'first,with Lifeboat'
rm copy.db
# A moment after what is there now.
sleep 1
THEN=$(date -u +%Y-%m-%dT%H:%M:%SZ)
sleep 1
sql "$db" "insert into t values('newer')"
"$LIFEBOAT" sync -q --config "$LAB/root/etc/litestream.yml"
doc 'lifeboat restore -o copy.db -timestamp 2026-11-20T10:30:00Z s3://bucket/app'
is "$(rows copy.db)" 'first,with Lifeboat'

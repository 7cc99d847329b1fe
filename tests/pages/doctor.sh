# shellcheck shell=bash
db=$LAB/root/rails/storage/production.sqlite3
app "$db"
printf '%s\n' "store: file://$LAB/root/backups/myapp" 'state-dir: state' 'http: off' 'min-free: 1MiB' "sqlite: [{ path: $db }]" >lifeboat.yml
"$LIFEBOAT" sync -q
doc 'lifeboat doctor'
says 'Expected bill of a month'
doc 'lifeboat doctor --json'
python3 -c "import json; json.load(open('$LAB/out'))['bill']" || fail bill

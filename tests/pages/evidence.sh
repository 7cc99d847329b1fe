# shellcheck shell=bash
db=$LAB/root/rails/storage/production.sqlite3
app "$db"
printf '%s\n' "store: file://$LAB/root/backups/myapp" 'state-dir: state' 'http: off' 'min-free: 1MiB' "sqlite: [{ path: $db }]" >lifeboat.yml
"$LIFEBOAT" snapshot -q --label before-v42
doc 'lifeboat evidence'
says production
doc 'lifeboat evidence --json'
# Every key that the page names is there.
python3 - "$PAGE" "$LAB/out" <<'P' || fail keys
import json, re, sys
page, out = open(sys.argv[1]).read(), json.load(open(sys.argv[2]))
copy = out["copies"][0]
keys = {key for row in re.findall(r"^\| (`.*?) \|", page, re.M) for key in re.findall("`([a-z-]+)`", row)}
missing = keys - copy.keys() - {"error", "newest-dump", "newest-snapshot"}
missing |= {"versions", "instance", "time", "complete", "configuration"} - out.keys()
assert not missing and len(keys) > 12, missing
P

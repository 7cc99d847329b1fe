# shellcheck shell=bash
# The page's own configuration.
storage=$LAB/root/rails/storage
mkdir -p "$LAB/root/run/secrets" "$storage/ab/cd"
echo secret >"$LAB/root/run/secrets/files"
echo first >"$storage/ab/cd/file"
app "$storage/production.sqlite3"
{
  awk '/^```yaml/ { on = 1; next } /^```/ { on = 0 } on' "$PAGE" | sed "s#/rails#$LAB/root/rails#; s#/run#$LAB/root/run#"
  printf '%s\n' 'state-dir: state' 'http: off' 'min-free: 1MiB' "sqlite: [{ path: $storage/production.sqlite3 }]"
} >lifeboat.yml
at -25h "$LIFEBOAT" snapshot
echo second >"$storage/ab/cd/file"

doc 'lifeboat snapshot'
says 'targets=2'
doc 'lifeboat snapshot uploads --label before-v42'
doc 'lifeboat list uploads'
says before-v42
doc 'lifeboat restore uploads -o /tmp/back'
is "$(cat "$LAB/root/tmp/back/ab/cd/file")" second
doc 'lifeboat restore uploads --at 2026-11-20T10:30 -o then'
is "$(cat then/ab/cd/file)" first
doc 'lifeboat restore uploads --path ab/cd/file -o one'
is "$(find one -type f -exec cat {} +)" second
echo damage >"$storage/ab/cd/file"
doc 'lifeboat restore uploads --in-place'
is "$(cat "$storage/ab/cd/file")" second
test -e "$storage/production.sqlite3"
doc 'lifeboat restore uploads --undo'
is "$(cat "$storage/ab/cd/file")" damage
doc 'lifeboat verify uploads'
doc 'lifeboat drill uploads'
doc 'lifeboat prune uploads'

doc 'export RESTIC_REPOSITORY=s3:https://s3.amazonaws.com/my-backups/myapp/uploads RESTIC_PASSWORD_FILE=/run/secrets/files'
doc 'restic snapshots'
says "$storage"
# The server of this test lists no folders within folders for it.
restic -r "$BUCKETS/my-backups/myapp/uploads" check >"$LAB/out" 2>&1 || fail 'restic check'
says 'no errors were found'
rm -rf "$LAB/root/tmp/back"
doc 'restic restore latest --target /tmp/back'
is "$(cat "$LAB/root/tmp/back$storage/ab/cd/file")" second

# shellcheck shell=bash
mkdir -p "$LAB/root/run/secrets"
echo key >"$LAB/root/run/secrets/hook"
printf '%s\n' "store: file://$LAB/root/backups/myapp" 'http: off' "sqlite: [{ path: $LAB/root/rails/storage/production.sqlite3 }]" \
  'notify:' "  - slack: $RECEIVER/slack" "  - webhook: $RECEIVER/hook" "    secret-file: $LAB/root/run/secrets/hook" "  - healthchecks: $RECEIVER/ping" >lifeboat.yml
doc 'lifeboat notify test'
says 'lifeboat: ok notify'

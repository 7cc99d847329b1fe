# shellcheck shell=bash
doc 'lifeboat demo'
says 'lifeboat: ok demo'
doc 'lifeboat demo --keep'
until_true grep -q 'http://' "$LAB/daemon.out"
curl -fsS "$(grep -o 'http://[^ ]*' "$LAB/daemon.out" | tail -1)" >"$LAB/out" || fail 'the status page'
says Lifeboat
kill -INT "$(cat "$LAB/pids")"
until_true not kill -0 "$(cat "$LAB/pids")"

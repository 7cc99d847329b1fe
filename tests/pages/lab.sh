# The language of tests/pages/*.sh, which run each command of a page as it stands there. $LAB is the folder of the test; $LAB/root is the server:
# absolute paths of a command lie below it.
# shellcheck shell=bash

fail() {
  echo "FAILED: $*" >&2
  tail -20 "$LAB/out" | sed 's/^/    /' >&2
  exit 1
}

# The same command on the server of the test: paths, the moment that stands for any moment, the services of a laptop's.
here() {
  case $1 in kamal*) printf '%s\n' "$1" && return ;; esac
  sed -E "s#(^|[ ='\"])/(rails|data|etc|tmp|run|backups|restored)\\b#\\1$LAB/root/\\2#g; s#2026-11-20T10:30(:00Z)?#$THEN#g; s#https://s3\\.amazonaws\\.com#$AWS_ENDPOINT_URL#g" <<<"$1"
}

# Runs a command of the page; its output is in $LAB/out for `says`. What changes or checks something must end with its own line of success.
doc() {
  local line=$1 code=0
  grep -Fxq -- "$line" "$LAB/commands" || fail "the page has no command: $line"
  printf '%s\n' "$line" >>"$LAB/ran"
  echo "\$ $line" >&2
  eval "$(here "$line")" </dev/null >"$LAB/out" 2>&1 || code=$?
  [ "$code" = 0 ] || fail "exit code $code: $line"
  case $line in *lifeboat*--json* | *--watch*) return ;; esac
  case $line in
    *"lifeboat "*[a-z]*)
      case " $line " in
        *" list "* | *" run "* | *" replicate "* | *" config "* | *" follow "* | *" evidence "* | *--dry-run* | *--keep* | *"cargo "*) ;;
        *) grep -q '^lifeboat: ok ' "$LAB/out" || fail "no success line: $line" ;;
      esac
      ;;
  esac
}

# Runs the block of the page that begins with this line (SQL, say) through a command, as it stands.
block() {
  local first=$1
  shift
  awk -v first="$first" '/^ *```/ { if (on) exit; fence = !fence; next } fence && index($0, first) == 1 { on = 1 } on' "$PAGE" >"$LAB/block"
  [ -s "$LAB/block" ] || fail "the page has no block that begins with: $first"
  printf 'block %s\n' "$first" >>"$LAB/ran"
  "$@" <"$LAB/block" >"$LAB/out" 2>&1 || fail "block $first"
}

says() { grep -Fq -- "$1" "$LAB/out" || fail "it does not say: $1"; }
is() { [ "$1" = "$2" ] || fail "it is '$1', not '$2'"; }

until_true() {
  local n
  for n in $(seq 900); do
    if "$@" >/dev/null 2>&1; then return; fi
    sleep 0.1
  done
  fail "waited in vain ($n): $*"
}

# As an app does.
sql() { sqlite3 -cmd '.timeout 10000' "$1" "$2"; }
app() { mkdir -p "$(dirname "$1")" && sql "$1" "pragma journal_mode=wal; create table t(a); insert into t values('first')" >/dev/null; }
rows() { sql "$1" 'select group_concat(a) from t'; }

# What this command does at another time, beside an S3 server of that time with the same buckets.
at() {
  local offset=$1 port server code=0
  shift
  export FAKETIME_DONT_FAKE_MONOTONIC=1
  port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  faketime -f "$offset" "$TOOLS/bin/s3s-fs" --host 127.0.0.1 --port "$port" --access-key "$AWS_ACCESS_KEY_ID" --secret-key "$AWS_SECRET_ACCESS_KEY" \
    "$BUCKETS" >/dev/null 2>&1 &
  server=$!
  echo $server >>"$LAB/pids"
  until_true bash -c "</dev/tcp/127.0.0.1/$port"
  AWS_ENDPOINT_URL=http://127.0.0.1:$port faketime -f "$offset" "$@" >"$LAB/out" 2>&1 || code=$?
  kill $server
  wait $server || true
  [ $code = 0 ] || fail "at $offset: $*"
}

# What began in the background since.
stop() {
  local pid
  while read -r pid; do
    kill "$pid" 2>/dev/null || true
    until_true not kill -0 "$pid"
  done <"$LAB/pids"
  : >"$LAB/pids"
}
not() { if "$@"; then return 1; fi; }
# The daemon, in the background; its log is $LAB/daemon.log.
daemon() {
  "$LIFEBOAT" run "$@" >/dev/null 2>>"$LAB/daemon.log" &
  echo $! >>"$LAB/pids"
}
# A daemon listens; a `sync` alone would do its work itself.
listening() {
  local socket code
  while read -r socket; do
    code=0
    curl -s -m 2 --unix-socket "$socket" http://here >/dev/null 2>&1 || code=$?
    [ $code = 7 ] || return 0
  done < <(find "$LAB" -name lifeboat.sock)
  return 1
}
running() {
  until_true listening
  until_true "$LIFEBOAT" sync -q "$@"
}
again() { rm -rf "$@"; }

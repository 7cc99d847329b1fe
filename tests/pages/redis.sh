# shellcheck shell=bash
cli() { command redis-cli -s "$REDIS_SOCKET" "$@"; }
cli SET greeting hello >/dev/null
{
  awk '/^```yaml/ { on = 1; next } /^```/ { on = 0 } on' "$PAGE"
  printf '%s\n' 'state-dir: state' 'http: off' 'min-free: 1MiB'
} >lifeboat.yml
# As where the server listens on the usual port.
redis-cli() { cli "$@"; }
doc "redis-cli ACL SETUSER backup on '>password' +info +ping +sync +psync +replconf"
says OK
REDIS_URL=${REDIS_URL/unix:\/\/:*@/unix:\/\/backup:password@}
doc 'lifeboat snapshot cache'
doc 'lifeboat list cache'
says Redis
doc 'lifeboat verify cache'
doc 'lifeboat prune cache --dry-run'
doc 'lifeboat restore cache -o dump.rdb'
# A server that starts from it.
redis-server --port 0 --unixsocket "$PWD/new.sock" --dir "$PWD" --dbfilename dump.rdb >/dev/null &
echo $! >>"$LAB/pids"
until_true command redis-cli -s new.sock PING
is "$(command redis-cli -s new.sock GET greeting)" hello

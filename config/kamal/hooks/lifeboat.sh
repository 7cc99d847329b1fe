# Shared by Lifeboat's Kamal hooks, which read it from their own folder. POSIX sh; runs on the machine that deploys.
# shellcheck shell=sh
#
# What the hooks can rely on (Kamal 2): an unknown accessory, or one that no host carries, is exit code 0 with nothing done; stderr of a
# command that succeeded is dropped, and its output comes at the end, under a line "App Host: <host>" for each host; errors are printed on
# stdout. So only the line `lifeboat: ok ...`, once under each host, counts as success.
#
# Settings, from the environment:
#   LIFEBOAT_ACCESSORY    name of the accessory in config/deploy.yml (lifeboat)
#   LIFEBOAT_HOSTS        on how many servers it runs; without it: as many as answer, at least one
#   LIFEBOAT_VOLUME       the volume's folder in the accessory (/rails/storage)
#   LIFEBOAT_MIN_FREE_MB  free space that a deploy wants there, in MB (1024)
#   LIFEBOAT_WAIT         seconds that the sidecar may take for a snapshot or a restore (120; restores: 3600)
#   LIFEBOAT_SECRETS      names that `kamal secrets print` must give a value, separated by spaces (none are looked at)
#   LIFEBOAT_SKIP         a reason: the hooks do nothing but print it
#   LIFEBOAT_WEBHOOK      Slack-compatible URL that is told about deploys
#   KAMAL                 how Kamal is called (bin/kamal if there is one, else kamal)

: "${LIFEBOAT_ACCESSORY:=lifeboat}"
: "${LIFEBOAT_VOLUME:=/rails/storage}"
: "${LIFEBOAT_MIN_FREE_MB:=1024}"
# Kamal takes the version from this, else from git, which a deploy of a finished image need not have.
[ -z "${KAMAL_VERSION:-}" ] || export VERSION="$KAMAL_VERSION"
to=${KAMAL_DESTINATION:+ -d $KAMAL_DESTINATION}
if [ -z "${KAMAL:-}" ]; then
  if [ -x bin/kamal ]; then KAMAL=bin/kamal; else KAMAL=kamal; fi
fi

say() { printf '%s\n' "lifeboat: $*" >&2; }

# What failed, the sidecar's own words, what to do. Kamal shows a hook's output when the hook fails.
refuse() {
  say "error: $1"
  [ -z "${2:-}" ] || say "hint: $2"
  again=${KAMAL_COMMAND:-deploy}${KAMAL_SUBCOMMAND:+ $KAMAL_SUBCOMMAND}
  [ "$again" != rollback ] || again="rollback ${KAMAL_VERSION:-VERSION}"
  say "hint: to go on without this check, if you must: LIFEBOAT_SKIP='why' kamal $again$to"
  exit 1
}

skip_if_told() {
  [ -z "${LIFEBOAT_SKIP:-}" ] && return
  say "SKIPPED because LIFEBOAT_SKIP is set: $LIFEBOAT_SKIP"
  exit 0
}

is_rollback() { [ "${KAMAL_COMMAND:-deploy}" = rollback ]; }

# A number with a unit would be arithmetic that fails in the middle; with a zero before it, one of another base.
not_numbers() {
  for setting in "LIFEBOAT_WAIT=${LIFEBOAT_WAIT:-0}" "LIFEBOAT_HOSTS=${LIFEBOAT_HOSTS:-0}" "LIFEBOAT_MIN_FREE_MB=$LIFEBOAT_MIN_FREE_MB"; do
    case ${setting#*=} in *[!0-9]* | 0?*) printf '%s ' "$setting" ;; esac
  done
}

# A rollback goes on, with what these are by default.
numbers_or_refuse() {
  wrong=$(not_numbers)
  [ -n "$wrong" ] || return 0
  is_rollback || refuse "no whole number: ${wrong% }; nothing was changed" "LIFEBOAT_WAIT is in seconds and LIFEBOAT_MIN_FREE_MB in MB, both without a unit or a leading zero"
  say "warning: no whole number: ${wrong% }; a rollback goes on as if these were not set"
  LIFEBOAT_WAIT='' LIFEBOAT_HOSTS='' LIFEBOAT_MIN_FREE_MB=1024
}

# A version as a label: Kamal allows more characters than the shell on the server leaves alone.
label_of() { printf '%s' "$1" | LC_ALL=C tr -c 'A-Za-z0-9._-' '-' | cut -c1-60; }

# Runs one command line in the sidecar on every server that has it; what Kamal prints goes to the file $answer. $1: seconds before this
# gives up. What was begun on a server goes on there; the sidecar bounds it by itself.
in_sidecar() {
  seconds=$1
  command=$2
  if [ -n "${KAMAL_DESTINATION:-}" ]; then
    $KAMAL accessory exec "$LIFEBOAT_ACCESSORY" --reuse -d "$KAMAL_DESTINATION" "$command" >"$answer" 2>&1 &
  else
    $KAMAL accessory exec "$LIFEBOAT_ACCESSORY" --reuse "$command" >"$answer" 2>&1 &
  fi
  kamal_pid=$!
  waited=0
  while kill -0 "$kamal_pid" 2>/dev/null; do
    if [ "$waited" -ge "$seconds" ]; then
      kill "$kamal_pid" 2>/dev/null
      # It may not listen.
      for _ in 1 2 3 4 5; do
        kill -0 "$kamal_pid" 2>/dev/null || break
        sleep 1
      done
      kill -KILL "$kamal_pid" 2>/dev/null
      wait "$kamal_pid" 2>/dev/null
      echo "no answer within $seconds seconds" >>"$answer"
      return 124
    fi
    sleep 1
    waited=$((waited + 1))
  done
  wait "$kamal_pid"
}

# Whether every server that answered printed a line that begins with $1 and matches the rest, and enough servers did.
every_host_says() {
  awk -v marker="$1" -v wanted="${LIFEBOAT_HOSTS:-0}" '
    { sub(/\r$/, "") }
    /^[A-Za-z].* Host: / { hosts++; said = 0; next }
    $0 ~ marker { if (!said) done++; said = 1 }
    END {
      if (hosts == 0 && done > 0) hosts = 1
      exit !(done > 0 && done == hosts && done >= wanted)
    }' "$answer"
}

# Why there is no marker, as far as it can be told.
nothing_done() {
  sed 's/^/  /' "$answer" >&2
  if ! command -v "${KAMAL%% *}" >/dev/null 2>&1; then
    echo "\"$KAMAL\" is not a program here: install Kamal, or set KAMAL to how it is called"
  elif grep -q "No accessory by the name" "$answer"; then
    echo "config/deploy.yml has no accessory \"$LIFEBOAT_ACCESSORY\"${KAMAL_DESTINATION:+ for $KAMAL_DESTINATION}: see docs/kamal.md, or set LIFEBOAT_ACCESSORY"
  elif grep -qi "no such container" "$answer"; then
    echo "the sidecar is not there: kamal accessory boot $LIFEBOAT_ACCESSORY$to, then kamal accessory logs $LIFEBOAT_ACCESSORY$to"
  elif grep -qiE "is not running|is restarting|is paused" "$answer"; then
    # A boot leaves a container alone that is there.
    echo "the sidecar does not run; why: kamal accessory logs $LIFEBOAT_ACCESSORY$to; then kamal accessory reboot $LIFEBOAT_ACCESSORY$to"
  elif ! grep -q " Host: " "$answer" && ! grep -qE "ERROR|no answer within" "$answer"; then
    echo "no server answered: does the accessory $LIFEBOAT_ACCESSORY have a host or role of this deploy?"
  else
    echo "kamal accessory logs $LIFEBOAT_ACCESSORY$to says more"
  fi
}

if ! answer=$(mktemp "${TMPDIR:-/tmp}/lifeboat-hook.XXXXXX"); then
  # What must not be held up goes on.
  case "${KAMAL_COMMAND:-deploy} $0" in
    "rollback "* | *post-deploy) say "warning: no temporary file can be made in ${TMPDIR:-/tmp}; this goes on without the backup's hook" && exit 0 ;;
    *) refuse "no temporary file can be made in ${TMPDIR:-/tmp}; nothing was changed" "set TMPDIR to a folder of this machine that can be written to" ;;
  esac
fi
trap 'rm -f "$answer"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

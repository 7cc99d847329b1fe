# Shared by bin/test-image and bin/test-containers: Docker, the images that the Dockerfile names, the binary. Sourced by bash, from the top.
# shellcheck shell=bash
#
# It uses the Docker that runs. Where none runs and this is root, it starts one of its own and ends it. Where the base image cannot be
# pulled, debootstrap makes it; where there is no image of Rust, the binary is compiled here (both are said).

me=$(basename "$0")
tag=lifeboat-test-$$
work=$(mktemp -d)
daemon=
debian_mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}

say() { printf '%s\n' "$me: $*"; }
fail() {
  say "FAILED: $*"
  docker logs --tail 30 "$tag-lifeboat" 2>&1 | sed 's/^/  lifeboat: /' || true
  exit 1
}

# Everything that has this run's label, and the images that it built.
clean() {
  docker ps -aq --filter "label=test=$tag" 2>/dev/null | xargs -r docker rm -f >/dev/null 2>&1 || true
  docker volume ls -q --filter "label=test=$tag" 2>/dev/null | xargs -r docker volume rm >/dev/null 2>&1 || true
  docker network ls -q --filter "label=test=$tag" 2>/dev/null | xargs -r docker network rm >/dev/null 2>&1 || true
  docker images --format '{{.Repository}}' 2>/dev/null | grep "^$tag" | xargs -r docker rmi -f >/dev/null 2>&1 || true
  if [ -n "$daemon" ]; then
    kill "$daemon" 2>/dev/null || true
    wait "$daemon" 2>/dev/null || true
  fi
  rm -rf "$work"
}
trap clean EXIT

own_docker() {
  if [ "$(id -u)" != 0 ] || ! command -v dockerd >/dev/null; then
    say "no Docker runs here: start it, or as root: apt-get install docker.io debootstrap iptables"
    exit 1
  fi
  export DOCKER_HOST=unix://$work/docker.sock
  dockerd -H "$DOCKER_HOST" --data-root "$work/data" --exec-root "$work/exec" --pidfile "$work/pid" >"$work/dockerd.log" 2>&1 &
  daemon=$!
  for _ in $(seq 100); do docker version >/dev/null 2>&1 && return; sleep 0.2; done
  tail "$work/dockerd.log"
  say "dockerd does not start"
  exit 1
}

base_image() {
  local image=debian:bookworm-slim
  docker image inspect $image >/dev/null 2>&1 && return
  docker pull -q $image >/dev/null 2>&1 && return
  command -v debootstrap >/dev/null || { say "$image cannot be pulled: apt-get install debootstrap makes it here"; exit 1; }
  say "$image cannot be pulled: debootstrap makes it"
  debootstrap --variant=minbase bookworm "$work/root" "$debian_mirror" >"$work/debootstrap.log" 2>&1 \
    || { tail "$work/debootstrap.log"; exit 1; }
  # What the slim variant leaves out.
  rm -rf "$work"/root/usr/share/{doc,man,info,locale}/* "$work"/root/var/cache/apt/archives/*.deb "$work"/root/var/lib/apt/lists/*
  tar -C "$work/root" -c . | docker import - $image >/dev/null
  rm -rf "$work/root"
}

# Sets BINARY, and puts the binary where the Dockerfile takes it from.
binary() {
  if [ "${BINARY:-}" = build ]; then return; fi
  if [ -z "${BINARY:-}" ]; then
    if docker image inspect rust:1-bookworm >/dev/null 2>&1 || docker pull -q rust:1-bookworm >/dev/null 2>&1; then
      BINARY=build
      return
    fi
    say "rust:1-bookworm cannot be pulled: this machine's cargo compiles"
  fi
  BINARY=prebuilt
  local built=${LIFEBOAT_BINARY:-}
  if [ -z "$built" ]; then
    cargo build --release --locked
    built=${CARGO_TARGET_DIR:-target}/release/lifeboat
  fi
  mkdir -p dist
  cp "$built" "dist/lifeboat-$(dpkg --print-architecture)"
}

# BuildKit: a client of Debian's age without buildx asks the daemon for its own.
build() { DOCKER_BUILDKIT=1 docker build --quiet --network=host "$@" >/dev/null; }

run() { docker run --label "test=$tag" "$@"; }
volume() { docker volume create --label "test=$tag" "$tag-$1" >/dev/null; }
wait_for() {
  local what=$1
  shift
  for _ in $(seq 300); do "$@" >/dev/null 2>&1 && return; sleep 0.2; done
  fail "waited in vain for $what"
}

docker version >/dev/null 2>&1 || own_docker
base_image

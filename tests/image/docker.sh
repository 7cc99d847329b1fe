# Shared by bin/test-image and bin/test-containers: Docker, the images that the Dockerfile names, the binary. Sourced by bash, from the top.
# shellcheck shell=bash
#
# It uses the Docker that runs. Where none runs and this is root, it starts one of its own and ends it. Where the base image cannot be
# pulled, debootstrap makes it; where there is no image of Rust, the binary is compiled here (both are said).
#
# PLATFORM=linux/arm64 builds and runs for another processor: natively on such a machine, elsewhere under qemu (apt-get install
# qemu-user-static binfmt-support).

me=$(basename "$0")
tag=lifeboat-test-$$
work=$(mktemp -d)
daemon=
platform=${PLATFORM:-linux/$(dpkg --print-architecture)}
architecture=${platform#linux/}
export DOCKER_DEFAULT_PLATFORM=$platform # of every build, run and pull
base=debian:bookworm-slim
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

# A client of 23 and later builds with BuildKit through its plugin buildx alone; one of Debian's age asks the daemon for its own. The
# first in PATH that can build is taken.
client() {
  local each version
  mkdir "$work/bin"
  for each in $(type -aP docker); do
    version=$("$each" --version | grep -oE '[0-9]+' | head -1)
    if [ "$version" -lt 23 ] || "$each" buildx version >/dev/null 2>&1; then
      ln -s "$each" "$work/bin/docker"
      PATH=$work/bin:$PATH
      return
    fi
    say "$each is of version $version and has no buildx: it cannot build"
  done
  say "no client of Docker that can build: install its plugin buildx, or on Debian: apt-get install docker.io"
  exit 1
}

# Does what runs here run programs of the platform? Without it everything below fails with words that say nothing of the cause.
runs_here() {
  docker run --rm "$base" true >"$work/runs-here" 2>&1 && return
  tail -3 "$work/runs-here"
  emulation_hint
  exit 1
}
emulation_hint() {
  [ "$architecture" = "$(dpkg --print-architecture)" ] && return
  say "does this machine run programs for $platform? As root: apt-get install qemu-user-static binfmt-support;" \
    "where nothing is in /proc/sys/fs/binfmt_misc: mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc && update-binfmts --enable"
}

is_of_platform() { [ "$(docker image inspect --format '{{.Os}}/{{.Architecture}}' "$1" 2>/dev/null)" = "$platform" ]; }

# Debian for the platform. Another than this machine's has a name of its own: most Dockers keep one platform under a name.
base_image() {
  [ "$architecture" = "$(dpkg --print-architecture)" ] || base=lifeboat-test-base:$architecture
  is_of_platform "$base" && return
  if docker pull -q debian:bookworm-slim >/dev/null 2>&1; then
    docker tag debian:bookworm-slim "$base"
    return
  fi
  command -v debootstrap >/dev/null || { say "debian:bookworm-slim cannot be pulled: apt-get install debootstrap makes it here"; exit 1; }
  say "debian:bookworm-slim cannot be pulled: debootstrap makes it"
  debootstrap --arch="$architecture" --variant=minbase bookworm "$work/root" "$debian_mirror" >"$work/debootstrap.log" 2>&1 \
    || { tail "$work/debootstrap.log"; emulation_hint; exit 1; }
  # What the slim variant leaves out.
  rm -rf "$work"/root/usr/share/{doc,man,info,locale}/* "$work"/root/var/cache/apt/archives/*.deb "$work"/root/var/lib/apt/lists/*
  mkdir "$work/base"
  tar -C "$work/root" -cf "$work/base/root.tar" .
  rm -rf "$work/root"
  # Not `docker import`: older Dockers take everything for their own processor's.
  printf 'FROM scratch\nADD root.tar /\n' >"$work/base/Dockerfile"
  build --tag "$base" "$work/base"
  rm -rf "$work/base"
}

# Sets BINARY, and puts the binary where the Dockerfile takes it from.
binary() {
  if [ "${BINARY:-}" = build ]; then return; fi
  if [ -z "${BINARY:-}" ]; then
    # The compiler is one for this machine: it compiles for others, too.
    if docker image inspect rust:1-bookworm >/dev/null 2>&1 || DOCKER_DEFAULT_PLATFORM='' docker pull -q rust:1-bookworm >/dev/null 2>&1; then
      BINARY=build
      return
    fi
    say "rust:1-bookworm cannot be pulled: this machine's cargo compiles"
  fi
  BINARY=prebuilt
  local built=${LIFEBOAT_BINARY:-}
  if [ -z "$built" ]; then
    if [ "$architecture" != "$(dpkg --print-architecture)" ]; then
      say "this machine's cargo does not compile for $platform: BINARY=build does, or give LIFEBOAT_BINARY"
      exit 1
    fi
    cargo build --release --locked
    built=${CARGO_TARGET_DIR:-target}/release/lifeboat
  fi
  # Bytes 18 and 19 of an ELF file name its processor.
  local machine
  machine=$(od -An -tx1 -j18 -N2 "$built" | tr -d ' ')
  case $architecture:$machine in
    amd64:3e00 | arm64:b700) ;;
    amd64:* | arm64:*) say "$built is not for $platform"; exit 1 ;;
  esac
  mkdir -p dist
  install -m 755 "$built" "dist/lifeboat-$architecture"
}

build() { DOCKER_BUILDKIT=1 docker build --quiet --network=host --build-arg BASE_IMAGE="$base" "$@" >/dev/null; }

run() { docker run --label "test=$tag" "$@"; }
volume() { docker volume create --label "test=$tag" "$tag-$1" >/dev/null; }
wait_for() {
  local what=$1
  shift
  for _ in $(seq 300); do "$@" >/dev/null 2>&1 && return; sleep 0.2; done
  fail "waited in vain for $what"
}

client
docker version >/dev/null 2>&1 || own_docker
base_image
runs_here

# The sidecar's image.
#
#   docker build -t lifeboat .                                         with PostgreSQL's clients
#   docker build -t lifeboat --build-arg POSTGRES_MAJORS= .            for SQLite alone: about half the size
#   docker build -t lifeboat --build-arg POSTGRES_FROM=debian --build-arg POSTGRES_MAJORS=15 .
#   docker buildx build --platform linux/amd64,linux/arm64 .
#
# It needs BuildKit, which is Docker's default. `bin/test-image` builds it and shows what is promised here.

ARG RUST_IMAGE=rust:1-bookworm
ARG BASE_IMAGE=debian:bookworm-slim
# `build` compiles here; `prebuilt` takes dist/lifeboat-<architecture>, which bin/test-image makes.
ARG BINARY=build

# Compiles on the machine that builds, for the machine that will run: no emulation.
FROM --platform=$BUILDPLATFORM ${RUST_IMAGE} AS binary-build
ARG TARGETARCH
RUN case "$TARGETARCH" in \
      amd64) gcc=gcc-x86-64-linux-gnu libc=libc6-dev-amd64-cross ;; \
      arm64) gcc=gcc-aarch64-linux-gnu libc=libc6-dev-arm64-cross ;; \
      *) echo "lifeboat is not built for $TARGETARCH" >&2; exit 1 ;; \
    esac; \
    apt-get update \
    && if [ "$(dpkg --print-architecture)" = "$TARGETARCH" ]; then gcc=gcc libc=libc6-dev; fi \
    && apt-get install -y --no-install-recommends cmake "$gcc" "$libc" \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY .cargo .cargo
COPY src src
COPY benches benches
COPY config/kamal config/kamal
COPY bin/lifeboat-restore bin/
ENV CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
    CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER=x86_64-linux-gnu-gcc
RUN --mount=type=cache,target=/usr/local/cargo/registry,id=lifeboat-registry \
    --mount=type=cache,target=/src/target,id=lifeboat-target-$TARGETARCH \
    case "$TARGETARCH" in amd64) target=x86_64-unknown-linux-gnu ;; arm64) target=aarch64-unknown-linux-gnu ;; esac \
    && rustup target add "$target" \
    && cargo build --release --locked --target "$target" \
    && cp "target/$target/release/lifeboat" /lifeboat

FROM scratch AS binary-prebuilt
ARG TARGETARCH
COPY dist/lifeboat-$TARGETARCH /lifeboat

FROM binary-${BINARY} AS binary

FROM ${BASE_IMAGE}
# pg_dump refuses servers newer than itself and writes for its own major: one client for each major that may be met.
ARG POSTGRES_MAJORS="14 15 16 17 18"
# `pgdg` is PostgreSQL's own repository (every major), `debian` is Debian's (one major).
ARG POSTGRES_FROM=pgdg
# Debian's postgresql-common holds the key of PostgreSQL's repository, so trust in it comes from Debian's signature.
# The list of clients is split on purpose.
# hadolint ignore=DL3003,SC2086
RUN set -eu; \
    export DEBIAN_FRONTEND=noninteractive; \
    apt-get update; \
    apt-get install -y --no-install-recommends ca-certificates tzdata redis-tools; \
    if [ -n "$POSTGRES_MAJORS" ] && [ "$POSTGRES_FROM" = pgdg ]; then \
      cd /tmp; apt-get download postgresql-common; dpkg-deb -x postgresql-common_*.deb common; \
      key=/usr/share/keyrings/apt.postgresql.org.asc; \
      cp common/usr/share/postgresql-common/pgdg/apt.postgresql.org.asc "$key"; \
      rm -rf /tmp/common /tmp/*.deb; \
      . /etc/os-release; \
      echo "deb [signed-by=$key] https://apt.postgresql.org/pub/repos/apt $VERSION_CODENAME-pgdg main" \
        > /etc/apt/sources.list.d/pgdg.list; \
      apt-get update -o APT::Update::Error-Mode=any; \
    fi; \
    for major in $POSTGRES_MAJORS; do clients="${clients:-} postgresql-client-$major"; done; \
    if [ -n "${clients:-}" ]; then apt-get install -y --no-install-recommends $clients; fi; \
    rm -rf /var/lib/apt/lists/* /var/cache/apt/*

# Rails images run as 1000:1000. A fresh volume takes its owner from the image that mounts it first: with these folders the sidecar may be
# that image, and the app can still write. No VOLUME: it would leave a nameless volume behind with every container.
RUN groupadd --gid 1000 lifeboat \
    && useradd --uid 1000 --gid 1000 --home-dir /var/lib/lifeboat --no-create-home --shell /usr/sbin/nologin lifeboat \
    && install -d -o 1000 -g 1000 /rails /rails/storage /data \
    && install -d -o 1000 -g 1000 -m 0700 /var/lib/lifeboat
COPY --from=binary /lifeboat /usr/local/bin/lifeboat

# Not among them: a `service` label, by which Kamal takes images for its own and prunes them.
LABEL org.opencontainers.image.title="Lifeboat" \
      org.opencontainers.image.description="Backup and observability sidecar for SQLite and PostgreSQL" \
      org.opencontainers.image.licenses="Apache-2.0"
ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"

ENV LIFEBOAT_STATE_DIR=/var/lib/lifeboat
USER 1000:1000
# Of a shell in it, too: here this user may write.
WORKDIR /var/lib/lifeboat
EXPOSE 9464
STOPSIGNAL SIGTERM
# Liveness alone: a backup that is red must not restart what is about to make it green. /readyz says whether the data is safe.
HEALTHCHECK --interval=30s --timeout=10s --start-period=30s --retries=3 CMD ["/usr/local/bin/lifeboat", "health"]
ENTRYPOINT ["/usr/local/bin/lifeboat"]
CMD ["run"]

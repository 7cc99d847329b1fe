# Stand-in for a Rails app in a container: Python, the same uid, the same folder.
ARG BASE_IMAGE=debian:bookworm-slim
FROM ${BASE_IMAGE}
RUN apt-get update && apt-get install -y --no-install-recommends python3 sqlite3 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* \
    && groupadd --gid 1000 rails && useradd --uid 1000 --gid 1000 --create-home rails \
    && install -d -o 1000 -g 1000 /rails /rails/storage
USER 1000:1000
WORKDIR /rails
COPY app.py /app.py

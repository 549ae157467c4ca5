# A worker: not root, on a root file system that may be read-only (/tmp and
# /var/cache/pgembed are written), with a health check. From the top of the repository:
#
#   docker build --file docker/worker.Dockerfile --tag pgembed-worker .
#   docker run --env PGEMBED_DSN=postgresql://worker@db.example.com/app pgembed-worker
FROM python:3.13-slim-trixie AS build

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY pgembed pgembed
COPY sql sql
COPY migrations migrations
RUN python3 -m venv /opt/pgembed \
    && /opt/pgembed/bin/pip install --quiet --no-cache-dir .

FROM python:3.13-slim-trixie

# The group of the server's processes, which the socket in /run/pgembed is shared with: that
# of PostgreSQL's image.
ARG POSTGRES_GID=999
RUN groupadd --system --gid "$POSTGRES_GID" postgres \
    && useradd --uid 10001 --gid "$POSTGRES_GID" --no-create-home --home-dir /var/cache/pgembed worker \
    && install --directory --owner=worker --group=postgres --mode=0700 /var/cache/pgembed
COPY --from=build /opt/pgembed /opt/pgembed
COPY docker/healthcheck.py /opt/pgembed/
ENV PATH=/opt/pgembed/bin:$PATH \
    PGEMBED_CACHE_DIR=/var/cache/pgembed/models \
    PGEMBED_LOG_FORMAT=json \
    PGEMBED_METRICS_ADDRESS=0.0.0.0 \
    PGEMBED_METRICS_PORT=9646
USER 10001
VOLUME /var/cache/pgembed
EXPOSE 9646
HEALTHCHECK --interval=15s --timeout=10s --start-period=60s CMD ["python", "/opt/pgembed/healthcheck.py"]
ENTRYPOINT ["pgembed"]
CMD ["worker"]

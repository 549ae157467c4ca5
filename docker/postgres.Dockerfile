# PostgreSQL's own image with PL/Python and pgvector added: what SQL functions need to ask a
# worker on the same machine over a Unix socket. compose.yaml puts the two together; alone:
#
#   docker build --file docker/postgres.Dockerfile --tag pgembed-postgres docker
#   docker run --env POSTGRES_PASSWORD=secret --volume pgembed:/run/pgembed pgembed-postgres
FROM postgres:18-trixie

COPY --chmod=0755 install-postgres.sh /usr/local/sbin/
RUN install-postgres.sh "$PG_MAJOR" \
    && rm -rf /var/lib/apt/lists/* \
    && install --directory --owner=postgres --group=postgres --mode=2770 /run/pgembed
# Runs once, on an empty data folder.
COPY --chmod=0755 create-roles.sh /docker-entrypoint-initdb.d/
VOLUME /run/pgembed

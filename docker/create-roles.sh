#!/usr/bin/env bash
# The roles of compose.yaml, in a new cluster: app owns the database, worker belongs to
# pgembed_worker and to app, whose indexes it builds. Without WORKER_PASSWORD: no roles.
set -euo pipefail

if [[ -z ${WORKER_PASSWORD:-} ]]; then
    exit 0
fi
psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 \
    --set=database="$POSTGRES_DB" --set=app="$APP_PASSWORD" --set=worker="$WORKER_PASSWORD" \
    --username="$POSTGRES_USER" --dbname="$POSTGRES_DB" <<'SQL'
CREATE ROLE pgembed_user;
CREATE ROLE pgembed_owner;
CREATE ROLE pgembed_worker;
CREATE ROLE app LOGIN PASSWORD :'app' IN ROLE pgembed_owner;
CREATE ROLE worker LOGIN PASSWORD :'worker' IN ROLE pgembed_worker, app;
ALTER DATABASE :"database" OWNER TO app;
SQL

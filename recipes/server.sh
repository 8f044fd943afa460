#!/usr/bin/env bash
# An MLflow server on PostgreSQL, which also keeps the artifacts: what a team would run, on one machine.
# usage: server.sh HOST PORT DIRECTORY; Ctrl-C stops it with PostgreSQL. `make server` calls it.
set -euo pipefail
host=$1 port=$2 data=$(realpath -m "$3")

die() {
    echo "error: $1" >&2
    exit 1
}

# Debian keeps the server's programs off the PATH, one directory for every version
programs=$(find /usr/lib/postgresql/*/bin -maxdepth 0 2>/dev/null | sort -V | tail -n 1)
[ -n "$programs" ] || programs=$(dirname "$(command -v initdb)") || die "PostgreSQL is missing; apt-get install postgresql"
mkdir -p "$data"
cd "$data"

# PostgreSQL refuses to run as root
owner=()
if [ "$(id -u)" = 0 ]; then
    id postgres >/dev/null 2>&1 || die "there is no user postgres for PostgreSQL to run as; apt-get install postgresql"
    owner=(runuser -u postgres --)
    install -d -o postgres -m 700 postgresql
    "${owner[@]}" test -x "$data/postgresql" || die "the user postgres cannot enter $data; give DATA=/var/tmp/wq-server"
fi
cluster=("${owner[@]}" "$programs/pg_ctl" --pgdata "$data/postgresql" --silent)

# It listens on a socket in its own directory, which nobody else can enter, and on no port
[ ${#data} -lt 80 ] || die "$data is too long a path for a socket; give a shorter one, DATA=/var/tmp/wq-server"
if [ ! -f postgresql/PG_VERSION ] && ! "${owner[@]}" test -f "$data/postgresql/PG_VERSION"; then
    "${cluster[@]}" --options "--username mlflow --auth trust --encoding UTF8 --no-locale" init >/dev/null
fi
stop() {
    trap '' INT TERM
    if [ -n "${server:-}" ]; then
        kill -- "-$server" 2>/dev/null && wait "$server" || true
    fi
    "${cluster[@]}" --mode fast stop || true
}
trap stop EXIT
trap 'exit 130' INT TERM
# one that an earlier server left, as when that was killed, will do
"${cluster[@]}" status >/dev/null || "${cluster[@]}" --wait --log "$data/postgresql/log" \
    --options "-c listen_addresses='' -c unix_socket_directories='$data/postgresql'" start ||
    die "PostgreSQL does not start; $data/postgresql/log says why"

echo "MLflow on PostgreSQL at http://$host:$port, data in $data; export MLFLOW_TRACKING_URI=http://$host:$port"
# in a group of processes of its own, which is stopped as one
MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true setsid mlflow server \
    --host "$host" --port "$port" --workers 2 \
    --backend-store-uri "postgresql+psycopg://mlflow@/postgres?host=$data/postgresql" \
    --serve-artifacts --artifacts-destination "$data/artifacts" &
server=$!
wait "$server"

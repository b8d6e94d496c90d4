#!/bin/sh
# Makes the keys and passwords of one installation, each once, in a folder of mode 0700.
#   deploy/make_secrets.sh FOLDER [OWNER] [POSTGRES_OWNER]
# OWNER (default 10001, the containers' user) gets the service's files, POSTGRES_OWNER (999)
# the database server's; changing owners needs root. What exists is never replaced.
# API and dispatcher sign and share keys/; workers get data.key and data.retired of it alone,
# which open uploads and sign nothing.
set -eu
folder=${1:?usage: make_secrets.sh FOLDER [OWNER] [POSTGRES_OWNER]}
owner=${2:-10001}
postgres=${3:-999}
umask 077
mkdir -p "$folder/keys" "$folder/database" "$folder/postgres" "$folder/grafana"

once() {  # path, command...: the command's output, unless the file stands
  path=$1; shift
  [ -e "$path" ] && return 0
  "$@" >"$path.partial" && mv "$path.partial" "$path"
}
ed25519() { openssl genpkey -algorithm ed25519; }
password() { openssl rand -hex 24; }
passfile() { printf 'postgres:5432:rldp:%s:%s\n' "$1" "$(cat "$2")"; }

once "$folder/keys/log.pem" ed25519
once "$folder/keys/receipt.pem" ed25519
once "$folder/keys/log.retired" true   # public halves of earlier log keys; empty at first
once "$folder/keys/data.key" openssl rand -hex 32
once "$folder/keys/data.retired" true  # earlier data keys while they are in use; empty at first
once "$folder/keys/disclosure.key" openssl rand -hex 32
once "$folder/keys/dashboard.key" openssl rand -hex 32
for role in superuser owner app reader; do once "$folder/postgres/$role" password; done
once "$folder/database/owner" passfile rldp_owner "$folder/postgres/owner"
once "$folder/database/app" passfile rldp_app "$folder/postgres/app"
once "$folder/grafana/admin" password

if [ "$(id -u)" = 0 ]; then
  chown -R "$owner:$owner" "$folder/keys" "$folder/database"
  chown -R "$postgres:$postgres" "$folder/postgres"
  chown -R 472:0 "$folder/grafana"
  chmod 0711 "$folder"   # each part passes through to its own folder, and lists nothing
else
  echo "Not root: owners are unchanged. Containers read these files as $owner and $postgres." >&2
fi
find "$folder" -type f -exec chmod 0400 {} +
echo "Keys and passwords are in $folder. Back up keys/ offline, apart from the database."

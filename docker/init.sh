#!/usr/bin/env bash
# The image runs this once, when it creates the database: installs the extension, the roles of docs/gateway.md, and a
# login for the gateway.
set -euo pipefail

psql -v ON_ERROR_STOP=1 -U "$POSTGRES_USER" -d "$POSTGRES_DB" -v password="${PRESENCE_GATEWAY_PASSWORD:-}" <<'SQL'
create extension presence_ext;
create role authenticator login noinherit;
create role authenticated;
create role service_role bypassrls;
grant authenticated, service_role to authenticator;
select presence.grant_access('authenticated'), presence.grant_access('service_role');
-- If no password is set, this login cannot be used over the network.
select format('alter role authenticator password %L', :'password') where :'password' <> '' \gexec
SQL

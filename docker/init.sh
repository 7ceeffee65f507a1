#!/usr/bin/env bash
# Run once by the image, when it makes the database: the extension, the roles of docs/gateway.md, and a login for the gateway.
set -euo pipefail

psql -v ON_ERROR_STOP=1 -U "$POSTGRES_USER" -d "$POSTGRES_DB" -v password="${PRESENCE_GATEWAY_PASSWORD:-}" <<'SQL'
create extension presence_ext;
create role authenticator login noinherit;
create role authenticated;
create role service_role bypassrls;
grant authenticated, service_role to authenticator;
select presence.grant_access('authenticated'), presence.grant_access('service_role');
-- Without a password nobody can log in over the network.
select format('alter role authenticator password %L', :'password') where :'password' <> '' \gexec
SQL

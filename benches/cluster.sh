# Sourced by benches/run: sets up what is measured, on a private cluster.

say "building the listeners"
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")/bench-client
cargo build -q --release --manifest-path benches/client/Cargo.toml --target-dir "$target"
# Where the server's user may read them.
client=$work/client scripts=$work/scripts
cp "$target/release/presence-bench-client" "$client"
mkdir "$scripts" && cp -r benches/{floor,presence,rival} "$scripts"
chmod -R a+rX "$work/client" "$scripts"
if [ "$(id -u)" = 0 ]; then chown postgres: "$work"; fi

redis_version='not installed'
if command -v redis-server >/dev/null; then
    redis_version=$(redis-server --version | sed -E 's/.*v=([0-9.]+).*/\1/')
    redis-server --port 0 --unixsocket "$work/redis" --save '' --appendonly no --daemonize no >/dev/null &
    redis_pid=$!
else
    say "no redis-server here (apt-get install redis-server): its column stays empty"
fi

say "starting a private cluster"
shared=$((live * 2 + 800000))
scripts/cluster start "$db" -o presence.max_members=$shared -o presence.member_ids=any -o presence.max_per_user=0 \
    -o max_connections=250 -o shared_buffers=1GB -o max_wal_size=4GB -o checkpoint_timeout=1h
sql postgres -c "create role app login; create role reader login; create role web_a; create role web_b;
                 create role authenticator login in role web_a, web_b"
for database in presence rival small large; do sql postgres -c "create database $database"; done
for database in presence small large; do sql $database -f benches/presence.sql >/dev/null; done
sql rival -f benches/rival.sql
for database in presence rival; do sql $database -v rooms=$rooms -f benches/common.sql; done

if any_wanted {1..16} 22 25 29 30 growth; then
    say "100,000 members enter"
    sql presence -c "call fill(null, '', $((rooms * 100)), '6 hours')"
    sql rival -c "alter table presence disable trigger notify" -c "
        insert into presence (room, member_id, user_id, state, expires_at)
        select r, m, 'app', '{\"x\": 1}', now() + interval '6 hours'
        from generate_series(1, $rooms) r, generate_series(1, 100) m" -c "alter table presence enable trigger notify"
    for database in presence rival; do sql $database -c "vacuum analyze"; done
fi

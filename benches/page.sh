# Sourced by benches/run: the table, and the page it is written to.

report=() missed=()
row() { # NUMBER WORK MEASURED TARGET REACHED(a condition of awk, or - for none)
    local verdict=''
    if [ "$5" != - ]; then if holds "$5"; then verdict=yes; else verdict="**no**"; missed+=("$1"); fi; fi
    report+=("| $1 | $2 | $3 | $4 | $verdict |")
    printf '%s%3s  %s%s\n     %s\n     must be: %s  %s\n' "$bold" "$1" "$2" "$plain" "$3" "$4" "$verdict"
}
per_s() { awk -v n="$1" 'BEGIN { if (n + 0 != n || n == "nan") print "-"; else if (n >= 1e6) printf "%.2f M/s", n / 1e6; else if (n >= 1e4) printf "%.1f k/s", n / 1e3; else printf "%.0f /s", n }'; }

write_page() {
    {
        cat <<END
# Performance

Written by \`benches/run\` (\`make bench\`); do not edit. Everything below was measured in one run, on one private
cluster: this extension, a hand-made rival (\`benches/rival.sql\`: what a good developer writes in an afternoon), the
floor, and Redis. Read the ratios: absolute numbers are this machine's.

| # | work | measured | must be | reached |
|---|---|---|---|---|
END
        printf '%s\n' "${report[@]}" | sort -t '|' -k 2n
        cat <<END

- Machine: $(nproc) cores ($(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)), $(awk '/MemTotal/ { printf "%.0f GB", $2 / 1048576 }' /proc/meminfo), Linux $(uname -r | cut -d- -f1). pgbench and redis-benchmark run on the same cores.
- PostgreSQL $("$PG_CONFIG" --version | awk '{ print $2 }'), presence_ext $(git rev-parse --short HEAD 2>/dev/null || sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1) (release build), Redis $redis_version, $(date -u +%F).
- fsync on, default synchronous_commit, shared_buffers 1 GB; unix sockets; pgbench with prepared statements
  (\`pgbench -n -M prepared -c CLIENTS -j 2 -T $slice -f benches/…/….sql\`); $rounds rounds in turn after a warm-up,
  medians of the rounds, ratios of neighbours. Redis without persistence, measured by redis-benchmark, a client that
  costs less than pgbench does.
- Members: 100,000 in $rooms rooms, state \`{"x": 1, "tool": "pen"}\`. presence_ext is called by an ordinary role under
  row-level security; the rival has none.
END
        growth_section
        cat benches/notes.md
    } >docs/performance.md
    say "wrote docs/performance.md"
}

# Names the targets that were missed, and fails if there are any.
conclude() {
    if [ ${#missed[@]} = 0 ]; then exit 0; fi
    die "missed: row ${missed[*]}"
}

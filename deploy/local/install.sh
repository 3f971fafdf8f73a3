# Shared by kafka.sh, clickhouse.sh and clients.sh (sourced, never run): where tools go, what must be there, one installer at a time.
# shellcheck shell=sh

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
tools=${TOLLGATE_TOOLS:-$(CDPATH='' cd -- "$here/../.." && pwd)/.tools}

say() { printf '%s: %s\n' "$(basename "$0" .sh)" "$*"; }
die() { say "$*" >&2; exit 1; }

# need COMMAND WHY PACKAGE: collects what is missing, so that one run names all of it.
missing=
need() {
    command -v "$1" >/dev/null 2>&1 && return
    missing="$missing
  $1 ($2): install the package $3, e.g. apt-get install $3"
}
check_needs() { [ -z "$missing" ] || die "cannot go on, these programs are missing:$missing"; }

# Two runs at once would download twice; the second waits and then finds all in place. The kernel drops the lock
# when the holder dies, however it dies.
lock() {
    mkdir -p "$tools" || die "cannot create $tools; set TOLLGATE_TOOLS to a folder that can be written"
    command -v flock >/dev/null 2>&1 || return 0
    exec 9>"$tools/.$1.lock"
    flock -n 9 || { say "another run is installing; waiting for it"; flock 9; }
}

# scratch NAME: an empty folder beside the target (so that the last step is a rename), gone on any exit. Leftovers of
# killed runs are swept first; the lock makes that safe.
scratch() {
    rm -rf "$tools/.$1.part."*
    part=$tools/.$1.part.$$
    mkdir "$part" || die "cannot create $part"
    trap 'rm -rf "$part"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
}

# with_progress WHAT COMMAND...: runs it, saying every five seconds that it still does; its output is shown when it fails.
with_progress() {
    what=$1
    shift
    "$@" >"$part.log" 2>&1 9>&- &
    job=$!
    trap 'kill "$job" 2>/dev/null || :; rm -rf "$part" "$part.log"' EXIT
    seconds=0
    while kill -0 "$job" 2>/dev/null; do
        sleep 1
        seconds=$((seconds + 1))
        [ $((seconds % 5)) -ne 0 ] || say "$what ... ${seconds} s"
    done
    wait "$job" && rm -f "$part.log" && return 0
    tail -n 30 "$part.log" >&2
    rm -f "$part.log"
    return 1
}

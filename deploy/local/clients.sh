#!/bin/sh
# Puts the official clients that the tests drive into .tools/clients (or $TOLLGATE_TOOLS/clients): OpenAI's and Anthropic's
# for Python and JavaScript, in the versions and with the hashes of the lock files in clients/. Safe to run again at any
# time, and to interrupt: the folder appears whole or not at all. pip and npm take them from wherever they are set up to.
set -eu
. "$(dirname "$0")/install.sh"

need sha256sum "compares versions" coreutils
need python3 "runs the clients for Python, 3.10 or newer" python3
need node "runs the clients for JavaScript, 20 or newer" nodejs
need npm "fetches the clients for JavaScript" npm
check_needs

target=$tools/clients
locks=$here/clients
# Some of what pip brings is built for one version of Python.
want=$({ cat "$locks/requirements.txt" "$locks/package.json" "$locks/package-lock.json"; python3 -V; } | sha256sum | cut -d' ' -f1)
installed() { [ "$(cat "$target/locks.sha256" 2>/dev/null)" = "$want" ]; }

installed && exit 0
python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    die "the clients need Python 3.10 or newer, found $(python3 -V 2>&1)"
python3 -m pip --version >/dev/null 2>&1 ||
    die "pip is missing (fetches the clients for Python): install the package python3-pip, e.g. apt-get install python3-pip"
node_major=$(node --version | sed -n 's/^v\([0-9]*\).*/\1/p')
[ "${node_major:-0}" -ge 20 ] || die "the clients need Node 20 or newer, found $(node --version)"
lock clients
installed && exit 0
scratch clients
mkdir "$part/clients"

say "fetching OpenAI's and Anthropic's clients for Python and JavaScript (160 MB unpacked)"
with_progress "fetching the clients for Python" python3 -m pip install --quiet --disable-pip-version-check --no-input \
    --no-compile --no-deps --require-hashes --target "$part/clients/python" -r "$locks/requirements.txt" ||
    die "pip could not fetch the clients (its last lines are above): check its settings and the network, then run this again"
cp "$locks/package.json" "$locks/package-lock.json" "$part/clients/"
# In the folder itself: npm takes a path through a link for another project.
with_progress "fetching the clients for JavaScript" \
    sh -c 'cd "$1" && exec npm ci --ignore-scripts --no-audit --no-fund' sh "$part/clients" ||
    die "npm could not fetch the clients (its last lines are above): check its settings and the network, then run this again"

printf '%s\n' "$want" >"$part/clients/locks.sha256"
rm -rf "$target"
mv "$part/clients" "$target"
say "$(sed 's/$/ for Python/' "$locks/requirements.in" | paste -sd, - | sed 's/,/, /g') and those of package.json in $target"

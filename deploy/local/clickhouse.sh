#!/bin/sh
# Puts the ClickHouse engine as a library (chDB) into .tools/chdb/libchdb.so (or $TOLLGATE_TOOLS/chdb). Safe to run again at
# any time, and to interrupt: the file appears whole or not at all. The version is pinned: the tag "latest" is older and
# lacks the streaming insert.
set -eu
. "$(dirname "$0")/install.sh"

version=26.7.3-stable.1
sha256=c0d32b129e988f2b9a9a31c9141aecf5e1e2453f9a079efc4d36ab8e3f92b2ad

target=$tools/chdb
installed() { [ -f "$target/libchdb.so" ] && [ "$(cat "$target/version" 2>/dev/null)" = "$version" ]; }
installed && exit 0

[ "$(uname -s)/$(uname -m)" = Linux/x86_64 ] ||
    die "the pinned library is for Linux on x86_64; on $(uname -s)/$(uname -m) point [clickhouse] url at a ClickHouse server instead"
need sha256sum "checks the download" coreutils
need tar "unpacks it" tar
need gzip "unpacks it" gzip
need npm "fetches the package" npm
check_needs

lock chdb
installed && exit 0
scratch chdb
free_kb=$(df -Pk "$tools" | awk 'NR == 2 { print $4 }')
[ "${free_kb:-0}" -gt 1000000 ] || die "needs 1 GB of free space under $tools, found $((${free_kb:-0} / 1024)) MB"

say "fetching the ClickHouse engine $version (178 MB, 566 MB unpacked)"
with_progress "fetching the engine" npm pack --silent --pack-destination "$part" "@chdb/lib-linux-x64-gnu@$version" ||
    die "npm could not fetch the package (its last lines are above): check its settings and the network, then run this again"
set -- "$part"/*.tgz
[ -f "$1" ] || die "npm ended well but brought no archive"
printf '%s  %s\n' "$sha256" "$1" | sha256sum -c --status ||
    die "the download is not the pinned one: sha256 $(sha256sum "$1" | cut -d' ' -f1), expected $sha256"

mkdir "$part/chdb"
with_progress "unpacking" tar -xzf "$1" -C "$part/chdb" --strip-components=1 package/libchdb.so ||
    die "the archive could not be unpacked (see above)"
printf '%s\n' "$version" >"$part/chdb/version"
rm -rf "$target"
mv "$part/chdb" "$target"
say "engine $version in $target/libchdb.so"

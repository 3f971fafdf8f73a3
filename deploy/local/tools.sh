#!/bin/sh
# Names everything that this machine lacks for building, running and testing Tollgate, all at once, with what to install.
set -eu
. "$(dirname "$0")/install.sh"

# at_least FOUND WANTED: compares dotted versions.
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

problems=
packages=
lacks() { problems="$problems
  $1"; }
# tool COMMAND WHY PACKAGE
tool() {
    command -v "$1" >/dev/null 2>&1 && return 0
    lacks "$1 is missing ($2)"
    packages="$packages $3"
    return 1
}

rust=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$here/../../Cargo.toml")
if command -v rustc >/dev/null 2>&1 && command -v cargo >/dev/null 2>&1; then
    found=$(rustc --version | cut -d' ' -f2 | cut -d- -f1)
    at_least "$found" "$rust" ||
        lacks "rustc is $found, Tollgate needs $rust or newer: rustup update stable"
else
    lacks "rustc and cargo are missing (Tollgate needs $rust or newer): install them with rustup, https://rustup.rs"
fi
tool gcc "builds librdkafka" gcc || :
tool g++ "builds librdkafka" g++ || :
tool make "builds librdkafka" make || :
tool mvn "fetches Kafka's jars" maven || :
tool npm "fetches the ClickHouse engine" npm || :
tool python3 "used by some checks" python3 || :
tool curl "asks the running system" curl || :
if tool java "Kafka runs on it" default-jre-headless; then
    found=$(java -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -n 1)
    at_least "${found:-0}" 17 || {
        lacks "java is ${found:-of an unknown version}, Kafka 4 needs 17 or newer"
        packages="$packages default-jre-headless"
    }
fi

# A full disk ends a build amid a crate, with the compiler's own words. What is built already needs no room again, so this only warns.
free=$(df -Pk "$here/../.." | awk 'NR == 2 { print int($4 / 1048576) }')
[ "${free:-99}" -ge 12 ] ||
    say "only $free GiB are free on this disk: building, testing and the tools need some 12 GiB the first time" >&2

[ -z "$problems" ] && exit 0
{
    say "this machine lacks what Tollgate needs:$problems"
    # shellcheck disable=SC2086
    [ -z "$packages" ] || say "install with: apt-get install $(printf '%s\n' $packages | sort -u | tr '\n' ' ')"
} >&2
exit 1

#!/bin/sh
# Puts Apache Kafka's own jars into .tools/kafka/lib (or $TOLLGATE_TOOLS/kafka/lib). Safe to run again at any time, and
# to interrupt: the folder appears whole or not at all. Maven takes the jars from wherever it is set up to.
set -eu
. "$(dirname "$0")/install.sh"

need sha256sum "compares versions" coreutils
need java "Kafka runs on it, 17 or newer" default-jre-headless
need mvn "fetches Kafka's jars" maven
check_needs

target=$tools/kafka
want=$(sha256sum <"$here/pom.xml" | cut -d' ' -f1)
installed() { [ "$(cat "$target/pom.sha256" 2>/dev/null)" = "$want" ]; }

installed && exit 0
java_major=$(java -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -n 1)
[ "${java_major:-0}" -ge 17 ] || die "Kafka 4 needs Java 17 or newer, found ${java_major:-an unknown version}; install e.g. default-jre-headless"
lock kafka
installed && exit 0
scratch kafka

say "fetching Apache Kafka's jars (43 MB)"
with_progress "fetching the jars" mvn -B -C -f "$here/pom.xml" dependency:copy-dependencies \
    -DoutputDirectory="$part/kafka/lib" -DincludeScope=runtime ||
    die "Maven could not fetch the jars (its last lines are above): check its settings and the network, then run this again"
set -- "$part"/kafka/lib/kafka_2.13-*.jar
[ -f "$1" ] || die "Maven ended well but brought no Kafka jar; run it by hand: mvn -f $here/pom.xml dependency:copy-dependencies"

# The new folder is whole before the old one goes. A broker that runs from the old one keeps its open files.
printf '%s\n' "$want" >"$part/kafka/pom.sha256"
rm -rf "$target"
mv "$part/kafka" "$target"
say "$(find "$target/lib" -name '*.jar' | wc -l) jars in $target/lib"

#!/bin/sh
# Puts a Redis server at .tools/redis/redis-server (or $TOLLGATE_TOOLS/redis), for the tests of limits that gateways keep
# together: the one that this machine has, or Debian's own packages, unpacked there and not installed. Safe to run again at
# any time, and to interrupt: the folder appears whole or not at all.
set -eu
. "$(dirname "$0")/install.sh"

target=$tools/redis
installed() { [ -x "$target/redis-server" ] && "$target/redis-server" --version >/dev/null 2>&1; }
installed && exit 0
lock redis
installed && exit 0
scratch redis
mkdir "$part/redis"

for name in redis-server valkey-server; do
    if found=$(command -v "$name"); then
        ln -s "$found" "$part/redis/redis-server"
        rm -rf "$target"
        mv "$part/redis" "$target"
        exit 0
    fi
done

command -v apt-get >/dev/null 2>&1 && command -v dpkg-deb >/dev/null 2>&1 ||
    die "there is no redis-server on this machine: install Redis 7 or Valkey with its package manager, then run this again"
# Lists and archives of its own: nothing of the machine is changed, and nobody need be root.
mkdir -p "$part/lists/partial" "$part/archives/partial"
apt() { apt-get -q -o Dir::State::Lists="$part/lists" -o Dir::Cache="$part" -o Dir::Cache::Archives="$part/archives" -o Debug::NoLocking=1 -o APT::Sandbox::User="$(id -un)" "$@"; }
packages='redis-server redis-tools libatomic1 libhiredis0.14 libjemalloc2 liblua5.1-0 liblzf1 lua-bitop lua-cjson'
say "fetching Debian's redis-server"
with_progress "reading the package lists" apt update || die "apt-get could not read its lists (see above): install redis-server by hand"
# shellcheck disable=SC2086
cd "$part/archives" && with_progress "fetching the packages" apt download $packages ||
    die "apt-get could not fetch the packages (see above): install redis-server by hand"
for archive in "$part"/archives/*.deb; do dpkg-deb -x "$archive" "$part/redis"; done
cat >"$part/redis/redis-server" <<'END'
#!/bin/sh
root=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
for folder in "$root"/usr/lib/*-linux-gnu "$root"/lib/*-linux-gnu; do
    LD_LIBRARY_PATH=$folder${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
done
export LD_LIBRARY_PATH
exec "$root/usr/bin/redis-server" "$@"
END
chmod +x "$part/redis/redis-server"
"$part/redis/redis-server" --version >/dev/null 2>&1 || die "the unpacked redis-server does not start: install redis-server by hand"
rm -rf "$target"
mv "$part/redis" "$target"
say "$("$target/redis-server" --version | cut -d' ' -f1-3)"

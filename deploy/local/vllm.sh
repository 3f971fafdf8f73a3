#!/bin/sh
# Puts the real vLLM (its CPU build) and a tiny model with random weights into .tools/vllm (or $TOLLGATE_TOOLS/vllm), for
# `make test-vllm`: 6 GB, a few minutes. Safe to run again at any time, and to interrupt. The packages come from wherever
# Python's installers are set up to fetch them.
set -eu
. "$(dirname "$0")/install.sh"

need python3 "vLLM runs on it, 3.10 to 3.13" python3
need sha256sum "compares versions" coreutils
check_needs
python3 -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' ||
    die "vLLM needs Python 3.10 to 3.13, found $(python3 --version); put another one first in PATH"
python3 -c 'import ctypes.util, sys; sys.exit(ctypes.util.find_library("numa") is None)' ||
    die "vLLM needs libnuma: install the package libnuma1, e.g. apt-get install libnuma1"

target=$tools/vllm
want=$(cat "$here"/vllm/* | sha256sum | cut -d' ' -f1)
installed() { [ "$(cat "$target/sha256" 2>/dev/null)" = "$want" ]; }

installed && exit 0
lock vllm
installed && exit 0
free=$(df -Pk "$tools" | awk 'NR == 2 { print int($4 / 1048576) }')
[ "$free" -ge 9 ] || die "vLLM takes 6 GB and some to install; only $free GB are free where $tools lies"
scratch vllm

# A Python environment cannot be moved, so it is made in its place. What makes it whole is the stamp, written last.
rm -rf "$target"
say "fetching vLLM and what it needs (2 GB to fetch, 6 GB in place)"
with_progress "making a Python environment" python3 -m venv "$target/env"
with_progress "fetching the installer" "$target/env/bin/pip" install --quiet uv==0.13.9 ||
    die "pip could not fetch uv (its last lines are above): check its settings and the network, then run this again"
# Each package is pinned, and none is looked for beyond them: vLLM's own wishes would bring another build of PyTorch.
with_progress "fetching vLLM" "$target/env/bin/uv" pip install --quiet --no-deps --python "$target/env/bin/python" \
    --requirements "$here/vllm/requirements.lock" ||
    die "vLLM could not be fetched (the last lines are above): check the network and the disk, then run this again"
# Its command line asks for the version of a package named vllm, which is not what this build is called.
site=$("$target/env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
info="$site/vllm-0.32.0+cpu.dist-info"
mkdir -p "$info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' >"$info/METADATA"
: >"$info/RECORD"
with_progress "making the model" env HF_HUB_OFFLINE=1 "$target/env/bin/python" "$here/vllm/model.py" "$target/models" ||
    die "the model could not be made: see the last lines above"
# Else the first start of each process compiles for a minute.
unset PYTHONDONTWRITEBYTECODE
with_progress "compiling Python" "$target/env/bin/python" -m compileall -q -j 0 "$site/vllm" "$site/transformers" || :
printf '%s\n' "$want" >"$target/sha256"
say "ready in $target"

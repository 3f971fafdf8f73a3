#!/bin/sh
# Puts the gateways that `make bench-gateway` measures Tollgate beside into .tools/bench (or $TOLLGATE_TOOLS/bench): nginx as
# Debian packs it, LiteLLM and vllm-router from PyPI, each pinned. Safe to run again at any time, and to interrupt: each
# appears whole or not at all. Nothing outside of that folder is touched, and no root is needed.
set -eu
. "$(dirname "$0")/install.sh"

litellm=1.109.1
vllm_router=0.1.17
opentelemetry=1.39.1

target=$tools/bench
installed() { [ "$(cat "$target/$1/version" 2>/dev/null)" = "$2" ]; }
all_installed() {
    { command -v nginx >/dev/null 2>&1 || [ -x "$target/nginx/usr/sbin/nginx" ]; } &&
        installed litellm "$litellm" && installed vllm-router "$vllm_router"
}
all_installed && exit 0

need python3 "runs LiteLLM and vllm-router" python3-venv
command -v nginx >/dev/null 2>&1 || need apt-get "fetches nginx; or install nginx yourself" nginx
command -v nginx >/dev/null 2>&1 || need dpkg-deb "unpacks nginx; or install nginx yourself" nginx
check_needs

lock bench
all_installed && exit 0
mkdir -p "$target"
scratch bench

fetch_nginx() {
    (cd "$part" && apt-get download nginx) && mkdir "$part/nginx" && dpkg-deb -x "$part"/nginx_*.deb "$part/nginx"
}
if ! command -v nginx >/dev/null 2>&1 && [ ! -x "$target/nginx/usr/sbin/nginx" ]; then
    say "fetching nginx from Debian (1 MB)"
    with_progress "fetching nginx" fetch_nginx || die "apt-get could not fetch nginx: run apt-get update, or install nginx yourself"
    mv "$part/nginx" "$target/nginx"
fi

# A virtual environment names its own place, so it is made where it stays, and counts once its version is written.
environment() {
    rm -rf "${target:?}/$1"
    python3 -m venv "$target/$1" && "$target/$1/bin/pip" install --quiet --disable-pip-version-check uv
}
python_tool() {
    name=$1 version=$2
    shift 2
    installed "$name" "$version" && return
    say "installing $name $version from PyPI"
    with_progress "making its environment" environment "$name" || die "no virtual environment could be made"
    with_progress "installing $name" "$target/$name/bin/uv" pip install --quiet --python "$target/$name/bin/python" "$@" ||
        die "$name could not be installed (its last lines are above): check the network, then run this again"
    printf '%s\n' "$version" >"$target/$name/version"
}
python_tool vllm-router "$vllm_router" "vllm-router==$vllm_router"
# LiteLLM's own pins do not fit together; and it looks for OpenTelemetry anew at each request where that is missing.
python_tool litellm "$litellm" --override "$here/gateways/litellm-overrides.txt" "litellm[proxy]==$litellm" \
    "opentelemetry-api==$opentelemetry" "opentelemetry-sdk==$opentelemetry" "opentelemetry-exporter-otlp==$opentelemetry"
say "nginx, vllm-router $vllm_router and LiteLLM $litellm in $target"

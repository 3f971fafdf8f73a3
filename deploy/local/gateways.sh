#!/bin/sh
# Puts the gateways that `make bench-gateway` measures Tollgate beside into .tools/bench (or $TOLLGATE_TOOLS/bench): nginx as
# Debian packs it, LiteLLM and vllm-router from PyPI, each pinned. Safe to run again at any time, and to interrupt: each
# appears whole or not at all. Nothing outside of that folder is touched, and no root is needed.
set -eu
. "$(dirname "$0")/install.sh"
. "$(dirname "$0")/python_tool.sh"

litellm=1.109.1
vllm_router=0.1.17
opentelemetry=1.39.1

target=$tools/bench
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

python_tool vllm-router "$vllm_router" "vllm-router==$vllm_router"
# LiteLLM's own pins do not fit together; and it looks for OpenTelemetry anew at each request where that is missing.
python_tool litellm "$litellm" --override "$here/gateways/litellm-overrides.txt" "litellm[proxy]==$litellm" \
    "opentelemetry-api==$opentelemetry" "opentelemetry-sdk==$opentelemetry" "opentelemetry-exporter-otlp==$opentelemetry"
say "nginx, vllm-router $vllm_router and LiteLLM $litellm in $target"

# Shared by gateways.sh and consumer.sh (sourced, never run): programs from PyPI, each in an environment of its own in $target.
# shellcheck shell=sh

installed() { [ "$(cat "$target/$1/version" 2>/dev/null)" = "$2" ]; }

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

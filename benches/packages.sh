# shellcheck shell=bash
# Sourced by the scripts beside it: makes sure of Rust, and installs Debian packages.

export PATH="$PATH:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin:/usr/sbin"

fail() {
    echo "$*" >&2
    exit 1
}

# Installs the Debian packages of those of these commands that the machine lacks.
install_missing() {
    declare -A package=(
        [turnserver]=coturn [haproxy]=haproxy [openssl]=openssl [python3]=python3 [lscpu]=util-linux [perf]=linux-perf
    )
    local missing=() command
    for command in "$@"; do
        command -v "$command" >/dev/null || missing+=("${package[$command]}")
    done
    if ((!${#missing[@]})); then return; fi
    command -v apt-get >/dev/null || fail "install with your system's package manager: ${missing[*]}"
    local as_root=(env)
    if ((EUID)); then
        sudo -n true 2>/dev/null || fail "needs root once, for: apt-get install ${missing[*]}"
        as_root=(sudo -n env)
    fi
    echo "installing Debian packages: ${missing[*]}" >&2
    "${as_root[@]}" apt-get -q update >&2
    "${as_root[@]}" DEBIAN_FRONTEND=noninteractive \
        apt-get -q install --yes --no-install-recommends "${missing[@]}" >&2
    # Debian starts what it installs; here each run starts its own.
    if [[ -d /run/systemd/system ]]; then
        for command in coturn haproxy; do
            if [[ " ${missing[*]} " == *" $command "* ]]; then
                "${as_root[@]}" systemctl disable --now "$command" >&2
            fi
        done
    fi
}

command -v cargo >/dev/null || fail "Rust is missing: install it from https://rustup.rs and run this again"

#!/usr/bin/env bash
# Measures zrc-relay beside what people would use instead, and beside a plain UDP forwarder. On a fresh Debian
# machine with Rust it installs what is missing, builds, measures, and writes benches/RESULTS.md and
# benches/results.svg. The machine should have nothing else to do meanwhile.
#
#   benches/peers.sh                          everything, a quarter of an hour
#   benches/peers.sh --repeats 3 --secs 2     quicker, and noisier
#   benches/peers.sh --rows sparse --relays floor coturn raw
#   benches/peers.sh --smoke                  only whether everything works: debug binaries, under a minute
#   benches/peers.sh --help                   all options, rows and relays
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH="$PATH:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin:/usr/sbin"

fail() {
    echo "$*" >&2
    exit 1
}

# Installs the Debian packages of the commands that the machine lacks.
install_missing() {
    local missing=() command
    declare -A package=([turnserver]=coturn [haproxy]=haproxy [openssl]=openssl [python3]=python3 [lscpu]=util-linux)
    for command in "${!package[@]}"; do
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
for argument in "$@"; do
    if [[ $argument == --help || $argument == -h ]]; then exec python3 benches/peers.py --help; fi
done
install_missing
profile=(--release)
if [[ " $* " == *" --smoke "* ]]; then profile=(); fi
cargo build --locked "${profile[@]}" --bin zrc-relay --example load --example udpfwd
exec python3 benches/peers.py "$@"

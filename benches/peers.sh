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
source benches/packages.sh

for argument in "$@"; do
    if [[ $argument == --help || $argument == -h ]]; then exec python3 benches/peers.py --help; fi
done
install_missing turnserver haproxy openssl python3 lscpu
profile=(--release)
if [[ " $* " == *" --smoke "* ]]; then profile=(); fi
cargo build --locked "${profile[@]}" --bin zrc-relay --example load --example udpfwd
exec python3 benches/peers.py "$@"

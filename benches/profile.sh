#!/usr/bin/env bash
# Shows where a relay's CPU time goes under one load of benches/peers.sh: by whose code it is, by what the kernel was
# asked for, and by function. Installs perf on a Debian machine that lacks it.
#
#   benches/profile.sh                               200 sparse pairs through the raw channel
#   benches/profile.sh --row dense --relay datagram
#   benches/profile.sh --row idle --relay datagram --set-up
#   benches/profile.sh --help                        all options
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source benches/packages.sh

install_missing perf turnserver haproxy openssl python3
cargo build --locked --release --bin zrc-relay --example load --example udpfwd
exec python3 benches/profile.py "$@"

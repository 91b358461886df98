#!/usr/bin/env bash
# Builds the Debian package: the program, its man pages and completions, the service, its user, the documentation.
#
#   deploy/debian/build.sh                        builds the program, then target/debian/zrc-relay_VERSION_ARCH.deb
#   deploy/debian/build.sh --no-build [ARGS...]   packs what is built; ARGS go to cargo-deb (--profile dev, --output F)
#
# Needs cargo-deb: cargo install --locked --version 3.8.0 cargo-deb
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

if [[ ${1-} == --no-build ]]; then
    shift
    program=${ZRC_BIN:?names the program that is packed}
else
    cargo build --locked --release --bin zrc-relay
    program=target/release/zrc-relay
fi

rm -rf target/package
mkdir -p target/package
"$program" man target/package/man
"$program" completions bash >target/package/zrc-relay.bash
"$program" completions zsh >target/package/_zrc-relay
"$program" completions fish >target/package/zrc-relay.fish
exec cargo deb --no-build "$@"

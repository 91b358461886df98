#!/usr/bin/env bash
# Checks that the client library compiles for systems other than this one. Nothing is linked or run: `cargo check`
# with zig as the C compiler for the one dependency that has C in it (aws-lc). No Apple or Microsoft SDK is needed.
#
#   tests/cross.sh             all targets
#   tests/cross.sh TARGET...   these targets
#
# Needs cargo-zigbuild and zig in PATH, as `pip install cargo-zigbuild ziglang` provides them, and rustup, which adds
# the targets' standard libraries when they are missing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly TARGETS=(aarch64-apple-darwin x86_64-pc-windows-gnu)
export PATH="$PATH:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin"

fail() {
    echo "cross.sh: $*" >&2
    exit 1
}

command -v cargo-zigbuild >/dev/null || fail "cargo-zigbuild is missing: pip install cargo-zigbuild ziglang"

chosen=("$@")
if ((!$#)); then chosen=("${TARGETS[@]}"); fi

for target in "${chosen[@]}"; do
    if [[ ! -d "$(rustc --print sysroot)/lib/rustlib/$target/lib" ]]; then
        command -v rustup >/dev/null || fail "the standard library for $target is missing, and so is rustup"
        rustup target add "$target"
    fi
    echo "cross.sh: $target"
    cargo-zigbuild check --locked --lib --examples --no-default-features --features client --target "$target" ||
        fail "the client library does not compile for $target"
done

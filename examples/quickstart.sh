#!/usr/bin/env bash
# From nothing to two images: builds rbuild, makes a Debian root file system, builds customnginx and nginx-with-html on it,
# shows their history, and builds both again to show that nothing has to run a second time.
#
# For a fresh Debian or Ubuntu machine with a Rust tool chain; as root, or as a user with sudo or with the packages there.
# Writes to target/ alone: the binary, the root file system, and a store of its own.
set -euo pipefail
cd "$(dirname "$0")/.."
exec </dev/null

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
fail() { printf 'quickstart: %s\n' "$*" >&2; exit 1; }

work=$PWD/target/quickstart-$(id -un)
export RBUILD_ROOT=${RBUILD_QUICKSTART_ROOT:-$work/store}
mkdir -p "$work"
second=$(mktemp -d)
trap 'rm -rf -- "$second"' EXIT

say "1. What it needs"
packages=(gcc libc6-dev mmdebstrap uidmap debian-archive-keyring)
missing=()
for package in "${packages[@]}"; do
    [ "$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null)" = 'install ok installed' ] || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" = 0 ]; then become=(); else become=(sudo); fi
    [ "$(id -u)" = 0 ] || command -v sudo >/dev/null || fail "as root: apt-get install ${missing[*]}"
    for pause in 0 5 20; do
        sleep $pause
        "${become[@]}" env DEBIAN_FRONTEND=noninteractive sh -c 'apt-get -qq update && apt-get -qq install --yes "$@"' sh "${missing[@]}" && break
    done
fi
command -v cargo >/dev/null || fail "no cargo: install a Rust tool chain first"
if [ "$(id -u)" != 0 ] && ! grep -qs "^$(id -un):" /etc/subuid; then
    fail "you have no subordinate ids; as root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $(id -un)"
fi
echo "packages: ${packages[*]}"

say "2. rbuild, in release mode"
cargo build --locked --release --bin rbuild
rbuild=${CARGO_TARGET_DIR:-target}/release/rbuild
"$rbuild" version
ls -l "$rbuild"

say "3. A Debian root file system, imported as debian:bookworm-slim"
tar=$work/debian.tar
if [ ! -s "$tar" ]; then
    . /etc/os-release
    sources=()
    if [ "$ID" = debian ]; then
        # The mirror that this machine uses, for bookworm. Files that are about other archives (by their key) stay out.
        mkdir "$second/sources"
        for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
            [ -s "$file" ] || continue
            ! grep -i 'signed-by' "$file" | grep -qv 'debian-archive' || continue
            sed -e "s/\\b$VERSION_CODENAME\\b/bookworm/g" -e '/cdrom:/d' "$file" >"$second/sources/$(basename "$file")"
            sources+=("$second/sources/$(basename "$file")")
        done
    fi
    options=()
    while IFS= read -r option; do options+=("--aptopt=$option"); done < <(
        apt-config dump | grep -E '^Acquire::(Check-Valid-Until|Check-Date|https?::Proxy) ' || true
    )
    SOURCE_DATE_EPOCH=0 mmdebstrap --format=tar --variant=minbase --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        "${options[@]}" bookworm "$tar.part" "${sources[@]}"
    mv "$tar.part" "$tar"
fi
ls -l "$tar"
"$rbuild" import "$tar" debian:bookworm-slim

say "4. customnginx, and a site on top of it"
"$rbuild" -t customnginx --iidfile "$second/customnginx" examples/customnginx
"$rbuild" -t nginx-with-html --iidfile "$second/nginx-with-html" examples/nginx-with-html

say "5. What was built"
"$rbuild" images
"$rbuild" history nginx-with-html

say "6. The same again: nothing runs, and the images are the same"
for image in customnginx nginx-with-html; do
    "$rbuild" -t $image --progress plain --explain --iidfile "$second/again" examples/$image 2>"$second/log" || { cat "$second/log"; fail "the second build failed"; }
    cat "$second/log"
    cmp "$second/$image" "$second/again" || fail "$image has another id: $(cat "$second/$image") and $(cat "$second/again")"
    ! grep -q 'not cached' "$second/log" || fail "$image: not everything was cached"
done
say "Done. The images are in the store $RBUILD_ROOT"

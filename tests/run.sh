#!/usr/bin/env bash
# Runs all tests, as root and as an ordinary user, and fails if one fails or was skipped, or if one left something behind.
#
#   tests/run.sh            everything
#   tests/run.sh NAME       the tests whose name has NAME
#
# As root (or with passwordless sudo) it installs what the tests want, by package name, and creates the ordinary user
# rbuild-test with subordinate ids. Without, it says what is missing and tests as the caller alone.
set -euo pipefail
cd "$(dirname "$0")/.."
checkout=$PWD
user=rbuild-test
packages=(busybox-static bash-static uidmap util-linux docker-registry openssl skopeo umoci mmdebstrap python3 zstd xz-utils bzip2
    procps git openssh-client buildah qemu-user-static)

say() { printf '%s\n' "tests/run.sh: $*" >&2; }
fail() { say "$@"; exit 1; }

if [ "$(id -u)" = 0 ]; then
    as_root() { "$@"; }
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    as_root() { sudo -n -- "$@"; }
else
    as_root() { return 127; }
fi
can_be_root=$(as_root id -u 2>/dev/null || true)

# --- what the tests want ---------------------------------------------------------------------------------------------
missing=()
for package in "${packages[@]}"; do
    [ "$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null)" = 'install ok installed' ] || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    [ "$can_be_root" = 0 ] || fail "missing packages, and no right to install them: apt-get install ${missing[*]}"
    say "installing ${missing[*]}"
    installed=no
    for pause in 0 5 20; do
        sleep $pause
        if as_root env DEBIAN_FRONTEND=noninteractive sh -c \
            'apt-get -qq update && apt-get -qq install --yes --no-install-recommends "$@"' sh "${missing[@]}" \
            </dev/null >&2; then
            installed=yes
            break
        fi
    done
    [ $installed = yes ] || fail "could not install ${missing[*]}"
fi

work=$(mktemp -d /var/tmp/rbuild-tests.XXXXXX)
chmod 755 "$work"
finish() {
    local status=$?
    trap - EXIT
    # Emulators are the machine's again.
    [ -z "${registered:-}" ] || as_root sh -c "echo -1 >$registered" || true
    [ -z "${mounted:-}" ] || as_root umount "$mounted" || true
    as_root rm -rf -- "$work" 2>/dev/null || rm -rf -- "$work"
    exit $status
}
trap finish EXIT
trap 'exit 130' INT TERM

# --- the ordinary user -----------------------------------------------------------------------------------------------
if [ "$can_be_root" = 0 ]; then
    if ! id "$user" >/dev/null 2>&1; then
        say "creating the user $user"
        as_root useradd --no-create-home --home-dir "/nonexistent" --shell /bin/sh "$user"
    fi
    for kind in uid gid; do
        file=/etc/sub$kind
        if ! grep -qs "^$user:" "$file"; then
            # The first range of 65536 ids after all that are given away.
            first=$(awk -F: 'BEGIN { top = 100000 } $2 + $3 > top { top = $2 + $3 } END { print top }' "$file" 2>/dev/null || echo 100000)
            as_root usermod "--add-sub${kind}s" "$first-$((first + 65535))" "$user"
        fi
    done
else
    user=$(id -un)
    grep -qs "^$user:" /etc/subuid || fail "the user $user has no subordinate ids: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $user"
fi

# --- an emulator of arm64 ---------------------------------------------------------------------------------------------
# Installing the package registers it where systemd runs; elsewhere it is done here, with flag F, and undone in the end.
binfmt=/proc/sys/fs/binfmt_misc
if [ "$can_be_root" = 0 ] && [ "$(uname -m)" != aarch64 ]; then
    if [ ! -e $binfmt/status ] && as_root mount -t binfmt_misc binfmt_misc $binfmt; then
        mounted=$binfmt
    fi
    qemu=$(command -v qemu-aarch64-static || command -v qemu-aarch64 || true)
    if [ -e $binfmt/register ] && [ ! -e $binfmt/qemu-aarch64 ] && [ -n "$qemu" ]; then
        magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
        mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
        as_root sh -c 'printf %s "$1" >"$2"' sh ":qemu-aarch64:M::$magic:$mask:$qemu:F" $binfmt/register &&
            registered=$binfmt/qemu-aarch64
    fi
fi

# --- build once ------------------------------------------------------------------------------------------------------
as_user() {
    if [ "$can_be_root" = 0 ]; then as_root runuser -u "$user" -- "$@"; else "$@"; fi
}
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$checkout/target}
corpus=${RBUILD_CORPUS:-$checkout/../shared/corpus/open}
if ! as_user test -r "$checkout/Cargo.toml" -a -x "$checkout/src" 2>/dev/null; then
    # A checkout that the user cannot enter: tests are built from a copy, since their paths to test data are compiled in.
    say "$user cannot read $checkout: testing a copy"
    mkdir "$work/checkout"
    tar --exclude=./target --exclude=./fuzz/target --exclude=./.git -cf - . | tar -xf - -C "$work/checkout"
    cd "$work/checkout"
fi
if [ -d "$corpus" ]; then
    corpus=$(realpath "$corpus")
    if ! as_user test -r "$corpus/conformance/cases.json" 2>/dev/null; then
        mkdir "$work/corpus"
        cp -R "$(dirname "$corpus")/harness" "$corpus" "$work/corpus/"
        chmod -R a+rX "$work/corpus"
        corpus=$work/corpus/$(basename "$corpus")
    fi
    export RBUILD_CORPUS=$corpus
fi
umask 022
say "building the tests"
mkdir "$work/bin"
# Not in a pipe: what cargo says about an error must be seen, and its status count.
cargo test --locked --no-run --message-format=json-render-diagnostics >"$work/artifacts"
artifacts=$(sed -n '/"reason":"compiler-artifact"/p' "$work/artifacts")
binaries=()
while IFS= read -r file; do
    cp -- "$file" "$work/bin/"
    binaries+=("$work/bin/$(basename "$file")")
done < <(sed -n '/"profile":{[^}]*"test":true}/s/.*"executable":"\([^"]*\)".*/\1/p' <<<"$artifacts")
rbuild=$(sed -n '/"kind":\["bin"\]/{/"profile":{[^}]*"test":false}/s/.*"executable":"\([^"]*\)".*/\1/p}' <<<"$artifacts" | tail -n 1)
[ ${#binaries[@]} -gt 0 ] && [ -n "$rbuild" ] || fail "cargo built no tests"
cp -- "$rbuild" "$work/bin/rbuild"
chmod -R a+rX "$work/bin"

# --- run -------------------------------------------------------------------------------------------------------------
failed=no
log=$work/log
# run WHO FOLDER COMMAND...: all test binaries with a home and a folder for temporary files of their own.
run() {
    local who=$1 folder=$2 require=$3 elsewhere=$4
    shift 4
    local environment=(
        PATH="$PATH:/usr/sbin:/sbin" HOME="$folder/home" TMPDIR="$folder/tmp" XDG_RUNTIME_DIR="$folder/run" LANG=C.UTF-8
        RUST_BACKTRACE=1 RUST_TEST_THREADS="${RUST_TEST_THREADS:-2}" INSTA_UPDATE=no INSTA_WORKSPACE_ROOT="$PWD" CI="${CI:-}"
        RBUILD_TEST_BINARY="$work/bin/rbuild" RBUILD_TEST_SOURCE="$PWD" RBUILD_TEST_USER="$user"
        RBUILD_TEST_REQUIRE="$require" RBUILD_TEST_ELSEWHERE="$elsewhere"
        PYTHON=/usr/bin/python3 RBUILD_RANDOM_BUILDS="${RBUILD_RANDOM_BUILDS:-}" RBUILD_RANDOM_SEED="${RBUILD_RANDOM_SEED:-}"
        RBUILD_DIFFERENTIAL_SEEDS="${RBUILD_DIFFERENTIAL_SEEDS:-}"
        RBUILD_DAMAGE_CASES="${RBUILD_DAMAGE_CASES:-}" RBUILD_CONCURRENT_ROUNDS="${RBUILD_CONCURRENT_ROUNDS:-}"
    )
    [ -z "${RBUILD_CORPUS:-}" ] || environment+=(RBUILD_CORPUS="$RBUILD_CORPUS")
    for binary in "${binaries[@]}"; do
        say "as $who: $(basename "$binary")"
        # Output of tests that pass is shown too: it is where they say what they skipped.
        if ! "$@" env -i "${environment[@]}" "$binary" --show-output "${filter[@]}" </dev/null >"$log.one" 2>&1; then
            failed=yes
            cat "$log.one" >&2
            say "as $who: $(basename "$binary") failed"
        fi
        cat "$log.one" >>"$log.$who"
    done
    grep -E '^(test result|skipped:)|  skipped:' "$log.$who" || true
    if grep -qE '(^|[^a-z])skipped: ' "$log.$who"; then
        say "as $who: tests were skipped, see above"
        failed=yes
    fi
    leftovers "$who" "$folder"
}

# leftovers WHO FOLDER: no file in the folder for temporary files, no mount below it, no process that was started with it.
leftovers() {
    local who=$1 folder=$2 found
    found=$(as_anyone find "$folder/tmp" -mindepth 1 -maxdepth 1)
    found+=$(grep -F -- "$folder" /proc/self/mountinfo || true)
    for process in /proc/[0-9]*; do
        if as_anyone grep -qsaF -- "TMPDIR=$folder" "$process/environ"; then
            found+="process ${process#/proc/}: $(tr '\0' ' ' <"$process/cmdline" 2>/dev/null || true)"
        fi
    done
    if [ -n "$found" ]; then
        say "as $who: the tests left behind:" "$found"
        failed=yes
    fi
}
as_anyone() { if [ "$can_be_root" = 0 ]; then as_root "$@"; else "$@"; fi; }

filter=("$@")
for who in root "$user"; do
    mkdir -p "$work/$who/home" "$work/$who/tmp" "$work/$who/run"
done
require=run,busybox,corpus,docker-registry,openssl,skopeo,umoci,python3,zstd,xz,bzip2,mmdebstrap,git,emulator
if [ "$can_be_root" = 0 ]; then
    as_root chown -R "$user:" "$work/$user"
    as_root chown -R 0:0 "$work/root"
    chmod 711 "$work/root" "$work/root/tmp" 2>/dev/null || as_root chmod 711 "$work/root" "$work/root/tmp"
    run root "$work/root" "$require,root,user,buildah" "" as_root
    # What only root can do has been done above.
    run "$user" "$work/$user" "$require" root,user as_user
else
    say "no right to become root: the tests that need root are not run, and the run counts as incomplete"
    run "$user" "$work/$user" "$require" "" as_user
    failed=yes
fi
if [ ${#filter[@]} = 0 ]; then
    cargo test --locked --doc --quiet </dev/null || failed=yes
fi

for who in root "$user"; do
    [ ! -f "$log.$who" ] || { printf 'as %s:\n' "$who"; grep '^test result' "$log.$who" || true; }
done
[ $failed = no ] || fail "failed"
say "all tests passed, none was skipped, nothing was left behind"

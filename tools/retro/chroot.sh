#!/usr/bin/env bash
# The i386 Debian in a folder, and numpy and sentencepiece compiled in it for a Pentium II.
#
# Their published i686 wheels, and Debian's i386 numpy, use SSE2: on the machine itself they end with SIGILL.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

NUMPY=numpy==2.4.6
SENTENCEPIECE=sentencepiece==0.2.1

make_root() {
    # A half-made root is of no use, so it gets its name when it is whole.
    local packages=ca-certificates,python3,python3-dev,python3-venv,python3-pip,gcc,g++,cmake,ninja-build,pkg-config
    rm -rf "$ROOT.part" "$ROOT"
    unshare --mount debootstrap --arch=i386 --variant=minbase --include=$packages $SUITE "$ROOT.part" "$(mirror)"
    mv "$ROOT.part" "$ROOT"
}

# Names, certificates and pip's settings are those of this machine.
copy_settings() {
    local file
    cp -L /etc/resolv.conf "$ROOT/etc/resolv.conf"
    for file in /etc/ssl/certs/ca-certificates.crt /etc/pip.conf "$HOME/.config/pip/pip.conf" "$HOME/.pip/pip.conf"; do
        if [[ -f $file ]]; then install -D -m 644 "$file" "$ROOT/${file/#$HOME//root}"; fi
    done
}

# Debian's pip does not know how to hand several settings to a build.
make_venv() {
    inside sh -c 'python3 -m venv --clear /venv && /venv/bin/pip install --quiet --upgrade pip'
}

build_numpy() {
    rm -f "$WHEELS"/numpy-*.whl
    inside /venv/bin/pip wheel --no-deps --no-binary numpy --wheel-dir /wheels "$NUMPY" -Csetup-args=-Dcpu-baseline=none \
        -Csetup-args=-Dcpu-dispatch=none -Csetup-args=-Dallow-noblas=true -Csetup-args=-Dblas=none \
        -Csetup-args=-Dlapack=none
    mv "$ROOT"/wheels/numpy-*.whl "$WHEELS"
}

build_sentencepiece() {
    rm -f "$WHEELS"/sentencepiece-*.whl
    inside /venv/bin/pip wheel --no-deps --no-binary sentencepiece --wheel-dir /wheels "$SENTENCEPIECE"
    mv "$ROOT"/wheels/sentencepiece-*.whl "$WHEELS"
}

[[ $(id -u) == 0 ]] || cannot "needs root, for chroot"
[[ $(uname -m) == x86_64 ]] || cannot "needs an x86-64 machine, which also runs 32-bit programs"
mirror >/dev/null
need debootstrap=debootstrap
say "Debian for i386, and what lowbit needs in it, in $RETRO"
step root "Debian $SUITE for i386 (1 GB, 3 minutes)" make_root
copy_settings
step pip "pip" make_venv
step numpy "$NUMPY for a Pentium II (6 minutes)" build_numpy "$CFLAGS_TARGET" "$NUMPY"
step sentencepiece "$SENTENCEPIECE for a Pentium II (2 minutes)" build_sentencepiece "$CFLAGS_TARGET" "$SENTENCEPIECE"

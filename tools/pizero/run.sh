#!/usr/bin/env bash
# The whole package as a Raspberry Pi Zero runs it: Debian's armel under an emulated ARM1176, with a wheel made for it.
# Each run must give the tokens and the bits of the logits that lowbit gives on this machine, with the Python of the
# first argument. Nothing is installed but Debian's compiler and emulator; everything is made in the folder RETRO.
ARCH=armel
source "$(dirname "${BASH_SOURCE[0]}")/../retro/common.sh"
PYTHON=$(realpath -s "$1")
HERE=$SOURCE/tools/pizero
PACKAGES=(python3-numpy python3-sentencepiece python3-tqdm python3-jinja2)
LIBRARIES=$ROOT/usr/lib/arm-linux-gnueabi

# Python and what lowbit needs, unpacked and not installed: no program of the target has to run for that.
get_root() {
    local names
    rm -rf "$ROOT"
    apt_target apt-get update
    names=$(apt_target apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks \
        --no-replaces --no-enhances --no-pre-depends "${PACKAGES[@]}" | grep -E '^[a-z0-9]' | sort -u |
        grep -vE '^(dpkg|install-info|tar|mailcap|mime-support|perl.*|libperl.*|libblis.*|libatlas.*)$')
    # shellcheck disable=SC2086 # a word is a package
    unpack_target "$ROOT" $names libpython$PYTHON_VERSION-dev
    ln -s blas/libblas.so.3 lapack/liblapack.so.3 "$LIBRARIES"
    cp "$ROOT/usr/include/arm-linux-gnueabi/python$PYTHON_VERSION/pyconfig.h" "$ROOT/usr/include/python$PYTHON_VERSION/"
}

make_venv() {
    rm -rf "$RETRO/venv"
    "python$PYTHON_VERSION" -m venv "$RETRO/venv"
    "$RETRO/venv/bin/pip" install --quiet 'scikit-build-core>=1.0' 'cython>=3.1' cmake ninja
}

command -v apt-get >/dev/null && command -v "python$PYTHON_VERSION" >/dev/null || cannot "needs Debian 12"
need gcc-arm-linux-gnueabi=arm-linux-gnueabi-gcc libc6-dev-armel-cross=/usr/arm-linux-gnueabi/include/stdio.h \
    qemu-user-static=qemu-arm-static
say "Debian for armel, and lowbit in it, in $RETRO"
STEP_FAILS=$CANNOT
step root "Python and numpy for armel (80 MB)" get_root "${PACKAGES[@]}"
step venv "build tools" make_venv

rm -rf "$RETRO/wheel" "$RETRO/site"
_PYTHON_HOST_PLATFORM=linux-armv6l CMAKE_GENERATOR=Ninja PATH="$RETRO/venv/bin:$PATH" \
    "$RETRO/venv/bin/pip" wheel --quiet --no-deps --no-build-isolation --wheel-dir "$RETRO/wheel" \
    --config-settings=build-dir="$RETRO/cmake" \
    --config-settings=cmake.define.CMAKE_TOOLCHAIN_FILE="$SOURCE/cmake/toolchains/armel-arm1176.cmake" \
    --config-settings=cmake.define.Python_INCLUDE_DIR="$ROOT/usr/include/python$PYTHON_VERSION" "$SOURCE"
"$PYTHON" -m zipfile -e "$RETRO"/wheel/*.whl "$RETRO/site"

emulated() {
    PYTHONPATH=$RETRO/site qemu-arm-static -cpu arm1176 -L "$ROOT" "$ROOT/usr/bin/python$PYTHON_VERSION" "$@"
}

mkdir -p "$RETRO/models"
(cd "$TOOLS" && "$PYTHON" -c 'import sys, models, pathlib; models.random_model(pathlib.Path(sys.argv[1]), "15M")' "$RETRO/models")
for run in "story" "chat" "memory $RETRO/models/random-15M.gguf"; do
    say "  ${run%% *}"
    # shellcheck disable=SC2086 # words
    emulated "$HERE/run.py" $run >"$RETRO/emulated.txt"
    # shellcheck disable=SC2086
    "$PYTHON" "$HERE/run.py" $run >"$RETRO/here.txt" 2>/dev/null
    cmp "$RETRO/emulated.txt" "$RETRO/here.txt"
    [[ $run == memory* ]] || tail -n 1 "$RETRO/emulated.txt"
done
say "all runs gave the tokens and the bits of this machine"

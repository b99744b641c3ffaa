#!/usr/bin/env bash
# Cross-compile the wheel for 32-bit x86 from a 64-bit host, into the folder of the first argument.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

OUT=$(realpath -m "$1")
HEADERS=$RETRO/headers
VENV=$RETRO/venv

# Only Python's own headers are here: a module that includes numpy's fails to compile.
get_headers() {
    rm -rf "$HEADERS"
    unpack_target "$HEADERS.new" libpython$PYTHON_VERSION-dev
    # The package has the sizes of i386 in a folder of its own, behind a file that asks the compiler for the machine.
    cp "$HEADERS.new/usr/include/i386-linux-gnu/python$PYTHON_VERSION/pyconfig.h" \
        "$HEADERS.new/usr/include/python$PYTHON_VERSION/pyconfig.h"
    mv "$HEADERS.new" "$HEADERS"
}

# The tools run here, so their environment is made before pip is told of another platform.
make_venv() {
    rm -rf "$VENV"
    "$PYTHON" -m venv "$VENV"
    "$VENV/bin/pip" install --quiet 'scikit-build-core>=1.0' 'cython>=3.1' cmake ninja
}

# The tag and the names of the modules follow the Python that builds: it has to be of the target's version.
PYTHON=
for candidate in python$PYTHON_VERSION /usr/bin/python3 python3; do
    if [[ $("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) == "$PYTHON_VERSION" ]]; then
        PYTHON=$(command -v "$candidate")
        break
    fi
done
[[ -n $PYTHON ]] || cannot "needs Python $PYTHON_VERSION, the one of Debian 12"
command -v apt-get >/dev/null || cannot "needs Debian 12: the headers of its i386 Python come by apt"
mirror >/dev/null
need gcc-i686-linux-gnu=i686-linux-gnu-gcc libc6-dev-i386-cross=/usr/i686-linux-gnu/include/stdio.h
"$PYTHON" -c 'import ensurepip' 2>/dev/null || need python3-venv=/nonexistent
say "the wheel for i686"
STEP_FAILS=$CANNOT # they only fetch things: without a network there is nothing to find out here
step headers "headers of Python $PYTHON_VERSION for i386" get_headers
step venv "build tools" make_venv "$PYTHON"

rm -rf "$OUT"
_PYTHON_HOST_PLATFORM=linux-i686 PATH="$VENV/bin:$PATH" \
    "$VENV/bin/pip" wheel --quiet --no-deps --no-build-isolation --wheel-dir "$OUT" \
    --config-settings=build-dir="$RETRO/cmake" \
    --config-settings=cmake.define.CMAKE_TOOLCHAIN_FILE="$SOURCE/cmake/toolchains/i686-pentium2.cmake" \
    --config-settings=cmake.define.Python_INCLUDE_DIR="$HEADERS/usr/include/python$PYTHON_VERSION" "$SOURCE"
"$PYTHON" "$TOOLS/scan.py" "$OUT"/*.whl --objects "$RETRO/cmake"

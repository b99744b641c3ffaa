#!/usr/bin/env bash
# The whole test suite in the i386 Debian: with the wheel that is the first argument, or without one with a wheel that is
# built there from this source. Further arguments go to pytest.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
WHEEL=${1:-}
shift || true

"$TOOLS/chroot.sh"

make_environment() {
    rm -rf "$ROOT/wheels" && mkdir "$ROOT/wheels"
    cp "$WHEELS"/*.whl "$ROOT/wheels"
    inside sh -c 'python3 -m venv --clear /tests && /tests/bin/pip install --quiet --upgrade pip &&
        /tests/bin/pip install --quiet --find-links /wheels /wheels/*.whl tqdm jinja2 \
            pytest pytest-benchmark hypothesis gguf "cython>=3.1" "scikit-build-core>=1.0"'
}

# What is installed is what a user on such a machine gets; the tests run from a folder without the source of the package.
make_native_wheel() {
    rm -rf "$ROOT/native"
    inside sh -c 'cp -r /source /build && cd /build && rm -rf build .venv* && mkdir /native &&
        /tests/bin/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir /native . ; status=$?
        rm -rf /build; exit $status'
}

step tests "an environment for the tests (3 minutes)" make_environment "$(cd "$WHEELS" && sha256sum ./*.whl)"
if [[ -n $WHEEL ]]; then
    rm -rf "$ROOT/native"
    install -D -t "$ROOT/native" "$WHEEL"
else
    rm -f "$RETRO/stamps/native"
    step native "a wheel built in the i386 Debian (3 minutes)" make_native_wheel
fi
inside sh -c '
    set -e
    /tests/bin/pip install --quiet --no-deps --force-reinstall /native/*.whl
    rm -rf /checks && mkdir /checks && cd /source && cp -r tests src cmake examples bench docs tools /checks
    cp CMakeLists.txt pyproject.toml README.md /checks
    cd /checks/tests
    /tests/bin/python -c "import lowbit.isa, platform; print(platform.machine(), *lowbit.isa.available())"
    exec /tests/bin/python -m pytest -p no:cacheprovider "$@" .' sh "$@"

#!/bin/sh
# Says in one line which packages of the system building lowbit lacks here, and ends with 1 if there are any.
# usage: prerequisites.sh PYTHON COMPILER
python=$1 compiler=$2 lacks=

# What it is; its packages on Debian and Ubuntu, Fedora, Alpine, Arch.
lack() {
    case $manager in
    apt-get) lacks="$lacks $2" ;;
    dnf) lacks="$lacks $3" ;;
    apk) lacks="$lacks $4" ;;
    pacman) lacks="$lacks $5" ;;
    *) lacks="$lacks, $1" ;;
    esac
}

for manager in apt-get dnf apk pacman none; do
    command -v $manager >/dev/null && break
done
command -v "$compiler" >/dev/null || lack "a C compiler" "gcc libc6-dev" gcc "gcc musl-dev" gcc
if ! command -v "$python" >/dev/null; then
    lack "Python 3.10 or later with venv and headers" "python3 python3-venv python3-dev" python3-devel "python3 python3-dev" python
else
    "$python" -c 'import ensurepip' 2>/dev/null || lack "the venv module of Python" python3-venv python3 python3 python
    "$python" -c 'import os, sysconfig; assert os.path.exists(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null ||
        lack "the headers of Python" python3-dev python3-devel python3-dev python
fi
[ -n "$lacks" ] || exit 0
case $manager in
apt-get) echo "building lowbit needs what is not here: apt install$lacks" ;;
dnf) echo "building lowbit needs what is not here: dnf install$lacks" ;;
apk) echo "building lowbit needs what is not here: apk add$lacks" ;;
pacman) echo "building lowbit needs what is not here: pacman -S$lacks" ;;
*) echo "building lowbit needs what is not here: ${lacks#, }" ;;
esac >&2
exit 1

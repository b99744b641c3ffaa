# What the scripts of the Pentium II machine share; sourced by each of them.
#
# Everything is made in the folder RETRO, and made once: a step leaves a stamp, and runs again when its recipe changes.
# Nothing outside of that folder is written, but Debian packages are installed when root runs this on Debian.
set -euo pipefail

SOURCE=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
TOOLS=$SOURCE/tools/retro
RETRO=$(realpath -m "${RETRO:-$SOURCE/build/retro}")
ROOT=$RETRO/root     # Debian for i386, with compilers
WHEELS=$RETRO/wheels # what the machine gets: lowbit, numpy, sentencepiece
ARCH=${ARCH:-i386}   # what Debian calls the target
SUITE=bookworm       # the last Debian whose i386 runs on a Pentium II
PYTHON_VERSION=3.11  # of that Debian
CFLAGS_TARGET="-march=pentium2 -mno-sse"
CANNOT=77 # exit status where the machine lacks what is needed, as in Automake

mkdir -p "$RETRO/stamps" "$RETRO/log" "$WHEELS"

say() { printf '%s\n' "$*" >&2; }

cannot() {
    say "$0: $*"
    exit $CANNOT
}

# Run a function unless it ran before with the same recipe (its own text, and what the further arguments say).
# Its output goes to a log file; a clock shows that it is alive.
step() { # name, what it does, function, more that it depends on
    local name=$1 title=$2 work=$3
    local recipe stamp=$RETRO/stamps/$1 log=$RETRO/log/$1.log
    recipe=$({ declare -f "$work" && shift 3 && printf '%s\n' "$@"; } | sha256sum)
    if [[ -f $stamp && $(<"$stamp") == "$recipe" ]]; then
        say "  $title: there already"
        return
    fi
    rm -f "$stamp"
    local start=$SECONDS shown=0 pid status=0
    say "  $title ..."
    (set -e && "$work") >"$log" 2>&1 </dev/null &
    pid=$!
    while kill -0 $pid 2>/dev/null; do
        sleep 0.5
        if [[ -t 2 ]]; then
            printf '\r    %d s  %.100s\033[K' $((SECONDS - start)) "$(tail -c 300 "$log" | tr '\r\t' '\n ' | tail -n 1)" >&2
        elif ((SECONDS - start >= shown + 30)); then
            shown=$((SECONDS - start))
            say "    $shown s"
        fi
    done
    [[ -t 2 ]] && printf '\r\033[K' >&2
    wait $pid || status=$?
    if ((status)); then
        tail -n 30 "$log" >&2
        say "$title: failed ($status); all of it is in $log"
        exit "${STEP_FAILS:-1}"
    fi
    say "    done in $((SECONDS - start)) s"
    printf '%s' "$recipe" >"$stamp"
}

# Debian packages that must be there, each with a command that tells whether it is.
need() { # package=command-or-file ...
    local missing=() item
    for item in "$@"; do
        [[ -e ${item#*=} ]] || command -v "${item#*=}" >/dev/null || missing+=("${item%%=*}")
    done
    ((${#missing[@]})) || return 0
    [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null || cannot "needs the Debian packages ${missing[*]}"
    say "  installing ${missing[*]}"
    {
        [[ -n $(find /var/lib/apt/lists -name '*_Packages*' -print -quit) ]] || apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
    } >"$RETRO/log/apt.log" 2>&1 </dev/null || {
        tail -n 5 "$RETRO/log/apt.log" >&2
        cannot "could not install the Debian packages ${missing[*]}"
    }
}

# The mirror that this machine's own apt uses.
mirror() {
    local found
    found=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Identifier: Packages' 2>/dev/null |
        awk -v suite=$SUITE '$2 == suite && $3 == "main" && !found++ { print $1 }')
    [[ -n $found ]] || cannot "needs Debian 12 ($SUITE): its apt sources name no such mirror"
    printf '%s\n' "$found"
}

# apt for packages of the target, with a state of its own: the machine's apt learns of no new architecture.
apt_target() { # tool, arguments
    local tool=$1 state=$RETRO/apt
    shift
    mkdir -p "$state/lists/partial" "$state/cache/archives/partial" "$state/empty"
    if [[ ! -f $state/sources.list ]]; then
        : >"$state/status"
        printf 'deb %s %s main\n' "$(mirror)" $SUITE >"$state/sources.new"
        mv "$state/sources.new" "$state/sources.list"
    fi
    "$tool" -qq -o APT::Architecture=$ARCH -o APT::Architectures::=$ARCH -o APT::Sandbox::User=root \
        -o Acquire::Languages=none -o Dir::State="$state" -o Dir::State::Lists="$state/lists" \
        -o Dir::State::status="$state/status" -o Dir::Cache="$state/cache" \
        -o Dir::Etc::SourceList="$state/sources.list" -o Dir::Etc::SourceParts="$state/empty" "$@"
}

# Unpack packages of the target into a folder.
unpack_target() { # folder, package ...
    local folder=$1 package download
    shift
    [[ -n $(find "$RETRO/apt/lists" -name '*_Packages*' -print -quit 2>/dev/null) ]] || apt_target apt-get update
    download=$(mktemp -d)
    mkdir -p "$folder"
    (cd "$download" && apt_target apt-get download "$@")
    for package in "$download"/*.deb; do dpkg-deb -x "$package" "$folder"; done
    rm -r "$download"
}

# Run a command in the i386 Debian, as on a 32-bit machine. What is mounted there is gone when the command ends.
inside() {
    local pass=() name
    for name in $(compgen -e | grep -iE '^(PIP_|LOWBIT_|.*_proxy$|PYTEST_)'); do pass+=("$name=${!name}"); done
    unshare --mount --pid --fork --kill-child bash -c '
        set -e
        root=$1 source=$2 data=$3
        shift 3
        mount -t proc proc "$root/proc"
        mkdir -p "$root/dev/shm" && mount -t tmpfs tmpfs "$root/dev/shm"
        mkdir -p "$root/dev/pts" && mount -t devpts -o newinstance,ptmxmode=666 devpts "$root/dev/pts"
        mkdir -p "$root/source" && mount --bind -o ro "$source" "$root/source"
        if [ -n "$data" ]; then mkdir -p "$root/data" && mount --bind -o ro "$data" "$root/data"; fi
        exec setarch i686 chroot "$root" env -i "$@"' \
        inside "$ROOT" "$SOURCE" "${LOWBIT_TEST_DATA:-}" "${pass[@]}" ${LOWBIT_TEST_DATA:+LOWBIT_TEST_DATA=/data} \
        HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 CMAKE_GENERATOR=Ninja \
        CFLAGS="-O2 $CFLAGS_TARGET" CXXFLAGS="-O2 $CFLAGS_TARGET" "$@"
}

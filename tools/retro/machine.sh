#!/usr/bin/env bash
# Build the Pentium II machine with 128 MB, boot it in emulation, and let it tell a story. `machine.sh run` does the
# series of runs and ends with an error if one of them fails; `machine.sh shell` leaves a person at its serial console.
#
# `machine.sh disk` makes one disk of it that boots by itself, in a PC or in any emulator of one.
#
#     machine.sh run|shell|disk WHEEL PYTHON      PYTHON has lowbit for this machine: it says which tokens have to come out
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
MODE=$1 WHEEL=$2 HOST_PYTHON=$3
SITE=usr/lib/python3/dist-packages
MODULES=(ata_piix sd_mod ext4 crc32c_generic)

"$TOOLS/chroot.sh"
need qemu-system-x86=qemu-system-i386 qemu-user-static=qemu-i386-static e2fsprogs=/usr/sbin/mke2fs kmod=/sbin/depmod cpio=cpio unzip=unzip
say "the machine"

# A kernel for processors without PAE, the modules that find its disk, and busybox to load them.
make_kernel() {
    local package folder=$RETRO/kernel modules version name
    rm -rf "$folder"
    apt_target apt-get update
    package=$(apt_target apt-cache depends --important linux-image-686 | awk '$1 == "Depends:" { print $2; exit }')
    unpack_target "$folder" "$package" busybox-static
    version=${package#linux-image-}
    mkdir -p "$folder/initramfs/bin" "$folder/initramfs/lib/modules" "$folder"/initramfs/{dev,proc,system}
    cp "$folder/bin/busybox" "$folder/initramfs/bin/busybox"
    /sbin/depmod -b "$folder" "$version"
    modules=$(for name in "${MODULES[@]}"; do /sbin/modprobe -S "$version" -d "$folder" --show-depends "$name"; done |
        awk '$1 == "insmod" && $2 !~ /crc32c-intel/ && !seen[$2]++ { print $2 }') # that one needs SSE4.2
    {
        printf '#!/bin/busybox sh\nbusybox mount -t devtmpfs devtmpfs /dev\n'
        for name in $modules; do
            cp "$name" "$folder/initramfs/lib/modules"
            printf 'busybox insmod /lib/modules/%s\n' "$(basename "$name")"
        done
        # Disks answer a moment after their driver is there, and in any order: the right one has the program to go on with.
        printf 'until [ -x /system/sbin/init ]; do for disk in /dev/sd*; do\n'
        printf 'busybox mount -t ext4 -o ro $disk /system 2>/dev/null || continue\n'
        printf '[ -x /system/sbin/init ] && break || busybox umount /system\ndone; busybox sleep 1; done\n'
        printf 'busybox mount -o move /dev /system/dev\nexec busybox switch_root /system /sbin/init\n'
    } >"$folder/initramfs/init"
    chmod +x "$folder/initramfs/init"
    (cd "$folder/initramfs" && find . | cpio --quiet -o -H newc -R 0:0 | gzip -9) >"$RETRO/initramfs.gz"
    cp "$folder/boot/vmlinuz-$version" "$RETRO/vmlinuz"
}

# The system: the C library, Python and busybox, and what lowbit needs. It lies in the i386 Debian, whose pip fills it.
# Python runs without docstrings there (-OO), which are two megabytes of a process.
make_system() {
    local folder=$ROOT/machine name packages=(libc6 libgcc-s1 libstdc++6 zlib1g libexpat1 libssl3 libffi8 libbz2-1.0
        liblzma5 libuuid1 libcrypt1 libtinfo6 libncursesw6 libreadline8 libpython3.11-minimal python3.11-minimal
        libpython3.11-stdlib media-types)
    rm -rf "$folder" "$ROOT/wheels"
    mkdir -p "$folder"/{dev,proc,sys,tmp,root,models,retro,bin,sbin,etc,usr/local/bin} "$ROOT/wheels"
    for name in "${packages[@]}"; do dpkg-deb -x "$ROOT"/var/cache/apt/archives/"$name"_*.deb "$folder"; done
    cp "$RETRO/kernel/bin/busybox" "$folder/bin/busybox"
    for name in $("$folder/bin/busybox" --list); do
        [[ -e $folder/bin/$name ]] || ln -s busybox "$folder/bin/$name"
    done
    ln -s python3.11 "$folder/usr/bin/python3"
    rm -rf "$folder"/usr/share/{doc,man,lintian,locale} "$folder"/usr/lib/i386-linux-gnu/{gconv,perl-base} \
        "$folder"/usr/lib/python3.11/{test,idlelib,lib2to3,ensurepip,pydoc_data,turtledemo}
    cp "$WHEELS"/*.whl "$ROOT/wheels"
    # MarkupSafe is compiled for the same reason as numpy.
    inside sh -c "/venv/bin/pip install --quiet --no-compile --target /machine/$SITE --no-binary markupsafe \
        /wheels/*.whl tqdm jinja2"
    inside chroot /machine python3 -m compileall -q -o 2 --invalidation-mode unchecked-hash /usr/lib
}

# The disk of the system, with lowbit.
make_disk() {
    local folder=$ROOT/machine
    rm -rf "$folder/$SITE"/lowbit*
    unzip -q -d "$folder/$SITE" "$WHEEL"
    inside chroot /machine python3 -m compileall -q -o 2 --invalidation-mode unchecked-hash "/$SITE/lowbit"
    install -m 755 "$TOOLS/guest/init" "$folder/sbin/init"
    install -m 644 "$TOOLS/guest/run.py" "$folder/retro/run.py"
    printf '#!/bin/sh\nexec python3 -OO -m lowbit "$@"\n' >"$folder/usr/local/bin/lowbit"
    chmod 755 "$folder/usr/local/bin/lowbit"
    make_image "$folder" "$RETRO/system.img"
    find "$folder" -name '*.so*' -type f -path '*dist-packages*' -print0 |
        xargs -0 python3 "$TOOLS/scan.py" --objects "$RETRO/cmake"
}

# A processor without MMX is refused with one line, as `lowbit` says it, before another instruction of its modules.
check_refusal() {
    local said status=0
    install "$(command -v qemu-i386-static)" "$ROOT/machine/qemu-i386-static"
    said=$(inside chroot /machine /qemu-i386-static -cpu pentium2,-mmx /usr/bin/python3 -m lowbit generate x 2>&1) ||
        status=$?
    rm "$ROOT/machine/qemu-i386-static"
    echo "$said ($status)"
    [[ $status == 2 && $said == "lowbit: error: this build of lowbit needs a CPU with MMX, which this one lacks" ]]
}

make_models() {
    rm -rf "$RETRO/models" && mkdir "$RETRO/models"
    "$HOST_PYTHON" "$TOOLS/models.py" "$RETRO/models"
    make_image "$RETRO/models" "$RETRO/models.img"
}

make_image() { # folder, file
    rm -f "$2"
    truncate -s $(($(du -sm "$1" | cut -f1) * 5 / 4 + 16))M "$2"
    /usr/sbin/mke2fs -q -t ext4 -m 0 -d "$1" "$2"
}

# Master boot record, a FAT partition with SYSLINUX and the kernel, and the other two disks as partitions. A BIOS of that
# time reads the beginning of a disk only, so what it has to read comes first.
make_boot_disk() {
    local disk=$RETRO/disk.img boot=$RETRO/boot.img start=2048 image sectors table=""
    rm -f "$disk" "$boot"
    truncate -s 16M "$boot"
    /usr/sbin/mkfs.fat -F 16 -n LOWBIT "$boot"
    printf '%s\n' 'DEFAULT lowbit' 'LABEL lowbit' '  KERNEL vmlinuz' \
        "  APPEND initrd=initrd.gz console=${CONSOLE:-tty0} quiet panic=30 retro=shell" >"$RETRO/syslinux.cfg"
    mcopy -i "$boot" "$RETRO/syslinux.cfg" ::syslinux.cfg
    mcopy -i "$boot" "$RETRO/vmlinuz" ::vmlinuz
    mcopy -i "$boot" "$RETRO/initramfs.gz" ::initrd.gz
    syslinux --install "$boot"
    for image in "$boot" "$RETRO/system.img" "$RETRO/models.img"; do
        sectors=$(($(stat -c %s "$image") / 512))
        dd if="$image" of="$disk" bs=1M seek=$((start / 2048)) conv=notrunc,sparse status=none
        table+="start=$start, size=$sectors, type=$([[ $image == "$boot" ]] && echo 'e, bootable' || echo 83)"$'\n'
        start=$((start + sectors))
    done
    truncate -s $((start / 2048 + 1))M "$disk"
    printf 'label: dos\n%s' "$table" | /usr/sbin/sfdisk --quiet "$disk"
    dd if=/usr/lib/syslinux/mbr/mbr.bin of="$disk" bs=440 count=1 conv=notrunc status=none
}

step kernel "a kernel for a Pentium II" make_kernel "${MODULES[@]}"
step system "Python, numpy and sentencepiece for the machine (2 minutes)" make_system \
    "$(cd "$WHEELS" && sha256sum ./*.whl)" "$(<"$RETRO/stamps/kernel")"
step disk "its disk" make_disk "$(sha256sum <"$WHEEL")" "$(cat "$TOOLS"/guest/*)" "$(<"$RETRO/stamps/system")" \
    "$(declare -f make_image)"
step refusal "a processor that lacks MMX is refused" check_refusal "$(<"$RETRO/stamps/disk")"
step models "the models, and what they say on this machine (2 minutes)" make_models "$(sha256sum <"$TOOLS/models.py")" \
    "$(sha256sum <"$WHEEL")" "$(declare -f make_image)"
if [[ $MODE == disk ]]; then
    need syslinux=syslinux syslinux-common=/usr/lib/syslinux/mbr/mbr.bin mtools=mcopy dosfstools=/usr/sbin/mkfs.fat fdisk=/usr/sbin/sfdisk
    step bootdisk "a disk that boots by itself" make_boot_disk "$(<"$RETRO/stamps/disk")" "$(<"$RETRO/stamps/models")" "${CONSOLE:-}"
    say "$RETRO/disk.img"
    exit
fi
exec python3 "$TOOLS/boot.py" "$MODE" "$RETRO"

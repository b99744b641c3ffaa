#!/usr/bin/env bash
# Run the self-test of the kernels for AVX-VNNI and AMX on an emulated Intel Xeon, under Linux: Bochs executes the
# instructions themselves, and the system is asked for the tiles as on a real machine. It says nothing about speed.
#
#     machine.sh BOCHS FOLDER     sources of Bochs with AMX (revision 783b58fd6 of August 2026 was tried), and where to
#                                 build; on Debian 12 as root, which installs what is missing
set -euo pipefail
TOOLS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
BOCHS=$(realpath "$1") FOLDER=$(realpath -m "$2")
LIMIT=${LIMIT:-7200} # seconds after which the machine has failed

mkdir -p "$FOLDER"/{image/boot/grub,initramfs/bin,initramfs/proc,initramfs/dev}
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends python3 g++ make grub-pc-bin grub-common xorriso mtools busybox-static \
    cpio zstd >/dev/null

echo "Bochs ..."
if [[ ! -x $FOLDER/bochs/bochs ]]; then
    rm -rf "$FOLDER/bochs"
    cp -a "$BOCHS" "$FOLDER/bochs"
    python3 "$TOOLS/bochs.py" "$FOLDER/bochs/cpu"
    (cd "$FOLDER/bochs" && chmod +x configure build/* && ./configure --enable-x86-64 --enable-cpu-level=6 --enable-avx \
        --enable-evex --enable-amx --enable-long-phy-address --enable-repeat-speedups --enable-handlers-chaining \
        --enable-all-optimizations --enable-pci --enable-cdrom --with-nogui --disable-docbook &&
        make -j"$(nproc)") >"$FOLDER/bochs.log" 2>&1
fi

echo "its system ..."
package=$(apt-cache depends linux-image-cloud-amd64 | awk '$1 == "Depends:" { print $2; exit }')
(cd "$FOLDER" && apt-get download -qq "$package" && dpkg-deb -x "$package"_*.deb kernel)
cp "$FOLDER"/kernel/boot/vmlinuz-* "$FOLDER/image/boot/vmlinuz"
cp /bin/busybox "$FOLDER/initramfs/bin/busybox"
cat >"$FOLDER/initramfs/init" <<'EOF'
#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
exec >/dev/ttyS0 2>&1
/bin/busybox grep -m1 'model name' /proc/cpuinfo
for isa in avxvnni amx; do LOWBIT_ISA=$isa /selftest; done
echo "the end"
/bin/busybox sleep 1
/bin/busybox poweroff -f
EOF
chmod +x "$FOLDER/initramfs/init"

echo "the self-test ..."
python3 - "$TOOLS/../../tests/selftest" "$FOLDER" <<'EOF'
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
import run

flags = {"avx512_vnni", "avx_vnni", "avx512vbmi", "amx_int8"}  # so that neither is replaced by a stand-in
run.build(Path(sys.argv[2]) / "selftest", run.native_compiler(), "x86_64", static=True, cpu=flags)
EOF
cp "$FOLDER/selftest/selftest" "$FOLDER/initramfs/selftest"
(cd "$FOLDER/initramfs" && find . | cpio --quiet -o -H newc | zstd -q -f -o "$FOLDER/image/boot/initrd")
# Linux relies on fast short strings (bit 580) where this machine has them, though not on those that it says to lack.
cat >"$FOLDER/image/boot/grub/grub.cfg" <<'EOF'
set timeout=0
linux /boot/vmlinuz console=ttyS0 tsc=reliable lpj=1000000 mitigations=off apparmor=0 clearcpuid=580 quiet loglevel=1
initrd /boot/initrd
boot
EOF
grub-mkrescue -o "$FOLDER/machine.iso" "$FOLDER/image" >"$FOLDER/grub.log" 2>&1

echo "booting ..."
cat >"$FOLDER/bochsrc" <<EOF
display_library: nogui
cpu: model=sapphire_rapids, count=1, ips=50000000, ignore_bad_msrs=1
megs: 1024
romimage: file=$FOLDER/bochs/bios/BIOS-bochs-latest
vgaromimage: file=$FOLDER/bochs/bios/VGABIOS-lgpl/VGABIOS-lgpl-latest.bin
boot: cdrom
ata0-master: type=cdrom, path=$FOLDER/machine.iso, status=inserted
com1: enabled=1, mode=file, dev=$FOLDER/serial.log
log: $FOLDER/machine.log
panic: action=fatal
clock: sync=none
EOF
rm -f "$FOLDER/serial.log"
timeout "$LIMIT" "$FOLDER/bochs/bochs" -q -f "$FOLDER/bochsrc" >"$FOLDER/output.log" 2>&1 </dev/null || true
tr -d '\r' <"$FOLDER/serial.log" | sed -n '/model name/,/the end/p' | tee "$FOLDER/result.log"
for isa in avxvnni amx; do grep -q "^$isa .*: equal\$" "$FOLDER/result.log"; done

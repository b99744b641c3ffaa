"""Whatever ends a conversion early, no file has the final name, and memory stays within its bound."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from lowbit.formats import open_model
from lowbit.formats.gguf_writer import GGUFWriter

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals and resource limits")

LIMITED = """
import resource, sys
from lowbit import cli
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
sys.exit(cli.main(sys.argv[1:]))
"""

MEASURED = """
import resource, sys
from lowbit.convert import convert
import lowbit.tokenizers
def rss():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) << 10
convert(sys.argv[3], sys.argv[2] + ".small", sys.argv[4], sys.argv[5])
before = rss()
convert(sys.argv[1], sys.argv[2], sys.argv[4], sys.argv[5])
print(rss() - before)
"""


def test_kill_9_at_any_moment_leaves_nothing_under_the_final_name(llama, tmp_path):
    path, out = llama(words=20000), tmp_path / "out.gguf"
    command = [sys.executable, "-m", "lowbit", "convert", str(path), str(out), "--type", "tq2_0"]
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, timeout=1200)
    whole = time.perf_counter() - start
    complete = out.read_bytes()
    out.unlink()
    draw = random.Random(5)
    killed = 0
    for _ in range(20):
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(draw.uniform(0.4, 0.95) * whole)
        child.kill()
        if child.wait() == -9:
            killed += 1
        else:  # the run that was timed had less of the machine
            whole *= 0.8
        if out.exists():  # only a conversion that was done before the signal came has given the name
            assert out.read_bytes() == complete
            out.unlink()
    assert killed >= 5


def test_a_full_disk_gives_one_clear_line_and_leaves_nothing(llama, tmp_path):
    path, out = llama(), tmp_path / "out.gguf"
    command = [sys.executable, "-c", LIMITED, "convert", str(path), str(out), "--type", "q8_0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"{out}: cannot be written (" in done.stderr
    assert list(tmp_path.iterdir()) == [path]


FULL_DISK = """
mount -t tmpfs -o size=64k none "$1" || exit 77
"$2" -c 'import os, shutil, sys
from lowbit import cli
if sys.argv[1] == "late":
    usage = shutil.disk_usage("/")
    shutil.disk_usage = lambda folder: usage._replace(free=1 << 40)
sys.exit(cli.main(sys.argv[2:]))' "$3" convert "$4" "$1/out.gguf" --type q8_0
code=$?
ls -A "$1"
exit $code
"""


@pytest.mark.parametrize("when", ["early", "late"], ids=["free space is known", "the disk fills while it is written"])
def test_a_small_disk_that_is_full_gives_one_clear_line_and_holds_nothing(llama, tmp_path, when):
    path, disk = llama(), tmp_path / "disk"
    disk.mkdir()
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare to mount a disk with")
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", FULL_DISK, "sh", disk, sys.executable, when, path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    if done.returncode in (1, 77):
        pytest.skip("this user may not mount a disk")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"{disk}/out.gguf: " in done.stderr
    assert done.stdout == ""


def test_a_disk_without_room_is_refused_before_anything_is_written(llama, tmp_path, monkeypatch):
    from lowbit.convert import convert
    from lowbit.errors import LowbitError

    path = llama()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=1000))
    with pytest.raises(LowbitError, match="1,000 are free"):
        convert(path, tmp_path / "out.gguf", "q8_0")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.measured
@pytest.mark.parametrize(("kind", "head"), [("tq2_0", "q6_k"), ("q8_0", "q8_0"), ("f16", "f16")])
def test_peak_memory_is_within_twice_the_largest_tensor_and_64_mb(llama, tmp_path, kind, head):
    # An embedding of 64 MB; everything else is small.
    path, big = llama(), tmp_path / "big.gguf"
    rows = 1 << 16
    with open_model(path) as file, GGUFWriter(big, "llama") as writer:
        for key, value in file.metadata.items():
            if key != "general.architecture":
                writer.add_metadata(key, value, file.metadata_types[key])
        for info in file.tensors.values():
            writer.add_tensor_info(info.name, "F32", (rows, 256) if info.name == "token_embd.weight" else info.shape)
        writer.write_header()
        rng = np.random.default_rng(0)
        for info in file.tensors.values():
            if info.name == "token_embd.weight":
                writer.write_tensor_parts(info.name, (rng.random((1024, 256), np.float32) for _ in range(rows // 1024)))
            else:
                writer.write_tensor(info.name, np.resize(np.float32([0.5, 0, -0.5]), info.shape))
    largest = rows * 256 * 4
    command = [sys.executable, "-c", MEASURED, str(big), str(tmp_path / "out.gguf"), str(path), kind, head]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=True)
    assert int(done.stdout) <= 2 * largest + (64 << 20)
    # The bound that matters for files larger than memory: the tensor as it is mapped, and room for some rows.
    assert int(done.stdout) <= largest + (64 << 20)

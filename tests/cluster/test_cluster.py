"""Batches on a real cluster of Ray."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time

import pytest
from batches import Folder, answers_of, completion, write_lines

pytestmark = pytest.mark.ray
ray = pytest.importorskip("ray", reason="these tests need the extra 'ray'")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The answers of one process."""
    folder = Folder(tmp_path_factory.mktemp("whole"))
    write_lines(folder.input, 2000, 48, 4)
    assert folder.run("--order", "file")[0] == 3
    return folder


def begin(cluster, folder, *more):
    return subprocess.Popen(
        folder.command("--ray", cluster.address, *more), stderr=subprocess.PIPE, text=True, cwd=folder.path
    )


def wait_for_lines(folder, process, n):
    while process.poll() is None and (not folder.output.exists() or folder.output.read_bytes().count(b"\n") < n):
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()


def workers_of(cluster):
    """Process ids of the actors."""
    found = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [int(line.split()[0]) for line in found.splitlines() if "ray::Worker" in line]


def check(folder, whole):
    assert answers_of(folder.output) == answers_of(whole.output)
    assert answers_of(folder.failed) == answers_of(whole.failed)


def test_two_nodes_leave_what_one_process_leaves(cluster, folder, tmp_path_factory):
    alone = Folder(tmp_path_factory.mktemp("alone"))
    alone.input = folder.input
    write_lines(folder.input, 300, 24, 4)
    assert alone.run("--order", "file")[0] == 3
    process = begin(cluster, folder)
    _, said = process.communicate()
    assert process.returncode == 3, said
    check(folder, alone)


@pytest.mark.long
def test_workers_a_node_and_the_driver_may_be_killed(cluster, folder, whole):
    folder.input = whole.input
    process = begin(cluster, folder)
    wait_for_lines(folder, process, 2)
    os.kill(workers_of(cluster)[0], signal.SIGKILL)
    wait_for_lines(folder, process, 100)
    process.kill()
    process.communicate()
    lost = cluster.add_node(num_cpus=1)
    process = begin(cluster, folder)
    wait_for_lines(folder, process, folder.output.read_bytes().count(b"\n") + 20)
    cluster.remove_node(lost, allow_graceful=False)
    _, said = process.communicate()
    assert process.returncode == 3, said
    check(folder, whole)


def test_a_model_that_a_node_cannot_load_is_one_line_that_names_the_node(cluster, folder):
    folder.write(completion("a"))
    process = begin(cluster, folder, "-m", "/nowhere/model.gguf")
    _, said = process.communicate()
    assert process.returncode == 2
    assert said.startswith("lowbit: error: node ")
    assert "/nowhere/model.gguf" in said
    assert said.count("\n") == 1


@pytest.mark.long
def test_another_version_on_a_node_is_one_line_that_names_the_node(cluster, folder, odd_node):
    folder.write(completion("a"))
    _, said = begin(cluster, folder).communicate()
    assert re.fullmatch(r"lowbit: error: node \S+ \(\w{8}\) has another version than the others: lowbit-9.9.9\n", said)


def test_an_address_that_does_not_answer_is_one_line(folder):
    folder.write(completion("a"))
    status, said = folder.run("--ray", "127.0.0.1:1")
    assert status == 2
    assert said.startswith("lowbit: error: no Ray cluster answers at 127.0.0.1:1: ")
    assert said.count("\n") == 1


@pytest.mark.long
def test_ray_data_gives_the_same_answers(cluster, folder):
    pytest.importorskip("pyarrow", reason="Ray Data needs the extra 'ray[data]'")
    from lowbit import __version__
    from lowbit.ray import Answers, Task
    from lowbit.serve import Settings

    write_lines(folder.input, 40, 8, 4, wrong=False)
    assert folder.run("-q")[0] == 0
    ray.init(cluster.address, log_to_driver=False, logging_level="error")
    try:
        task = Task(None, {}, Settings(version=f"lowbit-{__version__}", max_queue=4096), 0)
        lines = ray.data.from_items([{"text": line} for line in folder.input.read_text("utf-8").splitlines()])
        actors = ray.data.ActorPoolStrategy(size=1)
        answers = lines.map_batches(Answers, fn_constructor_args=[task], compute=actors, num_cpus=1, batch_size=16)
        assert sorted(row["answer"].encode() for row in answers.take_all()) == answers_of(folder.output)
    finally:
        ray.shutdown()

"""A real cluster of Ray, whose nodes are processes on this machine."""

from __future__ import annotations

import os
import sys

import pytest
from batches import Folder

collect_ignore = ["test_cluster.py", "test_serving.py"] if sys.platform == "win32" else []
"""Several nodes on one machine need Linux or macOS."""


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


@pytest.fixture(scope="session")
def cluster():
    """A head without a processor, and two nodes with one each."""
    pytest.importorskip("ray", reason="these tests need the extra 'ray'")
    from ray.cluster_utils import Cluster

    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    try:  # none of this is ours
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        for _ in range(2):
            cluster.add_node(num_cpus=1)
    except Exception as error:
        pytest.skip(f"no cluster of Ray can begin here: {error}")
    yield cluster
    cluster.shutdown()


@pytest.fixture
def odd_node(cluster, tmp_path_factory):
    """A node with another version of lowbit."""
    path = tmp_path_factory.mktemp("odd")  # where no command begins, which would see it too
    folder = path / "lowbit-9.9.9.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: lowbit\nVersion: 9.9.9\n")
    node = cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": str(path)})
    yield node
    cluster.remove_node(node)

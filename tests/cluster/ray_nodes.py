"""A Ray cluster of two nodes on this machine, for tests and by hand: `python -m tests.cluster.ray_nodes` starts one,
says its address, and ends with its standard input."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ridgeline

STORE_BYTES = 80 << 20  # the least Ray takes


@contextmanager
def two_nodes() -> Iterator[str]:
    """Their address. Each has one CPU; their workers find this Ridgeline."""
    os.environ["PYTHONPATH"] = str(Path(ridgeline.__file__).resolve().parents[1])
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": STORE_BYTES}
    nodes = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    try:
        nodes.add_node(**node)
        yield nodes.address
    finally:
        nodes.shutdown()


if __name__ == "__main__":
    with two_nodes() as address:
        print(address, flush=True)
        sys.stdin.read()

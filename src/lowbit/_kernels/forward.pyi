from .graph import Graph
from .kvpool import KVPool
from .matrix import PackedMatrix
from .profile import Profile

class ForwardPass:
    graph: Graph
    pool: KVPool
    threads: int
    profile: Profile | None
    batch: int
    scratch_bytes: int
    def __init__(self, graph: Graph, pool: KVPool, threads: int, batch: int = 256) -> None: ...
    def shorten(self, head: PackedMatrix) -> None: ...

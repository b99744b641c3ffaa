import numpy as np

from .matrix import PackedMatrix

class SparseScratch:
    nbytes: int
    def __init__(self) -> None: ...

def channel_major(w: PackedMatrix, threads: int = 1) -> PackedMatrix: ...
def make_channel_major(w: PackedMatrix, threads: int = 1) -> None: ...
def sparse_matmul(w: PackedMatrix, x: np.ndarray, per_token: bool = False, threads: int = 1) -> np.ndarray: ...
def sparse_ternary_matmul(
    packed: PackedMatrix,
    x: np.ndarray,
    k: int | None = None,
    threshold: float | None = None,
    threads: int = 1,
    scratch: SparseScratch | None = None,
) -> np.ndarray: ...

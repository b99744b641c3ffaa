import numpy as np

STORED_TYPES: dict[str, int]

class Stored:
    type: str
    def __init__(self, type: str, table: np.ndarray) -> None: ...

from collections.abc import Iterable

import numpy as np

class Sampler:
    def __init__(
        self,
        vocab_size: int,
        temperature: float,
        top_k: int,
        top_p: float,
        min_p: float,
        repeat_penalty: float,
        seed: int,
    ) -> None: ...
    def note(self, tokens: Iterable[int]) -> None: ...
    def choose(self, logits: np.ndarray) -> int: ...

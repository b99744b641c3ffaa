from collections.abc import Iterable, Mapping

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
        presence_penalty: float = 0,
        frequency_penalty: float = 0,
        logit_bias: Mapping[int, float] | None = None,
    ) -> None: ...
    vocab_size: int
    def imitate(self, other: Sampler) -> None: ...
    def allow(self, mask: np.ndarray | None) -> None: ...
    def note(self, tokens: Iterable[int]) -> None: ...
    def drawn_from(self) -> tuple[list[int], list[float]]: ...
    def choose(self, logits: np.ndarray) -> int: ...

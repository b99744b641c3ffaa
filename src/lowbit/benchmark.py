"""Measuring speed: prefill and decode of a model, beside what the machine itself can do in the same run."""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from ._kernels import dispatch
from ._kernels.decoder import Decoder
from ._kernels.probe import dot_peak, read_bandwidths
from ._kernels.profile import Profile
from ._kernels.sampler import Sampler
from ._kernels.sequence import Sequence as Text
from .assets import EMBEDDED_MODEL
from .errors import ContextLengthError
from .families import find_family
from .formats import open_model
from .formats.base import Closing, ModelFile, TensorInfo
from .loading.load import build, check_forms, check_threads
from .loading.memory import resident_bytes
from .loading.sparsity import Setting, parse
from .plan import Weight
from .quantize.ggml_types import tensor_nbytes

SHAPES: dict[str, dict[str, Any]] = {
    "13M": {"hidden": 256, "layers": 6, "wide": 768, "heads": 4, "kv_heads": 4, "vocab": 32000},
    "15M": {"hidden": 288, "layers": 6, "wide": 768, "heads": 6, "kv_heads": 6, "vocab": 32000, "tied": True},
    "110M": {"hidden": 768, "layers": 12, "wide": 2048, "heads": 12, "kv_heads": 12, "vocab": 32000},
    "0.7B": {"hidden": 1536, "layers": 24, "wide": 4096, "heads": 16, "kv_heads": 16, "vocab": 32000},
    "1B": {
        "hidden": 2048, "layers": 22, "wide": 5632, "heads": 32, "kv_heads": 4, "vocab": 32000, "tied": True,
        "table": "Q4_0",
    },
    "2.4B": {"hidden": 2560, "layers": 30, "wide": 6912, "heads": 20, "kv_heads": 5, "vocab": 128256},
    "qwen35-0.8B": {
        "hidden": 1024, "layers": 24, "wide": 3584, "heads": 8, "kv_heads": 2, "vocab": 248320, "tied": True,
        "architecture": "qwen35", "head_dim": 256, "turned": 64,
        "more": {
            "ssm.time_step_rank": 16, "ssm.group_count": 16, "ssm.state_size": 128, "ssm.inner_size": 2048,
            "ssm.conv_kernel": 4, "full_attention_interval": 4, "rope.dimension_sections": [11, 11, 10, 0],
        },
    },
}  # fmt: skip
"""Shapes with random ternary weights, named by their parameters: of Llamas, and of Qwen3.5 0.8B, whose layers are
recurrent but for every fourth. Embedding and head have 8 bits but for 1B."""


class RandomModel(Closing):
    """A model of one of the `SHAPES` that exists nowhere: its tensors are made when they are read.

    Weights are random ternary TQ2_0, or ternary F16 where rows are no multiple of 256; embeddings and head are random
    Q8_0 or Q4_0; the same bytes every time. The scales keep the activations of a normal size, so that nothing overflows
    and no value is special.
    """

    format = "random"

    def __init__(self, shape: str, context: int = 4096) -> None:
        if shape not in SHAPES:
            raise ValueError(f"unknown shape {shape!r}; there are {', '.join(SHAPES)}")
        s = SHAPES[shape]
        self.path = f"random {shape}"
        self.architecture = s.get("architecture", "llama")
        head_dim = s.get("head_dim", s["hidden"] // s["heads"])
        of_the_shape = {
            "context_length": context,
            "embedding_length": s["hidden"],
            "block_count": s["layers"],
            "feed_forward_length": s["wide"],
            "attention.head_count": s["heads"],
            "attention.head_count_kv": s["kv_heads"],
            "attention.key_length": head_dim,
            "attention.value_length": head_dim,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "rope.freq_base": 10000.0,
            "rope.dimension_count": s.get("turned", head_dim),
            "vocab_size": s["vocab"],
            **s.get("more", {}),
        }
        self.metadata: Mapping[str, Any] = {
            "general.architecture": self.architecture,
            "general.name": self.path,
            **{f"{self.architecture}.{key}": value for key, value in of_the_shape.items()},
        }
        head = () if s.get("tied") else ("output.weight",)
        plan = find_family(self.architecture).plan(self.metadata, self.architecture, head)
        self.tensors: Mapping[str, TensorInfo] = {
            weight.name: _random_tensor(weight, s.get("table", "Q8_0")) for weight in plan.weights()
        }
        # all bytes of four valid ternary codes, repeated past a power of two so that the reuse has no short period
        rng = np.random.default_rng(2)
        digits = rng.integers(0, 3, (1_000_003, 4), np.uint8)
        self._digits = digits
        self._ternary = digits[:, 0] | digits[:, 1] << 2 | digits[:, 2] << 4 | digits[:, 3] << 6
        self._bytes = rng.integers(1, 256, 1_000_003, np.uint8)

    def read(self, name: str) -> np.ndarray:
        """Make the bytes of a tensor."""
        info = self.tensors[name]
        if info.type == "F32":
            decay = name.endswith(".ssm_a")  # a state that grew would overflow
            return np.full(info.shape, -1.0 if decay else 1.0, np.float32).view(np.uint8)
        shift = zlib.crc32(name.encode())
        if info.type == "F16":
            digits = np.resize(np.roll(self._digits.reshape(-1), shift), info.shape)
            return (
                ((digits.astype(np.float32) - 1) * (1.2 / np.sqrt(info.shape[1])))
                .astype(np.float16)
                .reshape(-1)
                .view(np.uint8)
            )
        source = self._ternary if info.type == "TQ2_0" else self._bytes
        raw = np.resize(np.roll(source, shift % len(source)), info.nbytes)
        block, at, scale = {
            "TQ2_0": (66, 64, np.float16(1.2 / np.sqrt(info.shape[1]))),
            "Q8_0": (34, 0, np.float16(1 / 127)),
            "Q4_0": (18, 0, np.float16(1 / 8)),
        }[info.type]
        raw.reshape(-1, block)[:, at : at + 2] = np.frombuffer(scale.tobytes(), np.uint8)
        return raw

    def release(self, name: str) -> None:
        """Nothing is kept."""

    def release_all(self) -> None:
        """Nor here."""

    def close(self) -> None:
        """There is nothing to close."""


def _random_tensor(weight: Weight, table: str) -> TensorInfo:
    kinds = {
        "norm": "F32",
        "recurrence": "F32",
        "linear": "F16" if weight.shape[-1] % 256 else "TQ2_0",
        "embedding": table,
        "head": table,
    }
    kind = kinds[weight.kind]
    return TensorInfo(weight.name, kind, weight.shape, 0, tensor_nbytes(kind, weight.shape))


def run(
    path: str | os.PathLike[str] | None = None,
    random: str | None = None,
    prompt_tokens: int = 128,
    decode_tokens: int = 32,
    threads: Sequence[int] = (1, 2),
    context: int | None = None,
    repeat: int = 3,
    progress: Callable[[int, int], None] | None = None,
    sparsity: Setting = 0.0,
    profile: bool = False,
    batch: int = 1,
    pack: str = "auto",
    kv_type: str = "auto",
) -> list[dict[str, Any]]:
    """Measure a model.

    Parameters
    ----------
    path : path, optional
        A model file; None is the embedded model, unless `random` is given.
    random : str, optional
        One of `SHAPES`.
    prompt_tokens, decode_tokens : int
        Tokens of the prompt, and tokens decoded after it.
    threads : sequence of int
        Thread counts to measure.
    context : int, optional
        Room in tokens; None takes what the run needs.
    repeat : int
        Runs, of which the best counts.
    progress : callable, optional
        Called with the number of steps done, and of all steps.
    sparsity : float, mapping of str to float, or path
        As for `lowbit.load`; holds while decoding.
    profile : bool
        Measure each operation too, in as many runs again.
    batch : int
        Texts that are decoded together, each after a prompt of its own; the first prompt is the one that is measured.
    pack, kv_type : str
        As for `lowbit.load`.

    Returns
    -------
    list of dict
        One per thread count: threads, isa, prefill_tps, decode_tps (tokens per second, of all texts together),
        weight_bytes_per_token, decode_gbps (weights are read once per step, however many the texts) and
        memory_read_gbps (10**9 bytes per second), load_seconds, rss_mb (2**20 bytes). With `profile` also ``profile``:
        ``prefill`` and ``decode`` are lists of operations, as `_operations` makes them, ``read_gbps`` maps the number
        of streams that a thread reads at once to 10**9 bytes per second, and ``peak_gmacs`` are 10**9 int8
        multiply-adds per second in registers.

    Raises
    ------
    ValueError
        If the shape or a number is out of range.
    ContextLengthError
        If the run does not fit into the model's context.
    """
    counts = [check_threads(n) for n in threads]
    skipped = parse(sparsity)
    check_forms(kv_type, pack=pack, sparse=skipped)
    say = progress or (lambda done, total: None)
    need = prompt_tokens + decode_tokens
    tokens = prompt_tokens, batch * decode_tokens
    steps, done = 1 + len(counts) * (repeat * (1 + profile) + 1), 0
    with ExitStack() as stack:
        say(0, steps)
        start = time.perf_counter()
        file: ModelFile
        if random is not None:
            file = RandomModel(random, max(4096, need))
        else:
            file = stack.enter_context(open_model(EMBEDDED_MODEL if path is None else path))
        decoder, plan = build(file, max(counts), context, kv_type, sparse=skipped, pack=pack)
        load_seconds = time.perf_counter() - start
    if need > decoder.graph.context:
        raise ContextLengthError(f"{need} tokens do not fit into a context of {decoder.graph.context}")
    prompts = np.random.default_rng(1).integers(0, plan.vocab_size, (batch, prompt_tokens)).astype(np.int32)
    per_token = decoder.graph.bytes_per_token
    results = []
    for n in counts:
        decoder.threads = n
        say(done := done + 1, steps)
        rates = read_bandwidths(n)
        times, profiles = [], []
        for i in range(repeat * (1 + profile)):
            say(done := done + 1, steps)
            if i < repeat:
                times.append(_turn(decoder, prompts, decode_tokens))
            else:
                profiles.append((Profile(), Profile()))
                _turn(decoder, prompts, decode_tokens, profiles[-1])
        prefill, decode = map(min, zip(*times, strict=True))
        rates = {streams: max(rate, rates[streams]) for streams, rate in read_bandwidths(n).items()}
        result = {
            "threads": n,
            "isa": dispatch.active(),
            "prefill_tps": prompt_tokens / prefill,
            "decode_tps": batch * decode_tokens / decode,
            "weight_bytes_per_token": per_token,
            "decode_gbps": per_token * decode_tokens / decode / 1e9,
            "memory_read_gbps": max(rates.values()) / 1e9,
            "load_seconds": load_seconds,
            "rss_mb": resident_bytes() / 2**20,
        }
        if profile:
            peak = dot_peak(n)
            parts = zip(("prefill", "decode"), zip(*profiles, strict=True), tokens, strict=True)
            result["profile"] = {
                "read_gbps": {streams: rate / 1e9 for streams, rate in rates.items()},
                "peak_gmacs": peak / 1e9,
            } | {name: _operations(turns, n, max(rates.values()), peak) for name, turns, n in parts}
        results.append(result)
    say(steps, steps)
    return results


def _turn(
    decoder: Decoder,
    prompts: np.ndarray,
    decode_tokens: int,
    profiles: tuple[Profile | None, Profile | None] = (None, None),
) -> tuple[float, float]:
    """Return the seconds that reading the first prompt takes, and decoding after all; each may have a profile."""
    vocab = decoder.graph.vocab
    need = prompts.shape[1] + decode_tokens
    texts = [
        Text(decoder.pool, ids, need, sampler=Sampler(vocab, 0.0, 0, 1.0, 0.0, 1.0, 0), most=need + 1, reuse=False)
        for ids in prompts
    ]
    decoder.profile = profiles[0]
    start = time.perf_counter()
    decoder.read(texts[0])
    read = time.perf_counter() - start
    decoder.profile = None
    for text in texts[1:]:
        decoder.read(text)
    decoder.profile = profiles[1]
    start = time.perf_counter()
    decoder.make(texts, decode_tokens)
    made = time.perf_counter() - start
    decoder.profile = None
    for text in texts:
        text.close()
    return read, made


def _operations(turns: Sequence[Profile], tokens: int, read: float, peak: float) -> list[dict[str, Any]]:
    """Return what the fastest of some profiles has measured, per token, and beside the limits of the machine.

    Parameters
    ----------
    turns : sequence of Profile
    tokens : int
        That each of them saw.
    read, peak : float
        Bytes and int8 products that the machine can take per second.

    Returns
    -------
    list of dict
        operation, calls (all of them), us_per_call, us_per_token, share (of all time), gbps and gmacs (10**9 bytes and
        products per second), of_read and of_peak (what part of the limits these are).
    """
    laps = min((turn.laps() for turn in turns), key=lambda laps: sum(lap["ns"] for lap in laps))
    whole = sum(lap["ns"] for lap in laps)
    return [
        {
            "operation": lap["operation"],
            "calls": lap["calls"],
            "us_per_call": lap["ns"] / lap["calls"] / 1e3,
            "us_per_token": lap["ns"] / tokens / 1e3,
            "share": lap["ns"] / whole,
            "gbps": lap["bytes"] / lap["ns"],
            "gmacs": lap["products"] / lap["ns"],
            "of_read": lap["bytes"] * 1e9 / lap["ns"] / read,
            "of_peak": lap["products"] * 1e9 / lap["ns"] / peak,
        }
        for lap in laps
        if lap["ns"]
    ]

"""One training run from corpus to GGUF file, and the folder that keeps its state."""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import random
import re
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import FormatError, one_line
from ..replacing import Replacing
from ..tokenizers import Tokenizer, from_gguf_metadata
from .checkpoint import read_progress
from .corpus import Document, asked_for, encode, plain_text, read_documents, texts
from .crew import can_fork
from .events import EventLog
from .export import check_exportable, write_gguf
from .loop import Schedule, fit
from .measure import bits_per_byte
from .model import BitNet, BitNetShape, Precision
from .report import Beat, Progress, plot_loss
from .teacher import Teacher
from .vocabulary import read_vocabulary, train_vocabulary, write_vocabulary
from .warmstart import grow, read_model

HELD_OUT = 0.02
"""Share of the text that is kept back for measuring, at most `HELD_OUT_BYTES`."""
HELD_OUT_BYTES = 100_000
RUN = 12
"""Words in a row by which trained and held-out text are compared."""


@dataclass
class Project:
    """What to train, from what, and where to put it."""

    corpus: Sequence[str]
    """Text and JSONL files; ``NAME=WEIGHT`` takes a file's documents so many times in an epoch."""
    output: Path
    """The GGUF file to write."""
    schedule: Schedule
    """`steps` 0 stands for `epochs` times the corpus."""
    epochs: float = 4.0
    folder: Path | None = None
    """State of the run, its curve and samples; the output's name with ``.train`` if not given."""
    validation: Sequence[str] = ()
    """Files to measure on; if empty, a part of the corpus is kept back."""
    vocab_size: int = 2048
    vocabulary: str | None = None
    """File to take the vocabulary from, instead of training one."""
    start_from: str | None = None
    """BitNet model to go on from; its vocabulary is taken too, and its shape but for more layers."""
    teacher: str | None = None
    """Any model that lowbit runs, with the same vocabulary, to learn from."""
    shape: dict[str, Any] = field(default_factory=dict)
    """Values for `BitNetShape`; what is not given stays at its default, or as in `start_from`."""
    dropout: float = 0.0
    precision: Precision = "ternary"
    """Of the linear layers, one of `lowbit.train.model.PRECISIONS`."""
    compute: str = "auto"
    """Of the matrix products: ``bf16``, ``float32``, or ``auto``, bf16 where the processor multiplies it natively."""
    threads: int | None = None
    """Cores to use; None for all."""
    device: str = "cpu"
    compile: bool | None = None
    """Fuse with torch.compile; None does where a C++ compiler is found."""
    ternary_type: str = "TQ2_0"
    embedding_type: str = "Q8_0"
    name: str = ""
    samples: int = 3
    """Stories that the finished model writes."""
    measure_every: int = 100
    checkpoint_seconds: float = 60.0
    resume: bool = False


def train(project: Project) -> Path:
    """Carry out a run, or the rest of one, and return the path of the model.

    Raises
    ------
    LowbitError
        If the corpus, a file or an option cannot be used, or the loss diverges.
    """
    with Beat("reading the text") as beat:
        return _train(project, beat)


def _train(project: Project, beat: Beat) -> Path:
    folder = project.folder or project.output.with_name(project.output.name + ".train")
    checkpoint, vocabulary_file = folder / "checkpoint.npz", folder / "vocabulary.gguf"
    if project.resume and not checkpoint.exists():
        raise FormatError(f"{checkpoint}: nothing to resume")
    if not project.resume and checkpoint.exists():
        raise FormatError(f"{folder}: holds a run already; resume it, or remove the folder to begin anew")
    check_output(project)
    cores = project.threads or torch.get_num_threads()
    passes = project.schedule.batch_tokens // project.schedule.micro_tokens
    processes, threads = share_cores(cores, project.device, passes)
    torch.set_num_threads(1 if processes > 1 else threads)  # threads do not survive the copying of a process

    files = [split_weight(name) for name in project.corpus]
    parts = [read_documents([path]) for path, _ in files]
    documents = [document for part in parts for document in part]
    weights = [weight for (_, weight), part in zip(files, parts, strict=True) for _ in part]
    if not any(weights):
        raise FormatError("the mix is empty: every file has the weight 0")
    if project.validation:
        held = read_documents(project.validation)
        check_apart(documents, held)
    else:
        kept, held = hold_out(documents, project.schedule.seed)
        if len(kept) < len(documents):
            gone = set(held)
            weights = [w for document, w in zip(documents, weights, strict=True) if document not in gone]
        documents = kept
    if project.resume:
        vocabulary = read_vocabulary(vocabulary_file)
    elif project.vocabulary or project.start_from:
        vocabulary = read_vocabulary(project.vocabulary or project.start_from or "")
    else:
        say(f"training a vocabulary of {project.vocab_size} tokens")
        beat.at("training the vocabulary")
        chat = any(not isinstance(document, str) for document in documents)
        vocabulary = train_vocabulary([t for d in documents for t in texts(d)], project.vocab_size, chat=chat)
    tokenizer = from_gguf_metadata(vocabulary, "the vocabulary")
    if tokenizer.vocab_size > 65536:
        raise FormatError(f"{tokenizer.vocab_size} tokens are too many to train; at most 65536")

    float_training = project.compute == "auto" and project.precision == "float32"
    compute = torch.float32 if float_training else compute_type(project.compute, project.device)
    torch.manual_seed(project.schedule.seed)
    model = make_model(project, tokenizer.vocab_size, compute).to(project.device)
    check_exportable(model, project.ternary_type)
    if project.schedule.window > model.shape.context_length:
        longest = model.shape.context_length
        raise FormatError(f"the window of {project.schedule.window} tokens is longer than the context of {longest}")
    teacher = Teacher(project.teacher, tokenizer, project.schedule.window) if project.teacher else None
    beat.at("cutting the text into tokens")
    tokens, held_tokens = encode(documents, tokenizer), encode(held, tokenizer, end=False)
    marks = asked_for(tokens, tokenizer) if project.schedule.emphasis != 1 else None
    held_bytes = sum(len(plain_text(document).encode()) for document in held)
    schedule = project.schedule
    if not schedule.steps:
        size = sum(w * (len(ids) - 1) for w, ids in zip(weights, tokens, strict=True))
        schedule = replace(schedule, steps=max(1, round(project.epochs * size / schedule.batch_tokens)))
    digest = hashlib.sha256(b"".join([*(ids.tobytes() for ids in tokens), np.array(weights).tobytes()])).hexdigest()
    identity = {"corpus": digest, "shape": asdict(model.shape), "dropout": project.dropout}
    if project.precision != "ternary":
        identity["precision"] = project.precision
    parameters = sum(p.numel() for p in model.parameters())
    say(
        f"{parameters:,} parameters; {sum(map(len, tokens)):,} tokens in {len(tokens):,} documents, "
        f"{schedule.steps * schedule.batch_tokens:,} to train on; measured on {held_bytes:,} bytes"
    )

    folder.mkdir(parents=True, exist_ok=True)
    if not project.resume:
        write_vocabulary(vocabulary_file, vocabulary)
        write_options(folder / "options.json", project, schedule, identity)
    compiled = folder / "compiled"
    if project.compile or (project.compile is None and shutil.which("c++")):
        compile_model(model, compiled)
    # A second model, in float32 and not compiled, measures: as the exported file will compute, in any batch shape.
    plain = BitNet(model.shape, precision=project.precision).to(project.device)

    def measure() -> float:
        plain.load_state_dict(model.state_dict())
        return bits_per_byte(plain, held_tokens, held_bytes)

    done = read_progress(checkpoint)["history"] if project.resume else []
    log = EventLog(folder, done)
    progress = Progress(schedule.steps, len(done), schedule.batch_tokens, beat)

    def report(record: dict[str, float]) -> None:
        progress(record)
        log(record)

    try:
        history = fit(
            model, tokens, schedule, checkpoint, weights=weights, marks=marks, teacher=teacher, identity=identity,
            resume=project.resume, processes=processes, threads=threads, checkpoint_seconds=project.checkpoint_seconds,
            validate=measure, validate_every=project.measure_every, report=report,
        )  # fmt: skip
    except KeyboardInterrupt:
        progress.close()
        if checkpoint.exists():
            step = read_progress(checkpoint)["step"]
            say(f"stopped after step {step} of {schedule.steps}; the same command with --resume goes on from there")
        raise
    finally:
        progress.close()
        log.close()
    beat.at("writing and measuring the model")
    name = project.name or project.output.stem
    write_gguf(
        project.output, model, vocabulary, name=name,
        ternary_type=project.ternary_type, embedding_type=project.embedding_type,
    )  # fmt: skip
    shutil.rmtree(compiled, ignore_errors=True)
    if history:
        try:
            plot_loss(folder / "loss.svg", history)
        except ModuleNotFoundError as error:
            say(f"{folder / 'loss.svg'}: not drawn, {error.name} is not installed; its values are in {checkpoint}")
    say(f"{project.output}: {project.output.stat().st_size:,} bytes, {measure():.4f} bits/byte on held-out text")
    if project.samples:
        beat.at("writing samples")
        write_samples(folder / "samples.txt", project, tokenizer, held)
    return project.output


def check_output(project: Project) -> None:
    """Refuse, before hours of work and not after them, an output that is a folder, or something that is read."""
    if project.output.is_dir():
        raise FormatError(f"{project.output}: is a folder; the output is a file")
    read = [split_weight(name)[0] for name in project.corpus]
    read += [path for path in (*project.validation, project.vocabulary, project.teacher) if path]
    if project.output.exists() and any(Path(path).exists() and project.output.samefile(path) for path in read):
        raise FormatError(f"{project.output}: is read; give the model another name")


def compile_model(model: BitNet, cache: Path) -> None:
    """Fuse a model's arithmetic, and keep what the compiler makes in the folder `cache`.

    What cannot be compiled, because there is no compiler, or the folder is damaged, runs as it is; that is said once.
    """
    import torch._dynamo

    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache.absolute())
    torch._dynamo.config.suppress_errors = True
    said = False

    def told(record: logging.LogRecord) -> bool:
        nonlocal said
        if record.exc_info and not said and multiprocessing.parent_process() is None:
            said = True
            why = one_line(record.exc_info[1])[:120]
            say(f"compiling failed ({why}); training goes on without it, as with --no-compile")
        return not record.exc_info

    logging.getLogger("torch._dynamo.convert_frame").addFilter(told)
    say("compiling: the first step takes a minute or so")
    model.compile()


def write_options(path: Path, project: Project, schedule: Schedule, identity: dict[str, Any]) -> None:
    """Note everything that the run depends on, for somebody who wants to have it again."""
    files = [*project.corpus, *project.validation, *filter(None, (project.teacher, project.start_from))]
    digests = {
        name: hashlib.sha256(Path(split_weight(name)[0]).read_bytes()).hexdigest() for name in map(os.fspath, files)
    }
    versions = {"lowbit": version("lowbit"), "torch": torch.__version__}
    told = {**asdict(project), "schedule": asdict(schedule), **identity, "sha256": digests, "versions": versions}
    with Replacing(path) as file:
        file.write(json.dumps(told, indent=1, default=os.fspath).encode() + b"\n")


def say(text: str) -> None:
    """Tell the user, on standard error."""
    print(text, file=sys.stderr, flush=True)


def split_weight(name: str) -> tuple[str, float]:
    """Split ``NAME=WEIGHT``; a file that has such a name is taken by its name."""
    path, equals, weight = name.rpartition("=")
    if not equals or Path(name).exists():
        return name, 1.0
    try:
        value = float(weight)
    except ValueError:
        return name, 1.0
    if not 0 <= value <= 1000:
        raise FormatError(f"{name}: a weight is a number from 0 to 1000")
    return path, value


def share_cores(cores: int, device: str, passes: int) -> tuple[int, int]:
    """Return how many processes share the passes of a step, and how many threads each has."""
    processes = min(cores, passes) if device == "cpu" and can_fork() else 1
    return processes, cores // processes


def check_apart(documents: Sequence[Document], held: Sequence[Document]) -> None:
    """Refuse to measure on text that is trained on.

    Raises
    ------
    FormatError
        If a held-out document is among the documents, or most of its runs of `RUN` words are.
    """
    wanted: dict[tuple[str, ...], list[int]] = {}
    sizes = []
    for number, document in enumerate(held):
        runs = word_runs(plain_text(document))
        sizes.append(len(runs))
        for run in runs:
            wanted.setdefault(run, []).append(number)
    for document in documents:
        found = Counter(n for run in word_runs(plain_text(document)) for n in wanted.get(run, ()))
        for number, count in found.items():
            if 2 * count > sizes[number]:
                raise FormatError(f"the text to measure on is trained on: {plain_text(held[number])[:60]!r}")


def word_runs(text: str) -> set[tuple[str, ...]]:
    """Return all runs of `RUN` words, in small letters; of a shorter text all words are one."""
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + RUN]) for i in range(max(1, len(words) - RUN + 1))}


def hold_out(documents: list[Document], seed: int) -> tuple[list[Document], list[Document]]:
    """Keep whole documents back for measuring, chosen by the seed, or the end of the text if there are under ten.

    A document that occurs several times is held back with all its copies.
    """
    wanted = min(HELD_OUT * sum(len(plain_text(document)) for document in documents), HELD_OUT_BYTES)
    unique = list(dict.fromkeys(documents))
    if len(unique) < 10:
        cut = max(1, round(wanted))
        last = documents[-1]
        if not isinstance(last, str) or len(last) <= 2 * cut:
            raise FormatError("the corpus is too short to keep back a part of it for measuring")
        return [d[:-cut] if d == last else d for d in documents], [last[-cut:]]
    random.Random(seed).shuffle(unique)
    held: set[Document] = set()
    while wanted > 0:
        held.add(unique[-1])
        wanted -= len(plain_text(unique.pop()))
    return [d for d in documents if d not in held], [d for d in dict.fromkeys(documents) if d in held]


def compute_type(compute: str, device: str) -> torch.dtype:
    """Return the dtype of the matrix products."""
    if compute == "auto":
        native = torch.cuda.is_bf16_supported() if device.startswith("cuda") else has_bf16()
        compute = "bf16" if native else "float32"
    return {"bf16": torch.bfloat16, "float32": torch.float32}[compute]


def has_bf16() -> bool:
    """Tell whether this CPU multiplies bfloat16 natively."""
    support = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(support and support())


def make_model(project: Project, vocab_size: int, compute: torch.dtype) -> BitNet:
    """Make the model, random or grown from `project.start_from`."""
    wanted = {"vocab_size": vocab_size, **project.shape}
    if not project.start_from:
        return BitNet(BitNetShape(**wanted), compute, project.dropout, project.precision)
    source = read_model(project.start_from)
    # made anew, so that the random part of the model depends on the seed alone
    torch.manual_seed(project.schedule.seed)
    shape = BitNetShape(**{**asdict(source.shape), **wanted})
    model = BitNet(shape, compute, project.dropout, project.precision)
    grow(model, source)
    return model


def write_samples(path: Path, project: Project, tokenizer: Tokenizer, held: Sequence[Document]) -> None:
    """Let the finished file speak, through lowbit itself; the first words come from held-out text."""
    from ..loading.load import load

    model = load(project.output)
    room = model.config.context_length
    texts = []
    for i in range(project.samples):
        start = tokenizer.decode(tokenizer.encode(plain_text(held[i % len(held)]))[: min(8, room // 4)])
        made = model.generate(start, max_tokens=min(150, room // 2), temperature=0.7, seed=project.schedule.seed + i)
        texts.append(f"{start}|{made.text}")
    with Replacing(path) as file:
        file.write(("\n\n----\n\n".join(texts) + "\n").encode())
    say(f"{path}: {project.samples} samples")

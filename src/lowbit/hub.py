"""Models by name: ``hf:owner/name[:file]``, from the download cache of this machine or from the Hugging Face hub.

The cache is the one that huggingface_hub and what builds on it share, laid out as its documentation says: blobs under
the names of their checksums, and per commit a folder of links to them. It is read without that library, which is
imported when something has to be fetched. A file enters the cache when it is complete and its checksum is right, and
a commit becomes the current one when all that was asked of it is there. What the hub says is not trusted: names of
files must be harmless, commits and checksums must look like ones.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import LowbitError, RemoteError, one_line

PREFIX = "hf:"
PREFERENCE = (
    "TQ2_0", "I2_S", "TQ1_0", "Q2_0", "PQ2_0", "PTQ1_0", "Q1_0", "Q4_K_M", "Q4", "Q5", "Q6", "Q8", "IQ4", "MXFP4",
    "Q3", "IQ3", "Q2", "IQ2", "IQ1", "F16", "BF16", "F32",
)  # fmt: skip
"""Types of GGUF files, best first: what is ternary, then what is known to keep a model good in little memory. ``Q4``
stands for all types that begin so."""
LARGEST_BY_HTTP = 50 * 10**9
"""Larger files come by the hub's other protocol alone, which the library speaks, and does not resume."""

_NAME = re.compile(r"hf:([A-Za-z0-9][A-Za-z0-9._-]{0,95})/([A-Za-z0-9][A-Za-z0-9._-]{0,95})(?::(.+))?")
_TYPE = re.compile(r"(?:^|[-._])((?:[PS]?TQ|PQ|I?Q)[0-9](?:_[A-Z0-9_]+)?|I2_S|MXFP4(?:_MOE)?|BF16|F16|F32)(?=[-.])")
_PART = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})(\.gguf|\.safetensors)")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_BESIDE = frozenset(
    ("config.json", "generation_config.json", "model.safetensors.index.json", "tokenizer.json", "tokenizer.model",
     "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
)  # fmt: skip
"""Files of a model folder that are read beside the weights."""


@dataclass(frozen=True)
class Name:
    """A model as the user names it."""

    repository: str
    file: str | None

    def __str__(self) -> str:
        return f"{PREFIX}{self.repository}" + ("" if self.file is None else f":{self.file}")


@dataclass(frozen=True)
class Choice:
    """Files of a repository that make one model, weights last, and the one to open: ``.`` is their folder."""

    files: tuple[str, ...]
    opens: str


@dataclass(frozen=True)
class Here:
    """A model in the cache; `path` is None for the beginning of one."""

    name: str
    path: str | None
    bytes: int


def local_path(path: str | os.PathLike[str]) -> str:
    """Return the path of a model: `path` itself, or where the model that it names lies in the cache.

    Nobody is asked about a model that is in the cache; one that is not is fetched.

    Parameters
    ----------
    path : path
        A path, or ``hf:owner/name[:file]``.

    Raises
    ------
    RemoteError
        If the name is none, or the model is neither here nor to be had.
    """
    path = os.fsdecode(path)
    if not path.startswith(PREFIX):
        return path
    name = _parse(path)
    return _cached(name) or _fetched(name)


def pull(text: str) -> str:
    """Fetch the newest files of a model, as far as they are not here, and return the path to open.

    Parameters
    ----------
    text : str
        ``hf:owner/name`` or ``hf:owner/name:file``: see `choose`.

    Raises
    ------
    RemoteError
        If the name is none, the hub cannot be reached or refuses, or what it sends is not what it announced.
    """
    return _fetched(_parse(text))


def choose(names: Iterable[str], file: str | None = None) -> Choice | None:
    """Pick the files of a model among those of a repository; None if there are none.

    With `file`, that file, or else the GGUF file of that type (``Q4_K_M``). Without, the GGUF file whose type comes
    first in `PREFERENCE`; without any GGUF file, config.json with the safetensors and the tokenizer. The parts of a
    split file belong together. Projectors (``mmproj``) and importance matrices (``imatrix``) are no models.

    Raises
    ------
    RemoteError
        If several files fit equally well.
    """
    harmless = {name for name in names if _harmless(name)}
    if file is not None and file in harmless:
        return _with_parts(file, harmless)
    models = [name for name in sorted(harmless) if _is_gguf_model(name)]
    if file is not None:
        models = [name for name in models if _type_of(name) == file.upper()]
    if models:
        best = min(map(_rank, models))
        equal = [name for name in models if _rank(name) == best]
        if len(equal) > 1:
            raise RemoteError(f"has several files of that kind, name one: {', '.join(equal)}")
        return _with_parts(equal[0], harmless)
    weights = [name for name in sorted(harmless) if re.fullmatch(r"(?!consolidated)[^/]+\.safetensors", name)]
    if file is not None or "config.json" not in harmless or not weights:
        return None
    if any(_with_parts(name, harmless) is None for name in weights):
        return None
    return Choice((*sorted(_BESIDE & harmless), *weights), ".")


def cache_folder() -> Path:
    """Return the folder in which huggingface_hub keeps what it fetches, by the same environment variables."""
    get = os.environ.get
    home = get("HF_HOME") or os.path.join(get("XDG_CACHE_HOME") or os.path.join("~", ".cache"), "huggingface")
    folder = get("HF_HUB_CACHE") or get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")
    return Path(os.path.expandvars(os.path.expanduser(folder)))


def models_here() -> list[Here]:
    """Return the models in the cache, with the space that they take there."""
    found = []
    for folder in sorted(cache_folder().glob("models--*--*")):
        repository = folder.name.removeprefix("models--").replace("--", "/", 1)
        if _NAME.fullmatch(PREFIX + repository) is None:
            continue
        snapshot, names = _snapshot(folder)
        models = [name for name in names if _is_gguf_model(name)]
        files: list[str | None] = [*models] or [None]
        for file in files:
            choice = choose(names, file)
            if choice is not None:
                size = sum((snapshot / name).stat().st_size for name in choice.files)
                found.append(Here(str(Name(repository, file)), str(snapshot / choice.opens), size))
        if begun := sum(path.stat().st_size for path in folder.glob("blobs/*.incomplete")):
            found.append(Here(PREFIX + repository, None, begun))
    return found


def _parse(text: str) -> Name:
    match = _NAME.fullmatch(text)
    repository = match and f"{match[1]}/{match[2]}"
    if not match or not repository or "--" in repository or ".." in repository or repository.endswith((".", "-")):
        raise RemoteError(f"{text!r} does not name a model: hf:owner/name, or hf:owner/name:file")
    if match[3] is not None and not _harmless(match[3]):
        raise RemoteError(f"{text!r} names a file that no repository can have")
    return Name(repository, match[3])


def _harmless(name: str) -> bool:
    """Whether a path is relative, stays in its folder on every system, and can be shown."""
    return len(name) <= 512 and all(
        part
        and part[0] not in ". "
        and part[-1] not in ". "
        and part.isprintable()
        and not set(part) & set('\\:*?"<>|')
        for part in name.split("/")
    )


def _is_gguf_model(name: str) -> bool:
    """Whether a file, or the first of several that belong together, is a model in GGUF."""
    part = _PART.fullmatch(name)
    last = name.rpartition("/")[2].lower()
    return (
        last.endswith(".gguf") and "mmproj" not in last and "imatrix" not in last and (not part or part[2] == "00001")
    )


def _type_of(name: str) -> str:
    """The type in the name of a GGUF file, in capitals; empty if there is none."""
    part = _PART.fullmatch(name)
    stem = (part[1] + ".gguf" if part else name).rpartition("/")[2]
    found = _TYPE.findall(stem.upper())
    return found[-1] if found else ""


def _rank(name: str) -> tuple[int, str]:
    kind = _type_of(name)
    for i, preferred in enumerate(PREFERENCE):
        if kind.startswith(preferred):
            return i, kind
    return len(PREFERENCE), kind


def _with_parts(name: str, names: set[str]) -> Choice | None:
    """The file, and the others if it is one of several; None if they are not all there."""
    part = _PART.fullmatch(name)
    if part is None:
        return Choice((name,), name)
    count = int(part[3])
    parts = tuple(f"{part[1]}-{i + 1:05}-of-{count:05}{part[4]}" for i in range(min(count, 1 << 10)))
    return Choice(parts, parts[0]) if parts and names.issuperset(parts) else None


def _folder(repository: str) -> Path:
    return cache_folder() / f"models--{repository.replace('/', '--')}"


def _snapshot(folder: Path) -> tuple[Path, list[str]]:
    """The files of the current commit that are there, relative to the first of both."""
    try:
        commit = (folder / "refs" / "main").read_text("ascii").strip()
    except (OSError, ValueError):
        commit = ""
    snapshot = folder / "snapshots" / commit
    if not _COMMIT.fullmatch(commit):
        return snapshot, []
    files = (Path(at) / name for at, _, names in os.walk(snapshot) for name in names)
    return snapshot, sorted(path.relative_to(snapshot).as_posix() for path in files if path.is_file())


def _cached(name: Name) -> str | None:
    snapshot, names = _snapshot(_folder(name.repository))
    with _beginning_with(name):
        choice = choose(names, name.file)
    return None if choice is None else os.path.normpath(snapshot / choice.opens)


def _fetched(name: Name) -> str:
    try:
        import huggingface_hub as hub
        from huggingface_hub import constants, errors, utils  # noqa: F401 (of a package that imports lazily)
    except ImportError:
        if hint := _cached(name):
            hint = f" (a copy is here: {hint})"
        raise RemoteError(
            f"{name}: to fetch models needs huggingface_hub: pip install 'lowbit[hub]'{hint or ''}"
        ) from None
    if hub.constants.HF_HUB_OFFLINE:
        if path := _cached(name):
            return path
        raise RemoteError(
            f"{name}: is not in {cache_folder()}, and HF_HUB_OFFLINE forbids to fetch it; unset that, or copy the "
            f"folder {_folder(name.repository).name} from a machine that has it"
        )
    with _beginning_with(name), _answers(hub, name):
        info = hub.HfApi(library_name="lowbit").model_info(name.repository, files_metadata=True)
        listing = {file.rfilename: file for file in info.siblings or ()}
        choice = choose(listing, name.file)
        if choice is None:
            raise RemoteError(_nothing(listing, name.file))
        commit = info.sha or ""
        if not _COMMIT.fullmatch(commit):
            raise RemoteError(f"{hub.constants.ENDPOINT} names no commit, so it is no hub")
        download = _Download(hub, name.repository, commit)
        download.all([(file, listing[file]) for file in choice.files])
    return os.path.normpath(download.snapshot / choice.opens)


def _nothing(listing: Iterable[str], file: str | None) -> str:
    """Say why there is nothing to choose."""
    kinds = sorted({_type_of(name) or name for name in listing if _harmless(name) and _is_gguf_model(name)})
    if file is not None:
        return f"there is no such file, nor a complete GGUF file of such a type; there is {', '.join(kinds) or 'none'}"
    if any(name.endswith((".bin", ".pt", ".pth")) for name in listing):
        return "holds PyTorch pickles, which can run any code when they are read, and neither GGUF nor safetensors"
    return "holds neither a GGUF file nor config.json with safetensors, or only some parts of one"


class _Download:
    """Files of one commit on their way into the cache.

    Parameters
    ----------
    hub : module
        huggingface_hub.
    repository, commit : str
    """

    def __init__(self, hub: Any, repository: str, commit: str) -> None:
        self._hub, self._repository, self._commit = hub, repository, commit
        self._folder = _folder(repository)
        self._locks = cache_folder() / ".locks" / self._folder.name
        self.snapshot = self._folder / "snapshots" / commit

    def all(self, files: list[tuple[str, Any]]) -> None:
        """Fetch what is not here, and make the commit the current one."""
        wanted = []
        for name, entry in files:
            lfs = entry.lfs
            size, digest = (entry.size, entry.blob_id) if lfs is None else (lfs.size, lfs.sha256)
            if not isinstance(size, int) or size < 0 or not _DIGEST.fullmatch(str(digest)):
                raise RemoteError(f"the hub gives no size or no checksum of {name}")
            wanted.append((name, size, digest))
        self._check_space(sum(size - self._have(name, digest) for name, size, digest in wanted))
        for name, size, digest in wanted:
            if not (self.snapshot / name).exists():
                self._fetch(name, size, digest)
        current = self._folder / "refs" / "main"
        current.parent.mkdir(parents=True, exist_ok=True)
        written = current.with_name(f"main.{os.getpid()}")
        written.write_text(self._commit, "ascii")
        os.replace(written, current)

    def _have(self, name: str, digest: str) -> int:
        """Bytes of a file that need not be fetched any more."""
        blob = self._folder / "blobs" / digest
        for path in (self.snapshot / name, blob, _begun(blob)):
            if path.exists():
                return path.stat().st_size
        return 0

    def _check_space(self, needed: int) -> None:
        import shutil

        cache_folder().mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(cache_folder()).free
        if needed > free:
            raise RemoteError(
                f"{needed / 1e9:.2f} GB are to be fetched, and {cache_folder()} has {free / 1e9:.2f} GB free; "
                "HF_HOME names another folder"
            )

    def _fetch(self, name: str, size: int, digest: str) -> None:
        if size > LARGEST_BY_HTTP:
            path = self._hub.hf_hub_download(
                self._repository, name, revision=self._commit, cache_dir=cache_folder(), library_name="lowbit"
            )
            _verify(Path(path), name, size, digest)
            return
        blob, link = self._folder / "blobs" / digest, self.snapshot / name
        for folder in (blob.parent, link.parent, self._locks):
            folder.mkdir(parents=True, exist_ok=True)
        with self._hub.utils.WeakFileLock(self._locks / f"{digest}.lock"):  # the library's own lock of this blob
            if not blob.exists() and not link.exists():
                self._receive(name, size, digest, blob)
            if not link.exists():
                link.unlink(missing_ok=True)  # a link whose blob had been deleted
                try:
                    os.symlink(os.path.relpath(blob, link.parent), link)
                except OSError:  # Windows, for ordinary users
                    os.replace(blob, link)

    def _receive(self, name: str, size: int, digest: str, blob: Path) -> None:
        """Fetch a file, from where an earlier attempt ended, and give it its name if it is the right one."""
        from huggingface_hub.file_download import http_get

        begun = _begun(blob)
        if begun.exists() and begun.stat().st_size > size:
            begun.unlink()
        with open(begun, "ab") as file:
            http_get(
                self._hub.hf_hub_url(self._repository, name, revision=self._commit),
                file,
                resume_size=file.tell(),
                headers=self._hub.utils.build_hf_headers(library_name="lowbit"),
                expected_size=size,
                displayed_filename=name,
            )
        _verify(begun, name, size, digest)
        os.replace(begun, blob)


def _begun(blob: Path) -> Path:
    return blob.with_name(f"{blob.name}.incomplete")


def _verify(path: Path, name: str, size: int, digest: str) -> None:
    """Delete a file, and raise RemoteError, if it has another checksum: SHA-256, or Git's own of a small file."""
    import hashlib

    from tqdm import tqdm

    state = hashlib.sha256() if len(digest) == 64 else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with open(path, "rb") as file, tqdm(
        desc="checksum", total=size, unit="B", unit_scale=True, delay=1, disable=None, leave=False
    ) as bar:  # fmt: skip
        while chunk := file.read(1 << 20):
            state.update(chunk)
            bar.update(len(chunk))
    if state.hexdigest() != digest:
        os.unlink(os.path.realpath(path))
        path.unlink(missing_ok=True)
        raise RemoteError(f"{name} is damaged: its checksum is not the hub's. It is deleted; fetch it again")


@contextmanager
def _beginning_with(name: Name) -> Iterator[None]:
    try:
        yield
    except RemoteError as error:
        raise RemoteError(f"{name}: {error}") from None


@contextmanager
def _answers(hub: Any, name: Name) -> Iterator[None]:
    """Turn what goes wrong on the way into one error that says what to do."""
    errors, endpoint = hub.errors, hub.constants.ENDPOINT
    try:
        yield
    except LowbitError:
        raise
    except errors.GatedRepoError:
        raise RemoteError(
            f"its owner gives it to those who agree to its terms: do so at {endpoint}/{name.repository}, then "
            "`hf auth login`, or set HF_TOKEN"
        ) from None
    except errors.RepositoryNotFoundError:
        raise RemoteError(
            f"{endpoint} has no such model, or shows it to some only: then `hf auth login`, or set HF_TOKEN"
        ) from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        what = "refuses it: `hf auth login`, or set HF_TOKEN" if status in (401, 403) else f"answers {status}"
        raise RemoteError(f"{endpoint} {what} ({one_line(error.server_message or error)})") from None
    except Exception as error:  # of whatever library asks for it: requests, httpx
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
            what = f"{error.filename or cache_folder()}: {error.strerror}"
        else:
            reason = one_line(error) or type(error).__name__
            what = f"{endpoint} cannot be reached, or the connection ended ({reason})"
        raise RemoteError(f"{what}; what has been fetched stays, and the next attempt goes on from there") from None

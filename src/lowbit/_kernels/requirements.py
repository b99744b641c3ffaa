"""What this build, and the numpy beside it, ask of the CPU."""

import re

from .processor import lacks_sse42, missing


def wanting() -> str:
    """Return in a line what this CPU lacks; nothing if it has all."""
    if missing():
        return f"this build of lowbit needs a CPU with {' and '.join(missing())}, which this one lacks"
    if lacks_sse42() and (version := _numpy_with_sse42()):
        return f"numpy {version} needs a CPU with SSE4.2, which this one lacks: pip install 'numpy<2.4'"
    return ""


def _numpy_with_sse42() -> str:
    """Return the version of a numpy that ends the process on such a CPU, as its own wheels for x86-64 do since 2.4."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        numpy = distribution("numpy")
    except PackageNotFoundError:
        return ""
    release = [int(number) for number in re.findall(r"\d+", numpy.version)[:2]]
    own = re.search(r"-((many|musl)linux|macosx)\w+x86_64|-win_amd64", numpy.read_text("WHEEL") or "")
    return numpy.version if own and release >= [2, 4] else ""

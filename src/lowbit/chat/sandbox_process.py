"""The process in which a file's chat template runs; `lowbit.chat.sandbox` starts it. One JSON object in, one out."""

from __future__ import annotations

import json
import sys

MEMORY_BYTES = 512 << 20


def main() -> None:
    """Answer the request on standard input."""
    del sys.path[0]  # the folder of this file, which is no place to import from
    request = json.load(sys.stdin)
    try:
        answer = {"text": run(request)}
    except ImportError as error:
        answer = {"missing": one_line(error)}
    except Exception as error:
        answer = {"error": one_line(error)}
    sys.stdout.write(json.dumps(answer))


def run(request: dict) -> str:
    """Render the template, in pieces, up to the longest text allowed."""
    try:
        import jinja2
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise ImportError("it is not installed") from None
    if tuple(int(part) for part in jinja2.__version__.split(".")[:3]) < (3, 1, 6):
        raise ImportError(f"{jinja2.__version__} is installed")
    limit(request["max_seconds"])
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(str(message))

    values = request["values"]
    today = values.pop("today")
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: today
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    pieces, length = [], 0
    for piece in environment.from_string(request["template"]).generate(**values):
        length += len(piece)
        if length > request["max_output"]:
            raise ValueError(f"its text is longer than {request['max_output']} characters")
        pieces.append(piece)
    return "".join(pieces)


def limit(seconds: float) -> None:
    """Bound the memory and the processor time of this process, where the system can."""
    try:
        import resource
    except ImportError:  # not on Windows; there the parent's clock is the only bound
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    whole = int(seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (whole, whole))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


if __name__ == "__main__":
    main()

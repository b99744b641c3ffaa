"""The process in which a file's chat template runs; `lowbit.chat.sandbox` starts it. One JSON object in, one out."""

from __future__ import annotations

import json
import sys

from disguise import Disguise  # type: ignore[import-not-found]  # beside this file, which is run as a script

MEMORY_BYTES = 512 << 20


def main() -> None:
    """Answer the request on standard input."""
    sys.path.append(sys.path.pop(0))  # the folder of this file comes last
    request = json.load(sys.stdin)
    try:
        answer = run(request)
    except ImportError as error:
        answer = {"missing": in_words(error)}
    except Exception as error:
        answer = {"error": in_words(error)}
    sys.stdout.write(json.dumps(answer))


def run(request: dict) -> dict:
    """Render the template, in pieces, up to the longest text allowed; what was said comes out in disguise."""
    try:
        import jinja2
    except ImportError:
        raise ImportError("it is not installed") from None
    if tuple(int(part) for part in jinja2.__version__.split(".")[:3]) < (3, 1, 6):
        raise ImportError(f"{jinja2.__version__} is installed")
    limit(request["max_seconds"])
    from tracking import TrackingEnvironment  # type: ignore[import-not-found]

    disguise = Disguise(request["names"], request["template"])
    environment = TrackingEnvironment(disguise)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(str(message))

    values = request["values"]
    today = values.pop("today")
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: today
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    environment.track_filters()
    for message in values["messages"]:
        message["content"] = environment.said(message["content"])
    pieces, length = [], 0
    for piece in environment.from_string(request["template"]).generate(**values):
        length += len(piece)
        if length > request["max_output"]:
            raise ValueError(f"its text is longer than {request['max_output']} characters")
        pieces.append(getattr(piece, "_hidden", piece))
    return {"text": "".join(pieces), "disguise": disguise.dump()}


def limit(seconds: float) -> None:
    """Bound the memory and the processor time of this process, where the system can."""
    try:
        import resource
    except ImportError:  # not on Windows; there the parent's clock is the only bound
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    whole = int(seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (whole, whole + 1))  # at the first it is told why it ends
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def in_words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:1000]


if __name__ == "__main__":
    main()

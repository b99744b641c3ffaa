"""The process in which a file's chat template runs; `lowbit.chat.sandbox` starts it. One JSON object in, one out."""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Callable
from typing import Any

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
    today = datetime.date.fromisoformat(values.pop("today"))  # and no hours: a prompt is the same all day
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: today.strftime(str(form))
    # Llama 3 and firefunction ask for these.
    environment.globals.update(date_string=f"{today:%d %b %Y}", datetime=f"{today:%b %d %Y}", functions="")
    environment.filters["tojson"] = in_json
    environment.track_filters()
    own = {name: values.pop(name) for name in ("bos_token", "eos_token")}
    messages = [said(one, environment.said) | {"role": one["role"]} for one in values.pop("messages")]
    values = {name: said(value, environment.said) for name, value in values.items()} | own | {"messages": messages}
    pieces, length = [], 0
    for piece in environment.from_string(request["template"]).generate(**values):
        length += len(piece)
        if length > request["max_output"]:
            raise ValueError(f"its text is longer than {request['max_output']} characters")
        pieces.append(getattr(piece, "_hidden", piece))
    return {"text": "".join(pieces), "disguise": list(disguise.shown.items())}


def said(value: Any, mark: Callable[[str], str]) -> Any:
    """Mark all texts in a value as said, names in objects too."""
    if isinstance(value, str):
        return mark(value)
    if isinstance(value, list):
        return [said(one, mark) for one in value]
    if isinstance(value, dict):
        return {mark(key): said(one, mark) for key, one in value.items()}
    return value


def in_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Jinja's `tojson` as chat templates expect it: without the escapes that HTML needs."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


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

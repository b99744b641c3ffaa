"""A file's own chat template, run where it can do no harm: Jinja's immutable sandbox, in a process of its own.

The sandbox keeps a template from reaching Python's objects; the process bounds what the sandbox does not: time, memory
and the length of the text. Values go in and come out as JSON, so a template sees nothing but strings, lists and dicts.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import FormatError, UnsupportedModelError, one_line
from ..formats.files import out_of_memory
from .disguise import Disguise

MAX_SECONDS = 5.0
"""Of processor time; a usual template takes a fifth of a second, nearly all of it the start of the process."""
PATIENCE = 20.0
"""How many times as long a process may wait for a processor that others have; where the system cannot count processor
time, it has none of this."""
MAX_OUTPUT = 4 << 20
"""Characters of a rendered conversation."""
MAX_TEMPLATE = 1 << 20
"""Characters of a template; the longest published ones have some ten thousand."""

_CHILD = os.path.join(os.path.dirname(__file__), "sandbox_process.py")


def render_jinja(
    source: str,
    messages: Sequence[Mapping[str, Any]],
    bos: str,
    eos: str,
    seconds: float = MAX_SECONDS,
    disguise: Disguise | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    values: Mapping[str, Any] | None = None,
) -> str:
    """Render a conversation with a Jinja template that nobody vouches for.

    Parameters
    ----------
    source : str
        The template.
    messages : sequence of mappings
        What JSON can hold; all but the roles was said by somebody.
    bos, eos : str
        Values of ``bos_token`` and ``eos_token``.
    seconds : float
        Of processor time, after which the process is killed.
    disguise : Disguise, optional
        Takes the characters of the text that come from the contents of messages.
    tools : sequence of mappings, optional
        Value of ``tools``.
    values : mapping, optional
        Further values, such as ``enable_thinking``; ``today`` in place of the clock's, as ``2026-01-31``.

    Returns
    -------
    str
        With these characters in disguise, if there is one.

    Raises
    ------
    FormatError
        If the template is wrong, forbidden, too slow, or its text too long.
    UnsupportedModelError
        If jinja2 is missing or older than 3.1.6, whose sandbox can be left.
    """
    if len(source) > MAX_TEMPLATE:
        raise FormatError(f"the chat template has {len(source)} characters, limit {MAX_TEMPLATE}")
    request = {
        "template": source,
        "names": "" if disguise is None else disguise.names,
        "values": {
            "add_generation_prompt": True,
            "today": time.strftime("%Y-%m-%d"),
            **(values or {}),
            "messages": [dict(message) for message in messages],
            "bos_token": bos,
            "eos_token": eos,
            "tools": None if tools is None else [dict(tool) for tool in tools],
        },
        "max_output": MAX_OUTPUT,
        "max_seconds": seconds,
    }
    # Nothing of the environment but where Python finds its packages.
    environment = {k: v for k, v in os.environ.items() if k in ("PYTHONPATH", "PYTHONHOME", "SYSTEMROOT", "PATH")}
    try:
        child = subprocess.Popen(
            [sys.executable, "-B", _CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
    except OSError as error:
        raise out_of_memory(error) or UnsupportedModelError(
            f"the model's own chat template needs a process of its own, which cannot start ({error.strerror})"
        ) from error
    try:
        patience = PATIENCE if hasattr(signal, "SIGXCPU") else 1.0
        answer, _ = child.communicate(json.dumps(request).encode("ascii"), timeout=patience * seconds)
        too_long = patience > 1 and child.returncode == -signal.SIGXCPU
    except subprocess.TimeoutExpired:
        too_long = True
    finally:
        child.kill()
        child.communicate()
    if too_long:
        raise FormatError(f"the model's chat template took longer than {seconds:g} seconds")
    try:
        result = json.loads(answer)
    except ValueError:
        raise FormatError("the model's chat template ended its process; it asks for too much memory or time") from None
    if "missing" in result:
        raise UnsupportedModelError(
            f"the model's own chat template needs jinja2 3.1.6 or later; {one_line(result['missing'])}"
        )
    if "error" in result:
        raise FormatError(f"the model's chat template fails: {one_line(result['error'])}")
    text, said = str(result["text"]), Disguise("") if disguise is None else disguise
    said.load(result["disguise"])
    return said.show(text) if disguise is None else text

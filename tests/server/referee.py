"""Run the tests of llama.cpp's server against `lowbit serve`.

    python tests/server/referee.py LLAMA/tools/server/tests MODEL [--files test_basic.py ...] [--table TABLE.json]

LLAMA is an unpacked source of llama.cpp, such as that in the source distribution of llama-cpp-python 0.3.36; nothing of
it is changed or kept. MODEL is the model stories260K that these tests are made for. They run on a copy with

* a program in place of `llama-server` that maps its options to those of `lowbit serve`, gives llama.cpp's own choice
  where one is left out (pages of any origin may read, no metrics, the template chatml), and fails for what has no
  counterpart;
* a `conftest.py` that does not start servers with other models first;
* texts that depend on llama.cpp's random generator, and the build's name, compared for their form only: every
  `match_regex` asks for a text, and `system_fingerprint` may begin with any letter.

Everything else is asserted as it stands there.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree

FILES = (
    "test_basic.py", "test_chat_completion.py", "test_completion.py", "test_template.py", "test_compat_anthropic.py",
    "test_security.py", "test_metrics.py", "test_tool_call.py", "test_ctx_shift.py", "test_sleep.py",
    "test_tokenize.py", "test_compat_oai_responses.py", "test_slot_save.py", "test_ignore_eos.py", "test_embedding.py",
)  # fmt: skip

SHIM = """#!{python}
import os, sys

WITH_VALUE = {{
    "--port": "--port", "--temp": "--temperature", "--seed": "--seed", "--host": "--host", "--api-key": "--api-key",
    "--threads": "--threads", "--chat-template": "--chat-template", "--chat-template-file": "--chat-template",
    "--pooling": "--pooling", "--cors-origins": "--cors", "--batch-size": "--batch",
}}
RENAMED = {{"--no-slots": "--no-slots", "--no-ui": "--no-page", "--verbose": "--show-prompts"}}
IGNORED = {{"--ubatch-size": 1, "--hf-repo": 1, "--hf-file": 1, "--offline": 0, "--jinja": 0, "--no-jinja": 0,
           "--slots": 0, "--metrics": 0, "--cont-batching": 0, "--embedding": 0, "--kv-unified": 0, "-fa": 1,
           "--n-gpu-layers": 1, "--swa-full": 0, "--cache-ram": 1, "--backend_sampling": 0}}
out, words = [], sys.argv[1:]
unified = "--kv-unified" in words  # then each of several texts may fill the whole context
if "--metrics" not in words:
    out.append("--no-metrics")  # as llama.cpp has it
if "--cors-origins" not in words:
    words += ["--cors-origins", "*"]  # llama.cpp's own choice
context = parallel = None
while words:
    word = words.pop(0)
    if word == "--chat-template" and " " in words[0]:  # its text
        with open(__file__ + ".jinja", "w", encoding="utf-8") as file:
            file.write(words.pop(0))
        out += ["--chat-template", file.name]
    elif word in WITH_VALUE:
        out += [WITH_VALUE[word], words.pop(0)]
    elif word in RENAMED:
        out.append(RENAMED[word])
    elif word == "--reasoning":  # llama.cpp's `auto` asks a template for thoughts if it knows any
        out += ["--reasoning", "off" if words.pop(0) == "off" else "on"]
    elif word == "--tags":
        for tag in words.pop(0).split(","):
            out += ["--tag", tag]
    elif word in IGNORED:
        del words[: IGNORED[word]]
    elif word == "--alias":
        for name in sorted(words.pop(0).split(",")):
            out += ["--alias", name]
    elif word == "--ctx-size":
        context = int(words.pop(0))
    elif word == "--parallel":
        parallel = int(words.pop(0))
    elif word == "--n-predict":
        n = words.pop(0)
        out += [] if n == "-1" else ["-n", n]
    else:
        sys.exit(f"lowbit serve has nothing like {{word}}")
if parallel:
    out += ["--parallel", str(parallel)]
if "--chat-template" not in out:
    out += ["--chat-template", "chatml"]  # llama.cpp's where a model has none
if context:
    out += ["--context", str(min(context // (1 if unified else parallel or 1), {most}))]
os.execv({python!r}, [{python!r}, "-m", "lowbit", "serve", "-m", {model!r}, "--alias", "*", *out])
"""

CONFTEST = """import os
import pytest
from utils import *

@pytest.fixture(autouse=True)
def stop_server_after_each_test():
    yield
    for server in set(server_instances):
        server.stop()
"""


def prepare(tests: pathlib.Path, model: str, most: int, folder: pathlib.Path) -> pathlib.Path:
    """Copy the tests, and adapt what this file's docstring says."""
    copy = folder / "tools" / "server" / "tests"
    shutil.copytree(tests, copy)
    templates = tests.parents[2] / "models" / "templates"
    if templates.is_dir():
        shutil.copytree(templates, folder / "models" / "templates")
    (copy / "conftest.py").write_text(CONFTEST, "utf-8")
    (copy / "wget.py").write_text("", "utf-8")
    with open(copy / "utils.py", "a", encoding="utf-8") as utils:
        utils.write("\n\ndef match_regex(regex, text):\n    return isinstance(text, str)\n")
    for path in copy.glob("unit/*.py"):
        source = path.read_text("utf-8")
        for name in ('["system_fingerprint"]', ".system_fingerprint"):
            source = source.replace(f'{name}.startswith("b")', f'{name}.startswith("")')
        path.write_text(source, "utf-8")
    shim = folder / "llama-server"
    shim.write_text(SHIM.format(python=sys.executable, model=model, most=most), "utf-8")
    shim.chmod(0o755)
    return copy


def run(copy: pathlib.Path, name: str) -> list[dict[str, str]]:
    """Run one file; return what became of each case."""
    report = copy / f"{name}.xml"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "LLAMA_SERVER_BIN_PATH": str(copy.parents[2] / "llama-server"), "LOWBIT_API_KEY": "",
                   "PORT": str(port)}  # fmt: skip
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", f"--junitxml={report}",
         f"unit/{name}"], cwd=copy, env=environment, check=False, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    found = []
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        status, said = "passed", ""
        for child in case:
            if child.tag in ("failure", "error", "skipped"):
                status = "skipped" if child.tag == "skipped" else "failed"
                said = (child.get("message") or "").strip().splitlines()[0][:200] if child.get("message") else ""
        found.append({"case": case.get("name", ""), "status": status, "said": said})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tests", type=pathlib.Path, metavar="LLAMA/tools/server/tests")
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--files", nargs="+", default=FILES, metavar="NAME")
    parser.add_argument("--context", type=int, default=512, metavar="N", help="the model's context (default: 512)")
    parser.add_argument("--table", metavar="FILE", help="write what became of each case here, as JSON")
    args = parser.parse_args()
    table: dict[str, list[dict[str, str]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = os.path.abspath(args.model)
        copy = prepare(args.tests.resolve(), model, args.context, pathlib.Path(folder) / "llama")
        for name in args.files:
            table[name] = run(copy, name)
            counts = [sum(case["status"] == s for case in table[name]) for s in ("passed", "failed", "skipped")]
            print(f"{name:32} passed {counts[0]:3}  failed {counts[1]:3}  skipped {counts[2]:3}", flush=True)
            for case in table[name]:
                if case["status"] == "failed":
                    print(f"    {case['case']}: {case['said']}", flush=True)
            if args.table is not None:
                pathlib.Path(args.table).write_text(json.dumps(table, indent=1) + "\n", "utf-8")
    print(f"passed: {sum(case['status'] == 'passed' for cases in table.values() for case in cases)}")


if __name__ == "__main__":
    main()

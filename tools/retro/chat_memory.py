"""Say how much memory a chat with the 15M shape takes on this machine, and end with an error above 200 MB.

    python chat_memory.py [further options of lowbit chat, such as --kv-type int8]

The command is `lowbit chat` with room for 8192 tokens, and the conversation fills it; the model's weights are random.
The peak is the process's whole resident memory (VmHWM), Python and numpy in it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from models import random_model

LIMIT_MB = 200
CONTEXT = 8192
CHAT = """
import sys
from pathlib import Path
from lowbit.cli import main
status = main(sys.argv[1:])
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
print(peak.split()[1], file=sys.stderr)
sys.exit(status)
"""


def main() -> None:
    """Write the model, talk to it, and print the peak."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / random_model(Path(folder), "15M")
        options = ["--template", "plain", "--context", str(CONTEXT), "-n", "1000", "--temperature", "0"]
        options += sys.argv[1:]
        # None of these words is a token: a line is about a thousand bytes, each a token, and so long is each answer.
        lines = " ".join(f"w{i}" for i in range(200)) + "\n"
        done = subprocess.run(
            [sys.executable, "-c", CHAT, "chat", "-m", str(model), *options],
            input=lines * 5,
            capture_output=True,
            text=True,
        )
    if done.returncode:
        sys.exit(done.stderr.strip())
    peak = int(done.stderr.split()[-1]) / 1024
    print(f"a chat with the 15M shape and room for {CONTEXT} tokens: peak {peak:.0f} MB, limit {LIMIT_MB} MB")
    sys.exit(peak > LIMIT_MB)


if __name__ == "__main__":
    main()

"""Files of a model folder, none of which may lead out of it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from lowbit.errors import FormatError


def inside(folder: Path, name: str) -> Path:
    """Return the path of a file of a folder, whether or not there is one.

    Parameters
    ----------
    folder : Path
    name : str
        As a file names it that nobody vouches for.

    Raises
    ------
    FormatError
        If the name, or the link that it is, leads out of the folder.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}", name):
        raise FormatError(f"the file name {name[:80]!r} is none, or leads out of the folder")
    path = folder / name
    # Not Path.resolve: it raises RuntimeError for a link to itself, which is refused where it is opened.
    real, target = Path(os.path.realpath(folder)), Path(os.path.realpath(path))
    # The download cache keeps the files of all snapshots in one folder beside them, and links to these.
    cached = real.parent.name == "snapshots" and target.parent == real.parent.parent / "blobs"
    if target.parent != real and not cached:
        raise FormatError(f"{name} is a link that leads out of the folder")
    return path

"""Lets the tests of this folder import its builder of crafted files."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

"""Train a small ternary language model: text in, GGUF out. Needs the extra ``lowbit[train]`` (torch)."""

"""Show a text while it is made. The pieces are always whole characters, and together they are the whole text.

Usage: python examples/stream.py [MODEL]        (without a file: the embedded model)
"""

import sys

import lowbit

model = lowbit.load(*sys.argv[1:2])
for piece in model.stream("One day, a little cat", max_tokens=48, temperature=0, stop=("\n",)):
    print(piece, end="", flush=True)
print()

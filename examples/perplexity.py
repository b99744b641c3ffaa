"""Compare how well a model predicts two texts: fewer bits per byte is better.

Usage: python examples/perplexity.py [MODEL]    (without a file: the embedded model)
"""

import sys

import lowbit

model = lowbit.load(*sys.argv[1:2])
for text in ("Once upon a time there was a little girl.", "Girl little a was there time a upon once."):
    score = model.perplexity(text)
    print(f"{score.bits_per_byte:6.3f} bits/byte  {text}")

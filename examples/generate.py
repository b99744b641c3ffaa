"""Continue a text, and look at how fast that was.

Usage: python examples/generate.py [MODEL]      (without a file: the embedded model)
"""

import sys

import lowbit

model = lowbit.load(*sys.argv[1:2])
out = model.generate("Once upon a time", max_tokens=48, temperature=0.8, seed=1)

print(out.text)
print(f"{len(out.tokens)} tokens, {out.timings.decode_tps:.0f} per second, stopped by {out.finish_reason}")

"""One BLAS thread: the matrices of the oracle are small, and BLAS threads that wait for a busy core spin for longer."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read once, when numpy is first imported

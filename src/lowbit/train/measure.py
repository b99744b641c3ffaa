"""Bits per byte of a model on documents, each read on its own from the beginning-of-text token on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from .model import BitNet


@torch.no_grad()
def bits_per_byte(model: BitNet, documents: Sequence[np.ndarray], text_bytes: int, tokens_at_once: int = 8192) -> float:
    """Measure how well the model predicts.

    Parameters
    ----------
    model : evaluated as it stands, with its present quantisation
    documents : token ids of each document, beginning-of-text first. One longer than the context is continued in
        windows that overlap by half, and each token is scored once, with the longest context available.
    text_bytes : UTF-8 bytes of all documents together

    Returns
    -------
    float
        -log2 of the probability of all predicted tokens, per byte of text.
    """
    context = model.shape.context_length
    pieces: list[tuple[np.ndarray, int]] = []  # token ids, and how many targets at the start are already scored
    for ids in documents:
        ids = ids.astype(np.int64)
        pieces.append((ids[: context + 1], 0))
        for start in range(context // 2, max(len(ids) - 1 - context // 2, 0), context // 2):
            if len(ids) > start + 1 + context // 2 and start + context // 2 < len(ids) - 1:
                pieces.append((ids[start : start + context + 1], context // 2))
    pieces.sort(key=lambda piece: len(piece[0]))
    training, nats = model.training, 0.0
    model.eval()
    while pieces:
        longest = len(pieces[-1][0])
        count = max(1, tokens_at_once // longest)
        batch, pieces = pieces[-count:], pieces[:-count]
        tokens = np.zeros((len(batch), longest), np.int64)
        scored = np.zeros((len(batch), longest - 1), bool)
        for row, (ids, known) in enumerate(batch):
            tokens[row, : len(ids)] = ids
            scored[row, known : len(ids) - 1] = True
        device = model.cos.device
        inputs = torch.from_numpy(tokens).to(device)
        loss = functional.cross_entropy(model(inputs[:, :-1]).flatten(0, 1), inputs[:, 1:].flatten(), reduction="none")
        nats += loss.double()[torch.from_numpy(scored.reshape(-1)).to(device)].sum().item()
    model.train(training)
    return nats / math.log(2) / max(text_bytes, 1)

"""Model files to GGUF: the same weights, or smaller ones, chosen by how much the model suffers."""

from .convert import HEAD_TYPES, TARGET_TYPES, Conversion, convert

__all__ = ["HEAD_TYPES", "TARGET_TYPES", "Conversion", "convert"]

"""Lossless self-speculative decoding (SWIFT, arXiv 2410.06916) in JAX."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = '0.1.0'

# Where each public name lives. Looked up when used: importing the package loads
# neither transformers nor gpjax.
_PUBLIC = {
  'DecodeConfig': 'swift_jax.config',
  'DraftConfig': 'swift_jax.config',
  'Engine': 'swift_jax.engine',
  'InputError': 'swift_jax.errors',
  'Result': 'swift_jax.engine',
  'SamplingConfig': 'swift_jax.sampling_config',
  'SearchConfig': 'swift_jax.config',
  'SkipMask': 'swift_jax.skip_mask',
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
  if name not in _PUBLIC:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(importlib.import_module(_PUBLIC[name]), name)

"""Lossless self-speculative decoding (SWIFT, arXiv 2410.06916) in JAX."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # who checks types knows these names and no other
  from swift_jax.chat_template import Conversation as Conversation
  from swift_jax.config import DecodeConfig as DecodeConfig
  from swift_jax.config import DraftConfig as DraftConfig
  from swift_jax.config import ModelConfig as ModelConfig
  from swift_jax.config import SearchConfig as SearchConfig
  from swift_jax.engine import Engine as Engine
  from swift_jax.engine import Result as Result
  from swift_jax.errors import InputError as InputError
  from swift_jax.metrics import LogProbs as LogProbs
  from swift_jax.metrics import Metrics as Metrics
  from swift_jax.metrics import Round as Round
  from swift_jax.prompts import Prompt as Prompt
  from swift_jax.sampling_config import SamplingConfig as SamplingConfig
  from swift_jax.skip_mask import SkipMask as SkipMask

__version__ = '0.1.0'

# Where each public name lives. Looked up when used: importing the package loads
# neither transformers nor gpjax.
_PUBLIC = {
  'Conversation': 'swift_jax.chat_template',
  'DecodeConfig': 'swift_jax.config',
  'DraftConfig': 'swift_jax.config',
  'Engine': 'swift_jax.engine',
  'InputError': 'swift_jax.errors',
  'LogProbs': 'swift_jax.metrics',
  'Metrics': 'swift_jax.metrics',
  'ModelConfig': 'swift_jax.config',
  'Prompt': 'swift_jax.prompts',
  'Result': 'swift_jax.engine',
  'Round': 'swift_jax.metrics',
  'SamplingConfig': 'swift_jax.sampling_config',
  'SearchConfig': 'swift_jax.config',
  'SkipMask': 'swift_jax.skip_mask',
}
__all__ = sorted(_PUBLIC)


if not TYPE_CHECKING:

  def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
      raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(_PUBLIC[name]), name)

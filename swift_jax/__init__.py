"""Lossless self-speculative decoding (SWIFT, arXiv 2410.06916) in JAX."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from swift_jax.version import __version__ as __version__

if TYPE_CHECKING:  # who checks types knows these names and no other
  from swift_jax.config.sampling import SamplingConfig as SamplingConfig
  from swift_jax.config.settings import DecodeConfig as DecodeConfig
  from swift_jax.config.settings import DraftConfig as DraftConfig
  from swift_jax.config.settings import ModelConfig as ModelConfig
  from swift_jax.config.settings import SearchConfig as SearchConfig
  from swift_jax.errors import InputError as InputError
  from swift_jax.model.skip_mask import SkipMask as SkipMask
  from swift_jax.runtime.chat_template import Conversation as Conversation
  from swift_jax.runtime.engine import Engine as Engine
  from swift_jax.runtime.metrics import LogProbs as LogProbs
  from swift_jax.runtime.metrics import Metrics as Metrics
  from swift_jax.runtime.metrics import Round as Round
  from swift_jax.runtime.prompts import Prompt as Prompt
  from swift_jax.runtime.results import Result as Result

# Where each public name lives. Looked up when used: importing the package loads
# neither transformers nor gpjax.
_PUBLIC = {
  'Conversation': 'swift_jax.runtime.chat_template',
  'DecodeConfig': 'swift_jax.config.settings',
  'DraftConfig': 'swift_jax.config.settings',
  'Engine': 'swift_jax.runtime.engine',
  'InputError': 'swift_jax.errors',
  'LogProbs': 'swift_jax.runtime.metrics',
  'Metrics': 'swift_jax.runtime.metrics',
  'ModelConfig': 'swift_jax.config.settings',
  'Prompt': 'swift_jax.runtime.prompts',
  'Result': 'swift_jax.runtime.results',
  'Round': 'swift_jax.runtime.metrics',
  'SamplingConfig': 'swift_jax.config.sampling',
  'SearchConfig': 'swift_jax.config.settings',
  'SkipMask': 'swift_jax.model.skip_mask',
}
__all__ = sorted(_PUBLIC)


if not TYPE_CHECKING:

  def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
      raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(_PUBLIC[name]), name)

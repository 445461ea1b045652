"""The settings of rotary embeddings and the rules that make them valid."""

from __future__ import annotations

import dataclasses
import math

from swift_jax.config.checks import (
  require,
  require_bool,
  require_int,
  require_number,
)

ROPE_TYPES = ('default', 'linear', 'llama3', 'yarn')


@dataclasses.dataclass(frozen=True)
class RopeConfig:
  """Rotary embedding; names and meaning are Hugging Face's `rope_parameters`."""

  rope_type: str = 'default'
  rope_theta: float = 10000.0
  factor: float = 1.0
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  original_max_position_embeddings: int = 2048
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  attention_factor: float | None = None
  mscale: float | None = None
  mscale_all_dim: float | None = None
  truncate: bool = True

  def __post_init__(self) -> None:
    require(
      self.rope_type in ROPE_TYPES,
      'rope_parameters.rope_type',
      self.rope_type,
      f'one of {", ".join(ROPE_TYPES)}',
    )
    for name in (
      'rope_theta',
      'factor',
      'low_freq_factor',
      'high_freq_factor',
      'beta_fast',
      'beta_slow',
    ):
      value = getattr(self, name)
      require_number(f'rope_parameters.{name}', value, 0, math.inf)
      require(value > 0, f'rope_parameters.{name}', value, 'a number > 0')
    for name in ('attention_factor', 'mscale', 'mscale_all_dim'):
      value = getattr(self, name)
      if value is not None:
        require_number(f'rope_parameters.{name}', value, 0, math.inf)
    require_int(
      'rope_parameters.original_max_position_embeddings',
      self.original_max_position_embeddings,
      1,
    )
    require_bool('rope_parameters.truncate', self.truncate)
    # Both types would divide by zero for the values that are refused here.
    require(
      self.rope_type != 'llama3'
      or self.high_freq_factor > self.low_freq_factor,
      'rope_parameters.high_freq_factor',
      self.high_freq_factor,
      f'a number > low_freq_factor={self.low_freq_factor}',
    )
    require(
      self.rope_type != 'yarn' or self.rope_theta > 1,
      'rope_parameters.rope_theta',
      self.rope_theta,
      'a number > 1 for yarn',
    )

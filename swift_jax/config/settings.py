"""Frozen settings and what makes them valid. One dataclass, one fact a place.

Every error names the field as a user writes it and the value that came in.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from swift_jax.config.checks import (
  as_tuple,
  require,
  require_bool,
  require_int,
  require_number,
)
from swift_jax.config.sampling import SamplingConfig

if TYPE_CHECKING:
  import jax.numpy as jnp

DTYPES = ('bfloat16', 'float16', 'float32')
WEIGHTS = ('', 'int8')
ROPE_TYPES = ('default', 'linear', 'llama3', 'yarn')
ACTIVATIONS = ('silu', 'swish', 'gelu', 'gelu_new', 'gelu_pytorch_tanh', 'relu')
MAX_NGRAM = 8
METHODS = ('plain', 'swift', 'prompt_lookup')
SCORINGS = ('auto', 'vmap', 'map')
RECIPES = ('default', 'paper')


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
    # Both types divide by what is refused here.
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


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A `LlamaForCausalLM`'s shape; names and meaning are Hugging Face's.

  Attributes:
    weights: `int8`: projections are whole numbers and scales, see `quantised`;
      empty: of `dtype`, as all else.
  """

  vocab_size: int
  hidden_size: int
  intermediate_size: int
  num_hidden_layers: int
  num_attention_heads: int
  num_key_value_heads: int
  head_dim: int
  max_position_embeddings: int = 2048
  rms_norm_eps: float = 1e-6
  hidden_act: str = 'silu'
  tie_word_embeddings: bool = False
  attention_bias: bool = False
  mlp_bias: bool = False
  rope: RopeConfig = RopeConfig()
  dtype: str = 'float32'
  weights: str = ''

  def __post_init__(self) -> None:
    for name in (
      'vocab_size',
      'hidden_size',
      'intermediate_size',
      'num_hidden_layers',
      'num_attention_heads',
      'num_key_value_heads',
      'head_dim',
      'max_position_embeddings',
    ):
      require_int(name, getattr(self, name), 1)
    require(
      self.num_attention_heads % self.num_key_value_heads == 0,
      'num_key_value_heads',
      self.num_key_value_heads,
      f'a divisor of num_attention_heads={self.num_attention_heads}',
    )
    require(self.head_dim % 2 == 0, 'head_dim', self.head_dim, 'an even number')
    require_number('rms_norm_eps', self.rms_norm_eps, 0, 1)
    for name in ('tie_word_embeddings', 'attention_bias', 'mlp_bias'):
      require_bool(name, getattr(self, name))
    require(
      self.hidden_act in ACTIVATIONS,
      'hidden_act',
      self.hidden_act,
      f'one of {", ".join(ACTIVATIONS)}',
    )
    require(
      self.dtype in DTYPES, 'dtype', self.dtype, f'one of {", ".join(DTYPES)}'
    )
    require(self.weights in WEIGHTS, 'weights', self.weights, "'' or 'int8'")

  @property
  def jax_dtype(self) -> jnp.dtype:
    import jax.numpy as jnp  # settings alone, --help for one, do without jax

    return jnp.dtype(self.dtype)


@dataclasses.dataclass(frozen=True)
class DraftConfig:
  """How a block is drafted; the paper's names and values.

  Attributes:
    max_draft_length: tokens drafted at most in a round (the paper's 25).
    confidence_threshold: drafting stops after a token whose confidence is
      below this (0.8).
    tree: add the top-k alternatives at each depth as leaves beside the chain.
    tree_widths: k, the chain's token included, by confidence: `tree_widths[i]`
      holds up to `tree_bounds[i]`, the last one above the last bound.
    tree_bounds: confidences at which k changes.
    verify_widths: token counts that verify is compiled for; the smallest that
      holds the tree is used, and leaves that the largest cannot hold are
      dropped, the least likely first.
    lookup_length: tokens that the method prompt_lookup copies at most
      (Spec-Bench's 10), as far as the largest verify width holds them.
    lookup_ngram: tokens that it compares at most to find a place to copy from
      (Spec-Bench's 3).
    adaptive: choose in each round what drafts (layers, a copy from the text as
      prompt lookup makes it, nothing) and how many tokens, leaves among them, by
      what was accepted lately and what passes cost, which is measured. Without it
      every round drafts by layers, by the thresholds and widths above, as SWIFT
      does.
    copy: whether that choice has copies in it.
  """

  max_draft_length: int = 25
  confidence_threshold: float = 0.8
  tree: bool = True
  tree_widths: tuple[int, ...] = (10, 5, 3, 1)
  tree_bounds: tuple[float, ...] = (0.5, 0.8, 0.95)
  verify_widths: tuple[int, ...] = (4, 8, 16, 32)
  lookup_length: int = 10
  lookup_ngram: int = 3
  adaptive: bool = True
  copy: bool = True

  def __post_init__(self) -> None:
    for name in ('tree_widths', 'tree_bounds', 'verify_widths'):
      as_tuple(self, 'draft', name)
    for name in ('max_draft_length', 'lookup_length', 'lookup_ngram'):
      require_int(f'draft.{name}', getattr(self, name), 1)
    require(
      self.lookup_ngram <= MAX_NGRAM,
      'draft.lookup_ngram',
      self.lookup_ngram,
      f'an integer <= {MAX_NGRAM}',
    )
    require_number(
      'draft.confidence_threshold', self.confidence_threshold, 0, 1
    )
    for name in ('tree', 'adaptive', 'copy'):
      require_bool(f'draft.{name}', getattr(self, name))
    for width in self.tree_widths:
      require_int('draft.tree_widths', width, 1)
    for bound in self.tree_bounds:
      require_number('draft.tree_bounds', bound, 0, 1)
    require(
      list(self.tree_bounds) == sorted(set(self.tree_bounds)),
      'draft.tree_bounds',
      self.tree_bounds,
      'increasing confidences',
    )
    require(
      len(self.tree_widths) == len(self.tree_bounds) + 1,
      'draft.tree_widths',
      self.tree_widths,
      f'{len(self.tree_bounds) + 1} widths for {len(self.tree_bounds)}'
      ' tree_bounds',
    )
    for width in self.verify_widths:
      require_int('draft.verify_widths', width, 1)
    require(
      bool(self.verify_widths)
      and list(self.verify_widths) == sorted(set(self.verify_widths)),
      'draft.verify_widths',
      self.verify_widths,
      'increasing widths',
    )
    require(
      self.verify_widths[-1] > self.max_draft_length,
      'draft.verify_widths',
      self.verify_widths,
      f'a width above draft.max_draft_length={self.max_draft_length}',
    )


@dataclasses.dataclass(frozen=True)
class SearchConfig:
  """The search for a skip mask while text is generated.

  Attributes:
    enabled: search at all; without it the start drafts throughout.
    skip_ratio: share of the 2(L-2) sublayers that a mask skips (0.45).
    context_window: most recent generated tokens that candidates are scored on.
    num_candidates: masks scored in one pass, the incumbent among them.
    scoring: `vmap` (all masks in one pass, every sublayer computed), `map` (a
      pass a mask, skipped sublayers left out) or `auto`: the quicker of the two,
      measured when it is first needed.
    importance: begin with what a derivative says of each sublayer, once a stream.
    opt_interval: rounds from one scoring pass to the next.
    time_budget: share of the wall time so far that the search may take, so that
      a short text does not pay for a long search; 1: no limit.
    bayes_interval: every how many scoring passes the candidates come from a
      Gaussian process (the paper's 25; 1: always; 0: never, without gpjax). It
      starts once the budget allows the seconds that it takes to compile.
    max_iterations: scoring passes after which the search stops (1000).
    patience: masks scored without a better one after which it stops (300).
    target_matchness: it stops once the incumbent scores above this, an error
      bar below included.
    restart: search again when the acceptance falls lastingly.
    recipe: `default`, or `paper`: the official code's, with one mask a pass, the
      window at the start of each text, and a suggestion every 25th pass, whatever
      `num_candidates` and `bayes_interval` are; `importance` and `restart` are
      ours alone.
    cache: JSON file with skip sets to start from; `published` names the ones
      that come with the package. A run that starts from a set does not search
      until the stream has changed.
    cache_name: which set of that file, where it holds several; the name under
      which `save` writes, where it is empty `default`.
    save: JSON file that the set that was found is written to, for this model,
      unless another run has left one of this ratio there with a higher score.
    record: JSON Lines file with a line for each scoring pass.
    seed: seed of the random candidates.
  """

  enabled: bool = True
  skip_ratio: float = 0.45
  context_window: int = 50
  num_candidates: int = 8
  scoring: str = 'auto'
  importance: bool = True
  opt_interval: int = 1
  time_budget: float = 0.1
  bayes_interval: int = 1
  max_iterations: int = 1000
  patience: int = 300
  target_matchness: float = 0.93
  restart: bool = True
  recipe: str = 'default'
  cache: str = ''
  cache_name: str = ''
  save: str = ''
  record: str = ''
  seed: int = 0

  def __post_init__(self) -> None:
    for name in ('enabled', 'importance', 'restart'):
      require_bool(f'search.{name}', getattr(self, name))
    require(
      self.recipe in RECIPES,
      'search.recipe',
      self.recipe,
      f'one of {", ".join(RECIPES)}',
    )
    require_number('search.skip_ratio', self.skip_ratio, 0, 1)
    require_number('search.target_matchness', self.target_matchness, 0, 1)
    require_int('search.context_window', self.context_window, 1)
    require_int('search.num_candidates', self.num_candidates, 2)
    require(
      self.scoring in SCORINGS,
      'search.scoring',
      self.scoring,
      f'one of {", ".join(SCORINGS)}',
    )
    require_int('search.opt_interval', self.opt_interval, 1)
    require_number('search.time_budget', self.time_budget, 0, 1)
    require_int('search.bayes_interval', self.bayes_interval, 0)
    require_int('search.max_iterations', self.max_iterations, 0)
    require_int('search.patience', self.patience, 1)
    require_int('search.seed', self.seed, 0)
    for name in ('cache', 'cache_name', 'save', 'record'):
      value = getattr(self, name)
      require(isinstance(value, str), f'search.{name}', value, 'a string')


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """The devices that hold one copy of the model.

  Attributes:
    data: parts of the batch.
    tensor: parts of each weight and of the cache's heads.
    across_processes: one mesh over the devices of all processes, which then go in
      step; without it each process has a mesh of its own devices, a model of its
      own, and prompts of its own.
  """

  data: int = 1
  tensor: int = 1
  across_processes: bool = False

  def __post_init__(self) -> None:
    for name in ('data', 'tensor'):
      require_int(f'mesh.{name}', getattr(self, name), 1)
    require_bool('mesh.across_processes', self.across_processes)


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
  """What one call of generate does.

  Attributes:
    method: `plain` (a token a pass), `swift` (draft and verify) or
      `prompt_lookup` (verify what followed the last tokens before).
    ignore_eos: write on past the end-of-text tokens.
    batch_size: prompts decoded together.
    prefill_chunk: prompt tokens a prefill pass takes.
    rounds_per_dispatch: rounds run on the device before the host looks.
    phase_interval: every how many dispatches a round is run in two halves, so that
      drafting and verifying are timed apart; 0: never.
    sampling: how tokens are chosen and when a text ends.
  """

  method: str = 'swift'
  ignore_eos: bool = False
  batch_size: int = 1
  prefill_chunk: int = 64
  rounds_per_dispatch: int = 4
  phase_interval: int = 0
  sampling: SamplingConfig = SamplingConfig()

  def __post_init__(self) -> None:
    require(
      self.method in METHODS,
      'decode.method',
      self.method,
      f'one of {", ".join(METHODS)}',
    )
    require_bool('decode.ignore_eos', self.ignore_eos)
    require_int('decode.batch_size', self.batch_size, 1)
    require_int('decode.prefill_chunk', self.prefill_chunk, 1)
    require_int('decode.rounds_per_dispatch', self.rounds_per_dispatch, 1)
    require_int('decode.phase_interval', self.phase_interval, 0)
    ok = isinstance(self.sampling, SamplingConfig)
    require(ok, 'decode.sampling', self.sampling, 'a SamplingConfig')

"""Frozen settings and the rules that make them valid.

Each default stands here and nowhere else. Every error names the field as a user
writes it, and the value that came in.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from swift_jax.config.checks import (
  as_tuple,
  require,
  require_bool,
  require_int,
  require_number,
)
from swift_jax.config.rope import RopeConfig
from swift_jax.config.sampling import SamplingConfig

if TYPE_CHECKING:
  import jax.numpy as jnp

DTYPES = ('bfloat16', 'float16', 'float32')
WEIGHTS = ('', 'int8')
ACTIVATIONS = ('silu', 'swish', 'gelu', 'gelu_new', 'gelu_pytorch_tanh', 'relu')
MAX_NGRAM = 8
METHODS = ('plain', 'swift', 'prompt_lookup')
SCORINGS = ('auto', 'vmap', 'map')
RECIPES = ('default', 'paper')


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """The shape of a `LlamaForCausalLM`; names and meaning are Hugging Face's.

  Attributes:
    weights: `int8`: the projections are stored as whole numbers and scales, see
      `quantised`; empty: they have the type `dtype`, like all other parameters.
    kv_copies, vocab_padding: set for a mesh, see `checkpoint.fitting`.
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
  kv_copies: int = 1
  vocab_padding: int = 0

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
      'kv_copies',
    ):
      require_int(name, getattr(self, name), 1)
    require_int('vocab_padding', self.vocab_padding, 0)
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
  def kv_heads(self) -> int:
    """Key/value heads that are held and cached, copies included."""
    return self.num_key_value_heads * self.kv_copies

  @property
  def vocab_rows(self) -> int:
    """Rows of embedding and head, padding included."""
    return self.vocab_size + self.vocab_padding

  @property
  def jax_dtype(self) -> jnp.dtype:
    import jax.numpy as jnp  # --help needs the settings, but not jax

    return jnp.dtype(self.dtype)


@dataclasses.dataclass(frozen=True)
class DraftConfig:
  """How the tokens of a round are drafted; the paper's names and values.

  Attributes:
    max_draft_length: the most tokens drafted in a round (the paper's 25).
    confidence_threshold: drafting stops after a token below this confidence (0.8).
    tree: add the top-k alternatives at each depth as leaves beside the chain.
    tree_widths: k for each range of confidence, the chain's token included.
      `tree_widths[i]` holds up to the confidence `tree_bounds[i]`, the last width
      above the last bound.
    tree_bounds: the confidences at which k changes.
    verify_widths: token counts for which verify is compiled; the smallest width
      that holds the tree is used. Leaves that do not fit the largest width are
      dropped, the least likely first.
    lookup_length: the most tokens that prompt_lookup copies (Spec-Bench's 10). The
      largest verify width limits them too.
    lookup_ngram: the most tokens that prompt_lookup compares (Spec-Bench's 3). It
      compares them to find a place to copy from.
    adaptive: choose for each round what drafts and how many tokens it drafts. The
      draft comes from the layers, from a copy of earlier text (as prompt lookup
      makes it), or there is none. The number of tokens includes the leaves. The
      choice weighs what was accepted lately against the measured cost of passes.
      Without it every round drafts with the layers, by the thresholds and widths
      above, as SWIFT does.
    copy: whether the adaptive choice may draft by copies.
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
    enabled: search at all; without it the first mask drafts to the end.
    skip_ratio: share of the 2(L-2) free sublayers that a mask skips (0.45).
    context_window: newest generated tokens on which candidates are scored.
    num_candidates: masks scored in one pass, the incumbent among them.
    scoring: `vmap`, `map` or `auto`, the quicker of the two. `vmap` scores all
      masks in one pass and computes every sublayer; `map` makes one pass for each
      mask and leaves out the skipped sublayers. `auto` measures both when a score
      is first needed.
    importance: begin with a derivative's estimate of each sublayer, once a stream.
    opt_interval: rounds from one scoring pass to the next.
    time_budget: share of the wall time so far that the search may take; 1: no limit.
      So a short text does not pay for a long search.
    bayes_interval: a Gaussian process suggests every so many passes; 0: never. The
      paper's value is 25; 1 means at every scoring pass. 0 does without gpjax. The
      process starts once the budget allows the seconds that its compilation takes.
    max_iterations: scoring passes after which the search stops (1000).
    patience: masks in a row without a better one that end the search (300).
    target_matchness: the search stops once the incumbent scores above this. The
      lower end of the score's error bar counts.
    restart: search again when the acceptance falls lastingly.
    recipe: `default`, or `paper` for the official code's search. The paper's search
      scores one mask a pass, takes the window at the start of each text, and gets
      a suggestion every 25th pass, whatever `num_candidates` and `bayes_interval`
      are. `importance` and `restart` belong to the default search alone.
    cache: JSON file with skip sets to start from; or `published`. `published` names
      the sets that come with the package. A run that starts from a set does not
      search until the stream has changed.
    cache_name: which set of the cache, if it holds several. `save` writes its set
      under this name too, and under `default` if the name is empty.
    save: JSON file to which the found set of this model is written. A set of the
      same ratio and a higher score that another run has left there stays.
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
    data: parts into which the batch is split.
    tensor: parts into which each weight and the cache's heads are split.
    across_processes: one mesh over the devices of all processes, all in step.
      Without it each process has its own mesh, copy of the model and prompts.
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
  """The settings of one call of `generate`.

  Attributes:
    method: `plain` (a token a pass), `swift` (draft and verify), `prompt_lookup`
      (find the text's last tokens earlier in the text, and verify the tokens that
      followed them there).
    ignore_eos: write on past the end-of-text tokens.
    batch_size: prompts decoded together.
    prefill_chunk: prompt tokens that one prefill pass takes.
    rounds_per_dispatch: rounds run on the device before the host looks.
    phase_interval: every so many dispatches a round runs in two halves; 0: never.
      So drafting and verifying are timed apart.
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

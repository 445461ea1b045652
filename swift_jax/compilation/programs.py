"""The programs of a run, lowered from shapes for devices that need not be there."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools
import math
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from swift_jax.checkpoint import fitting
from swift_jax.compilation.targets import Machine
from swift_jax.config.settings import (
  DecodeConfig,
  DraftConfig,
  MeshConfig,
  ModelConfig,
  SearchConfig,
)
from swift_jax.decoding import drafting, logprobs, policy, rounds, sampling
from swift_jax.decoding.drafting import DraftShapes
from swift_jax.decoding.state import DecodeState
from swift_jax.errors import InputError
from swift_jax.model import kv_cache, llama
from swift_jax.model import skip_mask as skip_masks
from swift_jax.model.kv_cache import KVCache
from swift_jax.model.skip_mask import KnownMask
from swift_jax.parallel import sharding
from swift_jax.parallel.target import Target
from swift_jax.search import matchness

NAMES = (
  'start',
  'prefill',
  'plain',
  'rounds',
  'published',
  'known',
  'score',
  'score_map',
  'importance',
  'logprobs',
)


class Program(NamedTuple):
  """A program of a run.

  Attributes:
    name: one of `NAMES`.
    lower: traces it; its result compiles.
    logits: bytes of logits that it must hold at once on a device.
    beside: bytes on a device that a run holds while it runs, beside its arguments.
  """

  name: str
  lower: Callable[[], jax.stages.Lowered]
  logits: int = 0
  beside: int = 0


@dataclasses.dataclass(frozen=True)
class Run:
  """What is to run, and where.

  Attributes:
    cfg: the model's shape.
    machine: its devices.
    mesh: how many of them, and how they are used.
    context: tokens of the longest text, its prompt's included.
    draft, search: as in a run.
    decode: its sampling is resolved.
  """

  cfg: ModelConfig
  machine: Machine
  mesh: MeshConfig
  context: int
  draft: DraftConfig
  search: SearchConfig
  decode: DecodeConfig


class Shapes:
  """The shapes and places of all that a run's programs take.

  Attributes:
    run: what is to run.
    mesh: devices of the target; None: the one device of this machine.
    target: decides what runs behind gates, and the cache's capacity.
    params: weights.
    cache: keys and values.
    draft: what the rounds are compiled for.
  """

  def __init__(self, run: Run):
    """Nothing is compiled yet.

    Raises:
      InputError: the model does not fit the mesh, or the mesh the target.
    """
    self.mesh = _mesh(run)
    cfg = fitting.fitted(run.cfg, self.mesh)
    self.run = dataclasses.replace(run, cfg=cfg)
    sharding.check_mesh(cfg, self.mesh)
    sharding.check_batch(run.decode.batch_size, self.mesh)
    graphdef, params = llama.abstract_model(cfg, run.machine.platform)
    params = nnx.to_pure_dict(params)
    places = sharding.param_shardings(params, self.mesh)
    self.params = jax.tree.map(_like, params, places)
    self.target = Target(cfg, graphdef, self.params, self.mesh)
    self.draft, self._settings = drafting.split_config(
      run.draft, cfg.vocab_size
    )
    self.draft = self.draft._replace(samples=run.decode.sampling.samples)
    needed = run.context + self.draft.max_width + 1
    self.target.reserve(needed, run.decode.batch_size)
    stacked = llama.has_stack(self.params)
    self.cache = self.cache_of(cfg.num_hidden_layers, stacked)

  def cache_of(self, num_layers: int, stacked: bool = False) -> KVCache:
    """A cache of some layers, of as many slots as the run's."""
    cfg, batch = self.run.cfg, self.run.decode.batch_size
    size = batch, cfg.kv_heads, self.target.capacity, cfg.head_dim
    empty = functools.partial(
      kv_cache.empty,
      num_layers,
      *size,
      dtype=cfg.jax_dtype,
      stacked=stacked,
      mesh=self.mesh,
    )
    cache = jax.eval_shape(empty)
    places = sharding.cache_shardings(self.mesh, stacked)

    def placed(slots: Any) -> Any:
      return jax.tree.map(lambda leaf: _like(leaf, places.k), slots)

    return KVCache(
      placed(cache.k),
      placed(cache.v),
      _like(cache.length, places.length),
      self.mesh,
    )

  def whole(self, tree: Any) -> Any:
    """Arrays that every device has, as shapes."""
    place = sharding.replicated(self.mesh)
    return jax.tree.map(lambda leaf: _like(leaf, place), tree)

  def rows(self, *shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
    """An array whose first axis is the batch."""
    struct = jax.ShapeDtypeStruct(shape, dtype)
    return _like(struct, sharding.rows(self.mesh))

  @property
  def parts(self) -> dict[str, int]:
    """Bytes of weights and of cache on a device, without padding."""
    return {
      'weights': bytes_on_one(self.params),
      'cache': bytes_on_one((self.cache.k, self.cache.v)),
    }

  def logits(self, tokens: int) -> int:
    """Bytes on a device of float32 logits of so many tokens a row."""
    shape = self.mesh.shape if self.mesh else {'data': 1, 'tensor': 1}
    rows = self.run.decode.batch_size // shape['data']
    return 4 * tokens * rows * self.run.cfg.vocab_rows // shape['tensor']

  @property
  def names(self) -> list[str]:
    """The names of the run's programs, in their order."""
    left_out = {'known'} if self.target.drafts_stay_gated else set()
    if self.run.decode.sampling.logprobs is None:
      left_out.add('logprobs')
    return [name for name in NAMES if name not in left_out]

  def programs(self) -> list[Program]:
    """Those of a run, in the order in which it needs them."""
    run, target = self.run, self.target
    batch, slots = run.decode.batch_size, target.capacity
    number = self.whole(np.int32(0))
    rows = self.rows(batch)
    begin = functools.partial(
      rounds.start.lower,
      self.cache,
      self.rows(batch, slots),
      rows,
      rows,
      self.whole(np.uint32(0)),
      self.rows(batch, dtype=jnp.uint32),
      self.whole(policy.start()),
      num_widths=len(self.draft.verify_widths),
      mesh=self.mesh,
    )
    state = self._state(begin)
    model = target.graphdef, self.params
    none_skipped = self.whole(target.none_skipped)
    settings = self.whole(self._settings)
    drawn = self.whole(sampling.from_config(run.decode.sampling, ()))
    layers, chunk = run.cfg.num_hidden_layers, run.decode.prefill_chunk
    mask = skip_masks.uniform(layers, run.search.skip_ratio)

    def a_round(gated: Any, shapes: DraftShapes) -> Callable[[], Any]:
      rest = none_skipped, settings, drawn, number, shapes
      return lambda: rounds.speculative_rounds.lower(
        *model, state, gated, *rest
      )

    wide = self.logits(self.draft.max_width)
    adaptive = self.draft._replace(adaptive=True)
    gated = self.whole(mask)
    programs = [
      Program('start', begin),
      Program(
        'prefill',
        lambda: rounds.prefill.lower(
          *model, state, none_skipped, number, chunk
        ),
      ),
      Program(
        'plain',
        lambda: rounds.plain_steps.lower(
          *model, state, none_skipped, drawn, number, self.draft.samples
        ),
        self.logits(1),
      ),
      Program('rounds', a_round(gated, adaptive), wide),
      Program(
        'published', a_round(gated, self.draft._replace(adaptive=False)), wide
      ),
    ]
    if not target.drafts_stay_gated:
      # It is compiled and timed on a text of its own beside the one that is written.
      beside = bytes_on_one(state)
      known = a_round(KnownMask.of(mask), adaptive)
      programs.append(Program('known', known, wide, beside))
    programs += self._search(model, state)
    if run.decode.sampling.logprobs is not None:
      programs.append(self._logprobs(model, state, none_skipped, number))
    return programs

  def _state(self, begin: Callable[[], Any]) -> DecodeState:
    """A batch's state, where the first program puts it."""
    lowered = begin()
    places = lowered.compile().output_shardings
    state: DecodeState = jax.tree.map(_like, lowered.out_info, places)
    return state

  def _search(self, model: Any, state: DecodeState) -> list[Program]:
    """Scoring, both ways, and the derivative."""
    search = self.run.search
    window, count = search.context_window, search.num_candidates
    text = matchness.Text(
      state.cache, state.tokens, state.target, state.prompt_length
    )
    free = skip_masks.num_free(self.run.cfg.num_hidden_layers)
    bits = np.zeros((count, free), bool)
    masks = self.whole(skip_masks.from_bits(bits))
    score = functools.partial(
      matchness.score.lower, *model, text, masks, window
    )
    ratio = self.whole(np.float32(0))
    batch = self.run.decode.batch_size
    logits = self.logits(matchness.positions_at_once(batch, window))
    return [
      Program('score', lambda: score(True), logits),
      Program('score_map', lambda: score(False), logits),
      Program(
        'importance',
        lambda: matchness.sensitivities.lower(*model, text, ratio, window),
        logits,
      ),
    ]

  def _logprobs(
    self, model: Any, state: DecodeState, none_skipped: Any, number: Any
  ) -> Program:
    decode = self.run.decode
    chunk = min(decode.prefill_chunk, logprobs.WIDEST, self.target.capacity)
    text = state.cache, state.tokens, state.prompt_length
    rest = none_skipped, number, chunk, decode.sampling.logprobs, self.mesh
    return Program(
      'logprobs',
      lambda: logprobs.force.lower(*model, *text, *rest),
      self.logits(chunk),
    )


def _mesh(run: Run) -> jax.sharding.Mesh | None:
  """The first devices of the target, as a mesh."""
  data, tensor = run.mesh.data, run.mesh.tensor
  wanted, devices = data * tensor, run.machine.devices
  if wanted > len(devices):
    raise InputError(
      f'mesh.data={data}, mesh.tensor={tensor}: {wanted} devices wanted,'
      f' {len(devices)} in {run.machine.name}'
    )
  if run.machine.platform == 'cpu' and wanted == 1:
    return None  # as a run has it
  return sharding.mesh_of(devices[:wanted], data, tensor)


def _like(leaf: Any, place: Any) -> jax.ShapeDtypeStruct:
  shape, dtype = jnp.shape(leaf), jnp.result_type(leaf)
  return jax.ShapeDtypeStruct(shape, dtype, sharding=place)


def bytes_on_one(tree: Any) -> int:
  """Bytes of a tree of placed shapes that lie on one device, without padding."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )

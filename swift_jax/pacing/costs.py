"""The costs of passes on this machine, in plain steps: measured once, then corrected.

The measurement runs the programs that decode, on a text that half fills the cache: the
number of rounds, the source and the number of tokens are traced. The figures are kept
in the user's cache folder, under a hash of all that they depend on except the
machine's load. Delete `costs` there to have them measured again. While text is
written, the clock corrects the figures for this process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import platform
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from swift_jax.checkpoint import hub
from swift_jax.config.checks import require_number
from swift_jax.config.sampling import SamplingConfig
from swift_jax.decoding import policy, rounds, sampling
from swift_jax.decoding.drafting import DraftSettings, DraftShapes
from swift_jax.decoding.state import DecodeState
from swift_jax.errors import InputError
from swift_jax.files import atomic
from swift_jax.model import skip_mask as skip_masks
from swift_jax.model.skip_mask import Bits, Mask, SkipMask
from swift_jax.parallel import distributed, sharding
from swift_jax.parallel.target import Target
from swift_jax.version import __version__

_REPEATS = 7
_LONGEST_S = 10.0  # of all repetitions: slow passes need few of them
_STEPS, _ROUNDS = 8, 2  # in one dispatch
_FILLED = 0.5  # share of the cache, as for a text on average
_FORMAT = 2  # raise it when the work of a round or a layer changes
_DEAR = 1e3  # so that no leaf pays while drafting is timed
_SMALLEST = 1e-3  # lowest cost: rounding must not make a pass free
_SHORTEST_S = 1e-12  # lowest time of a step


@dataclasses.dataclass(frozen=True)
class PassCosts:
  """Costs in plain steps, for one batch size.

  Attributes:
    step_s: seconds of a plain step.
    head: cost of a drafted token if every sublayer is skipped.
    attn, mlp: cost that one attention or one MLP adds if it runs.
    verify: cost of verify and commit, for each width.
  """

  step_s: float
  head: float
  attn: float
  mlp: float
  verify: tuple[float, ...]

  def __post_init__(self):
    object.__setattr__(self, 'verify', tuple(self.verify))
    require_number('step_s', self.step_s, _SHORTEST_S, float('inf'))
    for name in ('head', 'attn', 'mlp'):
      require_number(name, getattr(self, name), 0, float('inf'))
    for cost in self.verify:
      require_number('verify', cost, 0, float('inf'))

  def draft(self, bits: Bits, saved_s: float = 0.0) -> float:
    """Cost of one token drafted with a mask.

    Args:
      bits: those of the mask.
      saved_s: seconds that a program without gates saves; see `specialised`.
    """
    attn, mlp = 2 + (~bits).reshape(2, -1).sum(1)  # that run
    gated = float(self.head + attn * self.attn + mlp * self.mlp)
    return max(gated - saved_s / self.step_s, _SMALLEST)

  def highest_speed(
    self, num_layers: int, num_skipped: int, widths: Sequence[int]
  ) -> float:
    """Tokens in the time of a plain step if every drafted token were right.

    Args:
      num_skipped: sublayers that the draft skips, the dearer kind first.
    """
    first, then = sorted((self.attn, self.mlp), reverse=True)
    saved = first * min(num_skipped, num_layers)
    saved += then * max(num_skipped - num_layers, 0)
    whole = self.head + num_layers * (self.attn + self.mlp)
    draft = whole - saved
    pairs = zip(widths, self.verify, strict=True)
    return max(w / ((w - 1) * draft + cost) for w, cost in pairs)


def sampling_work(settings: SamplingConfig) -> tuple[bool, ...]:
  """The parts of choosing a token that take time: top-k, top-p, penalties.

  Their values do not change the time.
  """
  penalised = settings.repetition_penalty != 1 or settings.min_new_tokens > 0
  return settings.top_k > 0, settings.top_p < 1, penalised


def rising(verify: Sequence[float]) -> tuple[float, ...]:
  """The costs, raised where the clock contradicts what must hold.

  No pass is cheaper than a plain step, and no pass is cheaper than a narrower one.
  """
  return tuple(np.maximum.accumulate([1.0, *verify]).tolist()[1:])


def of_model(
  target: Target,
  drafts: DraftSettings,
  batch: int,
  shapes: DraftShapes,
  settings: SamplingConfig,
  is_kept: bool = True,
) -> PassCosts:
  """Costs from the file of this machine and model; or measured, and written there.

  Args:
    drafts: the target's draft settings, on its devices.
    settings: the resolved sampling settings.
    is_kept: read and write the file.
  """
  name = _name(target, batch, shapes, settings)
  path = _path(name) if is_kept else None
  found = None
  if path is not None and sharding.is_first(target.mesh):
    found = _read(path, len(shapes.verify_widths))
  if not sharding.agreed(found is not None, target.mesh):
    measured = measure(target, drafts, batch, shapes, settings)
    if sharding.is_first(target.mesh):
      found = measured
      if path is not None:
        _write(path, found)
  if sharding.spans_processes(target.mesh):
    # All processes must make the same choices.
    text = json.dumps(dataclasses.asdict(found)) if found else ''
    content = distributed.from_first_process(text.encode())
    found = PassCosts(**json.loads(content))
  return found


def _name(
  target: Target, batch: int, shapes: DraftShapes, settings: SamplingConfig
) -> str:
  """A hash of all that the costs depend on."""
  mesh = target.mesh
  device = jax.devices()[0]
  facts = {
    'model': dataclasses.asdict(target.cfg),
    'batch': batch,
    'shapes': shapes,
    'sampling': sampling_work(settings),
    'mesh': None if mesh is None else dict(mesh.shape),
    'device': (device.platform, device.device_kind),
    'machine': (platform.node(), platform.machine(), _cores()),
    'processes': jax.process_count(),
    'flags': os.environ.get('XLA_FLAGS'),
    'versions': (__version__, jax.__version__, _FORMAT),
  }
  text = json.dumps(facts, sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def _cores() -> int | None:
  """The number of cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count()


def _path(name: str) -> pathlib.Path | None:
  """The file of these costs; None if there is no folder for it."""
  try:
    return hub.cache_folder() / 'costs' / f'{name}.json'
  except InputError:
    return None


def _read(path: os.PathLike[str], num_widths: int) -> PassCosts | None:
  try:
    found = PassCosts(**json.loads(atomic.read(str(path), 'costs')))
  # If the file is damaged, the costs are measured again.
  except (InputError, TypeError, ValueError, RecursionError):
    return None
  return found if len(found.verify) == num_widths else None


def _write(path: os.PathLike[str], costs: PassCosts) -> None:
  """Writes the file if it can; otherwise the next run measures again."""
  text = json.dumps(dataclasses.asdict(costs), indent=2) + '\n'
  try:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    target = atomic.writable(str(path), 'costs')
    atomic.replace(target, text, 'costs')
  except (InputError, OSError):
    return


def measure(
  target: Target,
  drafts: DraftSettings,
  batch: int,
  shapes: DraftShapes,
  settings: SamplingConfig,
) -> PassCosts:
  """Times each kind of pass in turn, and takes the medians of the ratios."""
  bench = Bench(target, drafts, batch, shapes, settings)
  layers, width = target.cfg.num_hidden_layers, bench.draft_length + 1
  every, none = np.ones(layers, bool), np.zeros(layers, bool)
  masks = {
    'head': SkipMask(every, every),
    'attn': SkipMask(none, every),
    'mlp': SkipMask(every, none),
  }
  masks = {name: target.put(mask) for name, mask in masks.items()}
  kinds: dict[str | int, Callable[[], float]] = {'plain': bench.plain}
  for w in shapes.verify_widths:
    kinds[w] = lambda w=w: bench.round(policy.COPY, w - 1)
  for name, mask in masks.items():
    kinds[name] = lambda mask=mask: bench.layers(mask)
  for run in kinds.values():
    run()  # compiles and warms up
  times = {name: [] for name in kinds}
  started = time.perf_counter()
  for number in range(_REPEATS):
    late = time.perf_counter() - started > _LONGEST_S
    if number and sharding.agreed(late, target.mesh):
      break
    # In alternating order: the first may find the machine under another load.
    for name in list(kinds)[:: -1 if number % 2 else 1]:
      times[name].append(kinds[name]())
  step = np.asarray(times['plain'])
  cost = {k: float(np.median(np.asarray(v) / step)) for k, v in times.items()}

  def drafted(name: str) -> float:
    """Cost of a drafted token: the round without its verify."""
    return max((cost[name] - cost[width]) / (width - 1), _SMALLEST)

  head = drafted('head')
  return PassCosts(
    step_s=float(np.median(step)),
    head=head,
    attn=max((drafted('attn') - head) / layers, 0.0),
    mlp=max((drafted('mlp') - head) / layers, 0.0),
    verify=rising([cost[w] for w in shapes.verify_widths]),
  )


_copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))


class Bench:
  """A batch whose texts repeat one token; each dispatch begins them again.

  Attributes:
    draft_length: tokens of each timed draft.
  """

  def __init__(
    self,
    target: Target,
    drafts: DraftSettings,
    batch: int,
    shapes: DraftShapes,
    settings: SamplingConfig,
    capacity: int | None = None,
  ):
    """Makes a cache.

    Args:
      capacity: the cache's slots; None: the target's present capacity.
    """
    self._target, self._drafts, self._shapes = target, drafts, shapes
    capacity = capacity or target.capacity
    room = capacity - shapes.max_width - 2
    needed = max(_ROUNDS * shapes.max_width, _STEPS) + 1
    filled = max(min(int(_FILLED * capacity), room - needed), 0)
    tokens = np.zeros((batch, capacity), np.int32)
    ones = np.ones(batch, np.int32)
    indices = np.arange(batch, dtype=np.uint32)
    arrays = (tokens, ones, room * ones, np.uint32(0), indices)
    cache = target.empty_cache(batch, capacity)
    evidence = target.put(policy.start())
    widths = shapes.verify_widths
    self._state = rounds.start(
      cache,
      *target.put(arrays),
      evidence,
      num_widths=len(widths),
      mesh=target.mesh,
    )
    done = np.zeros(batch, bool)
    length = np.full(batch, filled, np.int32)
    self._begin = *target.put_rows((length, done)), target.put(policy.start())
    self.draft_length = next((w for w in widths if w >= 8), widths[-1]) - 1
    self._sampling = target.put(sampling.from_config(settings, ()))
    layers = target.cfg.num_hidden_layers
    self._none = target.put(skip_masks.none_skipped(layers))

  def _fresh(self) -> DecodeState:
    length, done, evidence = _copy(self._begin)  # a donated array is lost
    state = self._state
    return state.replace(
      cache=state.cache.rollback(length), done=done, evidence=evidence
    )

  def plain(self) -> float:
    """Seconds of a plain step."""
    target = self._target
    arguments = (
      target.graphdef,
      target.params,
      self._fresh(),
      target.none_skipped,
    )
    count = target.number(_STEPS)
    started = time.perf_counter()
    self._state = jax.block_until_ready(
      rounds.plain_steps(
        *arguments, self._sampling, count, self._shapes.samples
      )
    )
    return (time.perf_counter() - started) / _STEPS

  def layers(self, mask: Mask) -> float:
    """Seconds of a round that drafts by layers."""
    return self.round(policy.LAYERS, self.draft_length, mask)

  def lowering(self, mask: Mask) -> Callable[[], jax.stages.Lowered]:
    """What traces the program of `layers`; it starts nothing on a device."""
    arguments = self._arguments(policy.LAYERS, self.draft_length, mask)
    return functools.partial(rounds.speculative_rounds.lower, *arguments)

  def round(self, source: int, length: int, mask: Mask | None = None) -> float:
    """Seconds of a round that drafts `length` tokens from a source."""
    arguments = self._arguments(source, length, mask)
    started = time.perf_counter()
    self._state = jax.block_until_ready(rounds.speculative_rounds(*arguments))
    return (time.perf_counter() - started) / _ROUNDS

  def _arguments(
    self, source: int, length: int, mask: Mask | None
  ) -> tuple[Any, ...]:
    """Those of a dispatch whose rounds draft `length` tokens from a source."""
    target = self._target
    widths = len(self._shapes.verify_widths)
    dear = policy.Costs(
      np.asarray(1, np.float32),
      _DEAR * np.arange(1, widths + 1, dtype=np.float32),
    )
    forced, longest, threshold, prices = target.put(
      (np.int32(source), np.int32(length), np.float32(0), dear)
    )
    settings = self._drafts.replace(
      forced=forced,
      max_length=longest,
      lookup_length=longest,
      threshold=threshold,  # 0: no draft ends earlier
      costs=prices,
    )
    return (
      target.graphdef,
      target.params,
      self._fresh(),
      self._none if mask is None else mask,
      target.none_skipped,
      settings,
      self._sampling,
      target.number(_ROUNDS),
      self._shapes,
    )

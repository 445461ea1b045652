"""A stream of prompts, written by every method in turns.

Cold is an engine that has searched nothing yet, warm one with a set that was found
on other prompts of the stream. SWIFT as published, and layers without copies, stand
beside it. Programs are compiled before; the seconds are those
of `Engine.generate`, search included.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import time
from typing import Any

from swift_jax import progress
from swift_jax.benchmark.measuring import Compilations, in_turn
from swift_jax.config.sampling import SamplingConfig
from swift_jax.config.settings import DecodeConfig, DraftConfig, SearchConfig
from swift_jax.model.skip_mask import SkipMask
from swift_jax.runtime.engine import Engine
from swift_jax.runtime.results import Result

Prompts = Sequence[Sequence[int]]
METHODS = {
  'plain': 'plain',
  'swift cold': 'swift',
  'swift warm': 'swift',
  'layers alone': 'swift',  # warm, without copies
  'as published': 'swift',  # warm, without the policy
  'prompt lookup': 'prompt_lookup',
}


@dataclasses.dataclass(frozen=True)
class Bench:
  """What is measured, and on what.

  Attributes:
    engine: holds the weights; decodes plainly and by prompt lookup.
    draft, search: settings of the engines that search.
    decode: settings of a call; method, batch and sampling are set here.
    timed: prompts that are timed.
    others: those that the warm set is found on.
    new_tokens: of each text.
    warm_set: to begin warm with; None: what a search finds on `others`.
    methods: of `METHODS`, plain decoding among them.
    temperatures: of the texts.
  """

  engine: Engine
  draft: DraftConfig
  search: SearchConfig
  decode: DecodeConfig
  timed: Prompts
  others: Prompts
  new_tokens: int
  warm_set: SkipMask | None = None
  methods: Sequence[str] = tuple(METHODS)
  temperatures: Sequence[float] = (0.0, 0.6)

  def fresh(self, **changes: Any) -> Engine:
    """An engine on the same weights that has searched nothing yet."""
    engine, model = self.engine, self.engine.model
    made = Engine(
      engine.cfg,
      model.graphdef,
      model.params,
      engine.tokenizer,
      engine.defaults,
      self.draft,
      dataclasses.replace(self.search, **changes),
      model.mesh,
    )
    made.model.keeps_costs = False  # what another run measured is its own
    made.model.measured = model.measured  # the same for all methods of this one
    return made

  def with_set(self, mask: SkipMask, **draft: Any) -> Engine:
    """An engine that drafts with a set and never searches."""
    changed = dataclasses.replace(self.draft, **draft)
    bench = dataclasses.replace(self, draft=changed)
    engine = bench.fresh(restart=False)
    engine.set_skip_mask(mask)
    return engine

  def call(self, method: str, batch: int, temperature: float) -> DecodeConfig:
    """Settings of a call: as many tokens from every method."""
    sampling = SamplingConfig(
      temperature=temperature,
      top_k=0,
      max_new_tokens=self.new_tokens,
      use_generation_config=False,
    )
    return dataclasses.replace(
      self.decode,
      method=method,
      batch_size=batch,
      ignore_eos=True,
      sampling=sampling,
    )


@dataclasses.dataclass
class Writing:
  """What a method made of the prompts, batch by batch.

  Attributes:
    seconds: of each batch.
    results: of each batch.
  """

  seconds: list[float] = dataclasses.field(default_factory=list)
  results: list[list[Result]] = dataclasses.field(default_factory=list)

  @property
  def tokens(self) -> list[int]:
    """New tokens of each batch."""
    return [sum(len(r.tokens) for r in batch) for batch in self.results]

  @property
  def texts(self) -> list[list[int]]:
    """The tokens of each prompt's text."""
    return [r.tokens for batch in self.results for r in batch]

  def total(self, name: str) -> float:
    """A count of all texts."""
    results = [r for batch in self.results for r in batch]
    return sum(getattr(r.metrics, name) for r in results)

  def search_seconds(self) -> float:
    """Of all batches: each text has its batch's."""
    return sum(batch[0].metrics.search_s for batch in self.results)


def find_set(bench: Bench) -> SkipMask:
  """What a search finds on other prompts when it may take all time."""
  engine = bench.fresh(time_budget=1.0)
  call = bench.call('swift', 1, 0.0)
  for prompt in bench.others:
    if engine.searcher.active:
      engine.generate([prompt], call)
  engine.searcher.rest()
  return engine.skip_mask


def write(
  bench: Bench, mask: SkipMask, batch: int, temperature: float
) -> tuple[dict[str, Writing], int]:
  """Every method on every batch of prompts, in turns.

  Returns:
    What each wrote, and the programs compiled meanwhile.
  """
  made = {
    'swift cold': bench.fresh,
    'swift warm': lambda: bench.with_set(mask),
    'layers alone': lambda: bench.with_set(mask, copy=False),
    'as published': lambda: bench.with_set(mask, adaptive=False),
  }
  engines = {
    name: made[name]() if name in made else bench.engine
    for name in bench.methods
  }
  calls = {
    name: bench.call(METHODS[name], batch, temperature) for name in engines
  }
  for name, engine in engines.items():
    engine.warmup(calls[name], max(map(len, bench.timed)))
  written = {name: Writing() for name in engines}
  count = Compilations()
  places = range(0, len(bench.timed), batch)
  for number, at in enumerate(progress.bar(places, unit='batch', leave=False)):
    group = list(bench.timed[at : at + batch])
    indices = range(at, at + len(group))
    for name in in_turn(list(engines), number):
      started = time.perf_counter()
      results = engines[name].generate(group, calls[name], indices=indices)
      written[name].seconds.append(time.perf_counter() - started)
      written[name].results.append(results)
  return written, count.total

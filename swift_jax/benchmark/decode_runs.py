"""A stream of prompts that every method continues in turns.

A cold engine has searched nothing yet; a warm engine has a set that was found on
other prompts of the stream. SWIFT as published and SWIFT with layers but without
copies are measured too. Programs are compiled before the measurement. The seconds
are those of `Engine.generate`, search included.
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
  """The engine, the prompts and the settings of a measurement.

  Attributes:
    engine: it holds the weights, and decodes plainly and by prompt lookup.
    draft, search: settings of the engines that search.
    decode: settings of a call; `call` changes method, batch and sampling.
    timed: the prompts that are timed.
    others: the prompts on which the warm set is found.
    new_tokens: tokens written after each prompt.
    warm_set: the set of warm engines; None: the set that a search finds on `others`.
    methods: names from `METHODS`, plain decoding among them.
    temperatures: temperatures of the texts.
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
    made.model.keeps_costs = (
      False  # no costs from other runs, and none for them
    )
    made.model.measured = (
      model.measured
    )  # all methods of this run share the costs
    return made

  def with_set(self, mask: SkipMask, **draft: Any) -> Engine:
    """An engine that drafts with a given set and never searches."""
    changed = dataclasses.replace(self.draft, **draft)
    bench = dataclasses.replace(self, draft=changed)
    engine = bench.fresh(restart=False)
    engine.set_skip_mask(mask)
    return engine

  def call(self, method: str, batch: int, temperature: float) -> DecodeConfig:
    """Settings of a call, in which every method writes equally many tokens."""
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
  """The texts that a method wrote, batch by batch.

  Attributes:
    seconds: for each batch its seconds.
    results: for each batch the results of its prompts.
  """

  seconds: list[float] = dataclasses.field(default_factory=list)
  results: list[list[Result]] = dataclasses.field(default_factory=list)

  @property
  def tokens(self) -> list[int]:
    """For each batch the number of its new tokens."""
    return [sum(len(r.tokens) for r in batch) for batch in self.results]

  @property
  def texts(self) -> list[list[int]]:
    """For each prompt the tokens of its text."""
    return [r.tokens for batch in self.results for r in batch]

  def total(self, name: str) -> float:
    """The sum of one of the metrics over all texts."""
    results = [r for batch in self.results for r in batch]
    return sum(getattr(r.metrics, name) for r in results)

  def search_seconds(self) -> float:
    """Seconds of the search over all batches; each text has its batch's seconds."""
    return sum(batch[0].metrics.search_s for batch in self.results)


def find_set(bench: Bench) -> SkipMask:
  """The set that a search finds on `others` without a limit on its time."""
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
  """Continues every batch of prompts with every method, in turns.

  Returns:
    The texts of each method, and the number of programs compiled meanwhile.
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

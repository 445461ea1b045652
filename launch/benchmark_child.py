"""Measures for benchmark.py, in a process of its own: a start, or a peak of memory.

The last line of standard output is JSON. A start writes a first line when its first
token is there.
"""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from absl import flags
from cli import common, console
from ml_collections import ConfigDict

from swift_jax.config.sampling import SamplingConfig

if TYPE_CHECKING:
  from swift_jax import DecodeConfig, Engine

_MEASURE = flags.DEFINE_enum(
  'measure', 'start', ['start', 'memory'], 'what to measure'
)
_PROMPT_TOKENS = 32
_FIRST_TOKENS = 8


def main(config: ConfigDict) -> None:
  measure = {'start': start, 'memory': memory}[_MEASURE.value]
  console.write(f'{json.dumps(measure(config))}\n')


class FirstToken:
  """A streamer that writes a line when the first token is there."""

  def __init__(self):
    self._calls = 0

  def put(self, _: Any) -> None:
    """Counts the calls: the first brings the prompt, the others bring tokens."""
    self._calls += 1
    if self._calls == 2:
      console.write('first token\n')

  def end(self) -> None:
    """The end of the text needs no line."""


def start(config: ConfigDict) -> dict[str, Any]:
  """Writes the first tokens with SWIFT; counts the programs compiled for them."""
  from swift_jax.benchmark.measuring import Compilations

  count = Compilations()
  engine = common.load_engine(config)
  engine.generate(
    [prompt(engine)], swift(config, _FIRST_TOKENS), streamer=FirstToken()
  )
  return {
    'compilations': count.total,
    'cache_hits': count.hits,
    'compile_s': count.seconds,
  }


def memory(config: ConfigDict) -> dict[str, Any]:
  """The peak of memory over a text that is long enough for the search."""
  from swift_jax.benchmark.suites import memory as memory_suite

  call = swift(config, config.search.context_window + _FIRST_TOKENS)

  def write(engine: Engine) -> None:
    engine.warmup(
      call, _PROMPT_TOKENS
    )  # scores masks, whatever the time budget
    engine.generate([prompt(engine)], call)

  return memory_suite.measure(lambda: common.load_engine(config), write)


def prompt(engine: Engine) -> list[int]:
  """A prompt of arbitrary tokens."""
  return [i % engine.cfg.vocab_size for i in range(_PROMPT_TOKENS)]


def swift(config: ConfigDict, new_tokens: int) -> DecodeConfig:
  """Settings of greedy SWIFT that writes all of `new_tokens`."""
  sampling = SamplingConfig(
    temperature=0, max_new_tokens=new_tokens, use_generation_config=False
  )
  return dataclasses.replace(
    common.section(config, 'decode'),
    method='swift',
    batch_size=1,
    ignore_eos=True,
    sampling=sampling,
  )


if __name__ == '__main__':
  common.run(main)

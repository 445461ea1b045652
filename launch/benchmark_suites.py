"""All suites of benchmark.py: from a config and sizes to figures.

The suite `search` has a module of its own, `benchmark_search`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import pathlib
import sys
import tempfile
from typing import TYPE_CHECKING

from benchmark_tables import say
from cli import common
from ml_collections import ConfigDict

from swift_jax.errors import InputError

if TYPE_CHECKING:
  from swift_jax.benchmark.decode_runs import Bench
  from swift_jax.benchmark.report import Outcome
  from swift_jax.runtime.engine import Engine
  from swift_jax.runtime.model import Model

_OTHER_PROMPTS = 24  # prompts on which the warm set is found
_CHILD = pathlib.Path(__file__).with_name('benchmark_child.py')


@dataclasses.dataclass(frozen=True)
class Sizes:
  """How much is measured.

  Attributes:
    repeats: repeats of each pass and each start.
    prompts: number of prompts that are timed.
    new_tokens: tokens written after each prompt.
    batches: batch sizes.
    layers: numbers of layers of the narrow models whose start is timed.
    weights_mib: size of the random model whose peak is measured on a CPU, in MiB.
    seeds: searches of each recipe.
    shape: shape of the random weights whose passes are measured; None: the passes
      of the config's model are measured.
    widen: how many times as wide the config's model is made.
    methods, temperatures: those of the suite decode.
  """

  repeats: int
  prompts: int
  new_tokens: int
  batches: Sequence[int]
  layers: Sequence[int]
  weights_mib: int
  seeds: int
  shape: str | None = None
  widen: int = 1
  methods: Sequence[str] = ()
  temperatures: Sequence[float] = ()


def decode(config: ConfigDict, sizes: Sizes) -> Outcome:
  from swift_jax.benchmark.suites import decode as decode_suite
  from swift_jax.search.files import cached_sets

  window = config.search.context_window
  if window > sizes.new_tokens:
    raise InputError(
      f'--new_tokens={sizes.new_tokens}: expected >='
      f' search.context_window={window}'
    )
  search = config.search
  cache, search.cache = search.cache, ''
  bench = dataclasses.replace(
    make_bench(config, sizes),
    methods=sizes.methods,
    temperatures=sizes.temperatures,
  )
  if cache:
    engine = bench.engine
    layers = engine.cfg.num_hidden_layers
    # A set of the original model serves the widened one: its model is not compared.
    model = engine.fingerprint if sizes.widen == 1 else None
    found = cached_sets.load(cache, search.cache_name, layers, model)
    bench = dataclasses.replace(bench, warm_set=found)
  common.announce(bench.engine.describe())
  return decode_suite.decode(bench, sizes.batches, sizes.repeats, say)


def draft(config: ConfigDict, sizes: Sizes) -> Outcome:
  from swift_jax.benchmark.suites import passes as pass_suite

  return pass_suite.draft(_model(config, sizes), sizes.repeats)


def verify(config: ConfigDict, sizes: Sizes) -> Outcome:
  from swift_jax.benchmark.suites import passes as pass_suite

  return pass_suite.verify(_model(config, sizes), sizes.repeats)


def _model(config: ConfigDict, sizes: Sizes) -> Model:
  """The model whose passes are measured."""
  if sizes.shape is None:
    engine = load_engine(config, sizes)
    common.announce(engine.describe())
    return engine.model
  from swift_jax.benchmark import random_model

  if sizes.shape not in random_model.SHAPES:
    names = ', '.join(random_model.SHAPES)
    raise InputError(f'--shape={sizes.shape!r}: expected one of {names}')
  return random_model.of_shape(sizes.shape)


def load_engine(config: ConfigDict, sizes: Sizes) -> Engine:
  """The engine of the config's model, widened by `sizes.widen`.

  Raises:
    InputError: as `common.load_engine`, or the model cannot be made so wide.
  """
  engine = common.load_engine(config)
  if sizes.widen == 1:
    return engine
  from swift_jax.benchmark import wide_model

  try:
    draft = common.section(config, 'draft')
    return wide_model.widened(engine, sizes.widen, draft)
  except InputError as error:
    raise InputError(f'--widen={error}') from None


def search(config: ConfigDict, sizes: Sizes) -> Outcome:
  import benchmark_search

  return benchmark_search.search(config, sizes.seeds)


def compile_(config: ConfigDict, sizes: Sizes) -> Outcome:
  from swift_jax.benchmark.suites import start as start_suite

  with config_file(config) as file:

    def command(cache: pathlib.Path, model: str | None) -> list[str]:
      cached = f'--config.compilation_cache_dir={cache}'
      return [*child('start', file, model), cached]

    return start_suite.compile_(command, sizes.layers, sizes.repeats, say)


def memory(config: ConfigDict, sizes: Sizes) -> Outcome:
  from swift_jax.benchmark.suites import memory as memory_suite

  with config_file(config) as file:
    return memory_suite.memory(
      lambda model: child('memory', file, model), sizes.weights_mib, say
    )


def peers(config: ConfigDict, sizes: Sizes) -> Outcome:
  from swift_jax.benchmark.suites import peers as peers_suite
  from swift_jax.checkpoint import hub

  if not peers_suite.is_there():
    raise InputError("--suite='peers': torch is not there (the extra parity)")
  peers_suite.calm_threads()
  config.model.dtype, config.model.weights = 'float32', ''  # as in the peers
  folder = hub.resolve(config.model.path)
  bench = make_bench(config, sizes)
  common.announce(bench.engine.describe())
  return peers_suite.peers(bench, folder, say)


SUITES: Mapping[str, Callable[[ConfigDict, Sizes], Outcome]] = {
  'decode': decode,
  'draft': draft,
  'verify': verify,
  'search': search,
  'compile': compile_,
  'memory': memory,
  'peers': peers,
}


def make_bench(config: ConfigDict, sizes: Sizes) -> Bench:
  """The model and its prompts: the last `sizes.prompts` programs are timed.

  Raises:
    InputError: the standard library has too few programs.
  """
  from swift_jax.benchmark import prompts as benchmark_prompts
  from swift_jax.benchmark.decode_runs import Bench

  engine = load_engine(config, sizes)
  code = benchmark_prompts.prompts_of(engine, benchmark_prompts.programs())
  most = len(code) - _OTHER_PROMPTS
  if sizes.prompts > most:
    raise InputError(
      f'--prompts={sizes.prompts}: the standard library gives {most}'
    )
  return Bench(
    engine=engine,
    draft=common.section(config, 'draft'),
    search=common.section(config, 'search'),
    decode=common.section(config, 'decode'),
    timed=code[-sizes.prompts :],
    others=code[:_OTHER_PROMPTS],
    new_tokens=sizes.new_tokens,
  )


@contextlib.contextmanager
def config_file(config: ConfigDict) -> Iterator[pathlib.Path]:
  """A config file that gives a child process this very config."""
  text = (
    'import ml_collections\n\n\ndef get_config():\n'
    f'  return ml_collections.ConfigDict({config.to_dict()!r})\n'
  )
  with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder) / 'config.py'
    file.write_text(text, encoding='utf-8')
    yield file


def child(measure: str, file: pathlib.Path, model: str | None) -> list[str]:
  """The command of a process that measures.

  Args:
    measure: `start` or `memory`, see benchmark_child.py.
    file: the config file.
    model: folder of a random model; None: the config's model.
  """
  command = [
    *(sys.executable, '-W', 'ignore', str(_CHILD)),
    *(f'--config={file}', f'--measure={measure}'),
  ]
  if model is None:
    return command
  # The random model has the type it has on disk, and one device.
  fields = {'model.path': model, 'model.dtype': ''}
  fields |= {'mesh.data': 1, 'mesh.tensor': 1}
  return [*command, *(f'--config.{k}={v}' for k, v in fields.items())]

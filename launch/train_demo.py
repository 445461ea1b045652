"""Trains the demo model on the source of Python's standard library.

  python launch/train_demo.py --workdir=DIR --output=FOLDER

DIR holds the tokenizer and Orbax checkpoints. Training that is started again goes on
where it stopped; a finished run only writes the model. With --output the model is
written to FOLDER in Hugging Face format (bfloat16), with a skip set found for it and
a model card that says how both were made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import json
import os
import pathlib
import platform
import tempfile
from typing import Any

from absl import flags
from cli import common, console
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import tokenizers

from swift_jax.checkpoint import export
from swift_jax.config.settings import ModelConfig
from swift_jax.demo import corpus, measuring, training
from swift_jax.demo.training import TrainConfig
from swift_jax.errors import InputError
from swift_jax.files import atomic
from swift_jax.model import llama, skip_mask
from swift_jax.model.skip_mask import SkipMask

_WORKDIR = flags.DEFINE_string(
  'workdir',
  None,
  'folder of the tokenizer and the checkpoints',
  allow_override=True,  # evaluate.py has one, and tests import both
)
_OUTPUT = flags.DEFINE_string('output', None, 'folder of the finished model')

SKIP_RATIO = 0.45
SWAPS = 150  # number of masks tried to find the model card's skip set


@dataclasses.dataclass(frozen=True)
class CpuConfig:
  """How a CPU is used.

  Attributes:
    devices: number of devices into which the CPU is split. Each has its share of a
      batch's rows, so that work which XLA does on one thread runs side by side.
  """

  devices: int = 2

  def __post_init__(self):
    if self.devices < 1:
      raise InputError(f'cpu.devices={self.devices!r}: expected >= 1')


SECTIONS = {'model': ModelConfig, 'train': TrainConfig, 'cpu': CpuConfig}

CARD = """---
library_name: swift_jax
license: apache-2.0
---

# The demo model of swift_jax

A Llama of {num_hidden_layers} layers and width {hidden_size} ({params:.1f} M
parameters) with a byte-level BPE tokenizer of {vocab_size} tokens. It exists to
show SWIFT without a download; it is no useful writer of programs.

| | |
| --- | --- |
| corpus | source of the standard library of Python {python}, without test suites and tables: {corpus_tokens} tokens; held out: {held_out_tokens} tokens of other files |
| trained on | {tokens} tokens, {steps} steps of {batch_size} x {seq_len} |
| optimizer | {optimizer}, {matrix_lr} on the layers' matrices, {other_lr} elsewhere; warm-up {warmup} steps, the last {decay:.0%} of the steps decay to zero |
| stochastic depth | yes: sublayers are dropped while training, so that the model tolerates skipped ones as large models do by themselves. Layer l is dropped with probability {max_drop_rate} * l / (L - 1); the first and the last layer never |
| seed | {seed} |
| held-out loss in windows of {seq_len} tokens, all layers | {loss:.3f} nats a token = {bits_per_byte:.3f} bits a byte |
| held-out loss, 45 % of the sublayers skipped (uniform set) | {loss_skipped:.3f} nats a token |
| held-out matchness at 45 % (share of tokens whose argmax stays) | {matchness_found:.3f} with the set in `skip_sets.json`, {matchness_uniform:.3f} with the uniform set |
| time | {hours:.1f} hours on {devices} |

The set in `skip_sets.json` was found on training text by {swaps} swaps uphill (█
runs, ░ is skipped):

```
{skip_picture}
```

The figures are those of the last run of `launch/train_demo.py`. A run that was
stopped and started again with other settings has in this table those it ended
with: steps before that may have had other rates and other rows, and the time
counts pauses.
"""


def main(config: ConfigDict) -> None:
  try:
    train(config)
  except KeyboardInterrupt as error:
    error.add_note('the same command goes on where this one stopped')
    raise


def train(config: ConfigDict) -> None:
  """Trains, and writes the model to --output."""
  cfgs = [common.section(config, name, SECTIONS[name]) for name in SECTIONS]
  if not _WORKDIR.value:
    raise InputError('--workdir: a folder is needed')
  with contextlib.ExitStack() as stack:
    where = f'--workdir={_WORKDIR.value}'
    workdir = stack.enter_context(atomic.folder(_WORKDIR.value, where))
    output = None
    if _OUTPUT.value:
      output = stack.enter_context(claimed(_OUTPUT.value))
    train_in(workdir, output, *cfgs)


@contextlib.contextmanager
def claimed(path: str) -> Iterator[pathlib.Path]:
  """Locks the model's folder and checks that it can be written.

  This happens before hours of training. The folder itself appears when it is
  complete.
  """
  folder, where = pathlib.Path(os.path.realpath(path)), f'--output={path}'
  with atomic.named_errors(f'{where}: cannot be written'):
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(
      dir=folder if folder.exists() else folder.parent
    ):
      pass
  with atomic.locked(folder, where, waits=False):
    yield folder


def train_in(
  workdir: pathlib.Path,
  output: pathlib.Path | None,
  model_cfg: ModelConfig,
  cfg: TrainConfig,
  cpu: CpuConfig,
) -> None:
  """Trains in folders that are known to be writable."""
  _split_cpu(cpu.devices)
  training.check_batch(cfg)

  tokenizer_file = workdir / 'tok.json'
  tokenizer = _tokenizer(tokenizer_file, model_cfg.vocab_size)
  text = {
    'train': corpus.encode(tokenizer, held_out=False),
    'held_out': corpus.encode(tokenizer, held_out=True),
  }
  shape = f'{model_cfg.num_hidden_layers} layers of {model_cfg.hidden_size}'
  common.announce(f'{shape}, {model_cfg.dtype}, {_devices()}')
  with console.signals_wait() as must_stop:
    _, params, figures = training.train(
      model_cfg,
      cfg,
      text['train'],
      text['held_out'],
      workdir / 'ckpt',
      must_stop,
    )
  print(f'held-out figures: {figures}')
  if output is not None:
    found = _skip_set(model_cfg, cfg, params, text['train'])
    measured = _measure(model_cfg, cfg, params, text['held_out'], found)
    facts = _facts(model_cfg, cfg, text, {**figures, **measured})
    card = CARD.format(
      **facts,
      params=sum(p.size for p in jax.tree.leaves(params)) / 1e6,
      skip_picture=found.blocks(),
    )
    _export(output, model_cfg, params, tokenizer_file)
    sets = json.dumps({'demo': found.to_lists()})
    for name, content in {
      'skip_sets.json': f'{sets}\n',
      'README.md': card,
    }.items():
      atomic.replace(output / name, content, f'--output={output}/{name}')
    print(card)


def _split_cpu(devices: int) -> None:
  """Splits the CPU into devices; jax allows it only before its first computation."""
  jax.config.update('jax_num_cpu_devices', devices)


def _tokenizer(file: pathlib.Path, vocab_size: int) -> tokenizers.Tokenizer:
  """The run's tokenizer, learnt once: checkpoints fit only the first one."""
  if not file.exists():
    learnt = corpus.train_tokenizer(vocab_size).to_str(pretty=True)
    atomic.replace(file, learnt, f'--workdir={file}')
  tokenizer = tokenizers.Tokenizer.from_file(str(file))
  if tokenizer.get_vocab_size() > vocab_size:
    raise InputError(
      f'{file} has {tokenizer.get_vocab_size()} tokens, more than'
      f' model.vocab_size={vocab_size}'
    )
  return tokenizer


def _skip_set(
  model_cfg: ModelConfig, cfg: TrainConfig, params: Any, tokens: np.ndarray
) -> SkipMask:
  """Finds a skip set on training text."""
  graphdef, _ = llama.abstract_model(model_cfg)
  rows = measuring.spread_rows(tokens, cfg.seq_len, 8)[:, :-1]
  return measuring.find_skip_set(
    graphdef, params, rows, model_cfg.num_hidden_layers, SKIP_RATIO, SWAPS
  )


def _measure(
  model_cfg: ModelConfig,
  cfg: TrainConfig,
  params: Any,
  held_out: np.ndarray,
  found: SkipMask,
) -> dict[str, float]:
  """The card's figures, on the held-out text in whole batches of eight rows."""
  graphdef, _ = llama.abstract_model(model_cfg)
  rows = measuring.spread_rows(held_out, cfg.seq_len, 10**6)
  batches = [rows[i : i + 8] for i in range(0, len(rows) - 7, 8)] or [rows]
  loss = jax.jit(training.make_loss(graphdef))
  matchness = measuring.make_matchness(graphdef)
  none_skipped = skip_mask.none_skipped(model_cfg.num_hidden_layers)
  uniform = skip_mask.uniform(model_cfg.num_hidden_layers, SKIP_RATIO)

  def mean(values: list[Any]) -> float:
    return float(np.mean(jax.device_get(values)))

  def share(mask: SkipMask) -> float:
    return mean(
      [matchness(params, b[:, :-1], mask, none_skipped) for b in batches]
    )

  return {
    'loss': mean([loss(params, batch, none_skipped) for batch in batches]),
    'loss_skipped': mean([loss(params, batch, uniform) for batch in batches]),
    'matchness_found': share(found),
    'matchness_uniform': share(uniform),
  }


def _facts(
  model_cfg: ModelConfig,
  cfg: TrainConfig,
  text: Mapping[str, np.ndarray],
  figures: Mapping[str, Any],
) -> dict[str, Any]:
  """The facts of the model card: the run's settings and the measured figures."""
  num_bytes = sum(len(t.encode()) for t in corpus.documents(held_out=True))
  bits = figures['loss'] / np.log(2) * len(text['held_out'])
  return {
    **dataclasses.asdict(model_cfg),
    **dataclasses.asdict(cfg),
    **figures,
    'python': platform.python_version(),
    'corpus_tokens': len(text['train']),
    'held_out_tokens': len(text['held_out']),
    'bits_per_byte': bits / num_bytes,
    'hours': figures['seconds'] / 3600,
    'devices': _devices(),
    'swaps': SWAPS,
  }


def _devices() -> str:
  return f'{jax.device_count()} x {jax.devices()[0].device_kind}'


def _export(
  output: pathlib.Path,
  model_cfg: ModelConfig,
  params: Any,
  tokenizer_file: pathlib.Path,
) -> None:
  """Writes the model and its tokenizer."""
  import transformers

  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_file=str(tokenizer_file), eos_token=corpus.END_OF_TEXT
  )
  export.export_hf(
    output,
    dataclasses.replace(model_cfg, dtype='bfloat16'),
    jax.tree.map(lambda p: p.astype(jnp.bfloat16), params),
    tokenizer=tokenizer,
    generation_config={'eos_token_id': tokenizer.eos_token_id},
  )


if __name__ == '__main__':
  common.run(main, 'train_demo', SECTIONS)

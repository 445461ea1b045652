"""Trains the demo model on the source of Python's standard library.

  python launch/train_demo.py --config=configs/train_demo.py --workdir=DIR
  python launch/train_demo.py --workdir=DIR --output=FOLDER     (exports it)

DIR holds the tokenizer and Orbax checkpoints; started again, training goes on
where it stopped. With --output the trained model is written there in Hugging
Face format (bfloat16), with a model card that says how it was made.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import platform
import time

from absl import flags
import common
import ml_collections

from swift_jax.config import ModelConfig
from swift_jax.errors import InputError

_WORKDIR = flags.DEFINE_string('workdir', None, 'tokenizer and checkpoints')
_OUTPUT = flags.DEFINE_string('output', None, 'folder of the finished model')

MODEL = ModelConfig(
  vocab_size=2048,
  hidden_size=256,
  intermediate_size=768,
  num_hidden_layers=16,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=64,
  max_position_embeddings=1024,
  rms_norm_eps=1e-5,
  tie_word_embeddings=True,
)

CARD = """---
library_name: swift_jax
license: apache-2.0
---

# The demo model of swift_jax

A Llama of {layers} layers and width {width} ({params:.1f} M parameters) with a
byte-level BPE tokenizer of {vocab} tokens. It exists to show SWIFT without a
download; it is no useful writer of programs.

| | |
| --- | --- |
| corpus | source of the standard library of Python {python}, without test suites and tables: {corpus_tokens} tokens; held out: {held_out_tokens} tokens of other files |
| trained on | {tokens} tokens, {steps} steps of {batch_size} x {seq_len} |
| optimizer | {optimizer}, {matrix_lr} on the layers' matrices, {other_lr} elsewhere; warm-up {warmup} steps, the last {decay:.0%} of the steps decay to zero |
| stochastic depth | yes: sublayers are dropped while training, so that the model tolerates skipped ones as large models do by themselves. Layer l is dropped with probability {max_drop_rate} * l / (L - 1); the first and the last layer never |
| seed | {seed} |
| held-out loss, all layers | {loss:.3f} nats a token = {bits_per_byte:.3f} bits a byte |
| held-out loss, 45 % of the sublayers skipped (uniform set) | {loss_skipped:.3f} nats a token |
| held-out matchness at 45 % (share of tokens whose argmax stays) | {matchness_found:.3f} with the set in `skip_sets.json`, {matchness_uniform:.3f} with the uniform set |
| time | {hours:.1f} hours on {devices} |

The set in `skip_sets.json` was found on training text by 150 swaps uphill:

```
{skip_picture}
```

The figures are those of the last run of `launch/train_demo.py`. A run that was
stopped and started again with other rates has in this table those it ended with.
"""


def main(config: ml_collections.ConfigDict) -> None:
  if not _WORKDIR.value:
    raise InputError('--workdir: a folder is needed')
  import jax

  # Rows are split over devices: on a CPU the parts that XLA runs on one thread
  # then run side by side.
  if config.cpu.devices > 1:
    jax.config.update('jax_num_cpu_devices', config.cpu.devices)
  import tokenizers

  from swift_jax import training
  from swift_jax.demo import corpus

  cfg = training.TrainConfig(**config.train.to_dict())
  workdir = pathlib.Path(_WORKDIR.value).absolute()
  try:
    workdir.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    raise InputError(f'--workdir={workdir}: {e.strerror}') from None
  file = workdir / 'tok.json'
  if not file.exists():
    corpus.train_tokenizer(MODEL.vocab_size).save(str(file))
  tokenizer = tokenizers.Tokenizer.from_file(str(file))
  tokens = corpus.encode(tokenizer, held_out=False)
  held_out = corpus.encode(tokenizer, held_out=True)
  started = time.perf_counter()
  _, params, figures = training.train(
    MODEL, cfg, tokens, held_out, workdir / 'ckpt'
  )
  print(f'{figures} after {time.perf_counter() - started:.0f} s')
  if _OUTPUT.value:
    output = pathlib.Path(_OUTPUT.value)
    text = {'tokens': tokens, 'held_out': held_out}
    facts = _facts(cfg, params, figures, text)
    skip_set = facts.pop('skip_set')
    _export(output, params, file, skip_set)
    (output / 'README.md').write_text(CARD.format(**facts), encoding='utf-8')
    print(CARD.format(**facts))


def _facts(cfg, params, figures, text) -> dict:
  """What the model card says, measured or from the run's settings."""
  import jax
  import numpy as np

  from swift_jax import llama, skip_mask, training
  from swift_jax.demo import corpus

  graphdef, _ = llama.abstract_model(MODEL)
  layers = MODEL.num_hidden_layers
  rows = training.spread_rows(text['tokens'], cfg.seq_len, 8)[:, :-1]
  found = training.find_skip_set(graphdef, params, rows, layers, 0.45, 150)
  rows = training.spread_rows(text['held_out'], cfg.seq_len, 10**6)[:, :-1]
  matchness = training.make_matchness(graphdef)
  full = skip_mask.none_skipped(layers)
  shares = {
    name: np.mean(
      [
        matchness(params, rows[i : i + 8], mask, full)
        for i in range(0, len(rows) - 7, 8)
      ]
    )
    for name, mask in (
      ('matchness_found', found),
      ('matchness_uniform', skip_mask.uniform(layers, 0.45)),
    )
  }
  num_bytes = sum(len(t.encode()) for t in corpus.documents(held_out=True))
  bits_per_token = figures['loss'] / np.log(2)
  return {
    **dataclasses.asdict(cfg),
    **shares,
    'skip_set': found,
    'skip_picture': found.blocks(),
    'layers': layers,
    'width': MODEL.hidden_size,
    'params': sum(p.size for p in jax.tree.leaves(params)) / 1e6,
    'vocab': MODEL.vocab_size,
    'python': platform.python_version(),
    'corpus_tokens': len(text['tokens']),
    'held_out_tokens': len(text['held_out']),
    'bits_per_byte': bits_per_token * len(text['held_out']) / num_bytes,
    'hours': figures['seconds'] / 3600,
    'devices': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
    'loss': figures['loss'],
    'loss_skipped': figures['loss_skipped'],
    'tokens': figures['tokens'],
  }


def _export(output, params, tokenizer_file, skip_set) -> None:
  """Writes the model, its tokenizer and the skip set that was found."""
  import jax
  import jax.numpy as jnp
  import transformers

  from swift_jax import checkpoint
  from swift_jax.demo import corpus

  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_file=str(tokenizer_file), eos_token=corpus.END_OF_TEXT
  )
  checkpoint.export_hf(
    output,
    dataclasses.replace(MODEL, dtype='bfloat16'),
    jax.tree.map(lambda p: p.astype(jnp.bfloat16), params),
    tokenizer=tokenizer,
    generation_config={'eos_token_id': tokenizer.eos_token_id},
  )
  sets = json.dumps({'demo': skip_set.to_lists()})
  (output / 'skip_sets.json').write_text(sets + '\n', encoding='utf-8')


if __name__ == '__main__':
  common.run(
    main,
    str(pathlib.Path(common.__file__).parent.parent / 'configs/train_demo.py'),
    {'train': common.train_config(), 'cpu': {'devices': 2}},
  )

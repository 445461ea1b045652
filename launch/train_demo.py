"""Trains the demo model on the source of Python's standard library.

  python launch/train_demo.py --config=configs/train_demo.py --workdir=DIR
  python launch/train_demo.py --workdir=DIR --output=FOLDER     (exports it)

DIR holds the tokenizer and Orbax checkpoints; started again, training goes on
where it stopped. With --output the trained model is written there in Hugging
Face format (bfloat16), with a model card that says how it was made.
"""

from __future__ import annotations

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
| time | {hours:.1f} hours on {devices} |

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
    export(
      pathlib.Path(_OUTPUT.value), cfg, params, figures, file, tokens, held_out
    )


def export(output, cfg, params, figures, tokenizer_file, tokens, held_out):
  """Writes the model, its tokenizer and its card."""
  import dataclasses

  import jax
  import jax.numpy as jnp
  import transformers

  from swift_jax import checkpoint
  from swift_jax.demo import corpus

  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_file=str(tokenizer_file), eos_token=corpus.END_OF_TEXT
  )
  half = dataclasses.replace(MODEL, dtype='bfloat16')
  params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
  checkpoint.export_hf(
    output,
    half,
    params,
    tokenizer=tokenizer,
    generation_config={'eos_token_id': tokenizer.eos_token_id},
  )
  num_bytes = sum(len(t.encode()) for t in corpus.documents(held_out=True))
  bits_per_token = figures['loss'] / jnp.log(2)
  card = CARD.format(
    layers=MODEL.num_hidden_layers,
    width=MODEL.hidden_size,
    params=sum(p.size for p in jax.tree.leaves(params)) / 1e6,
    vocab=MODEL.vocab_size,
    python=platform.python_version(),
    corpus_tokens=len(tokens),
    held_out_tokens=len(held_out),
    bits_per_byte=float(bits_per_token) * len(held_out) / num_bytes,
    hours=figures['seconds'] / 3600,
    devices=f'{jax.device_count()} device(s), {jax.devices()[0].device_kind}',
    **dataclasses.asdict(cfg),
    **{name: figures[name] for name in ('loss', 'loss_skipped', 'tokens')},
  )
  (output / 'README.md').write_text(card)


if __name__ == '__main__':
  common.run(
    main,
    str(pathlib.Path(common.__file__).parent.parent / 'configs/train_demo.py'),
    {'train': common.train_config(), 'cpu': {'devices': 2}},
  )

"""Random models: of a published shape on the device, or of any size on disk.

  python -m swift_jax.benchmark.random_model FOLDER JSON

The command writes a model with the demo's tokenizer; JSON holds fields of
`ModelConfig`. It is a process of its own, so that the benchmark needs no memory for
the model.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import shutil
import sys

from flax import nnx
import jax
import jax.numpy as jnp

from swift_jax.checkpoint import export, hub
from swift_jax.config import shapes
from swift_jax.config.settings import ModelConfig
from swift_jax.model import llama
from swift_jax.runtime.engine import Engine
from swift_jax.runtime.model import Model
from swift_jax.typing import Array

_VOCABULARY = 2048  # size of the demo tokenizer's vocabulary
_LAYERS = 6  # few, so that programs are small beside the weights
_NARROW = {
  'hidden_size': 64,
  'intermediate_size': 128,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'head_dim': 16,
}


# The shapes of Llama 2's configs, with a cache for at most 2,048 tokens.
SHAPES = {
  name: dataclasses.replace(shapes.SHAPES[name], max_position_embeddings=2048)
  for name in ('llama2_7b', 'llama2_13b')
}


def of_shape(name: str) -> Model:
  """A model of a published shape with random weights.

  It shows the cost of passes, but not the acceptance.
  """
  graphdef, abstract = llama.abstract_model(SHAPES[name])
  leaves, treedef = jax.tree.flatten(nnx.to_pure_dict(abstract))
  # One after another: all weights at once would need half as much memory more.
  keys = jax.random.split(jax.random.key(0), len(leaves))
  weights = [
    jax.block_until_ready(_normal(key, leaf.shape, leaf.dtype))
    for key, leaf in zip(keys, leaves, strict=True)
  ]
  params = jax.tree.unflatten(treedef, weights)
  return Engine(SHAPES[name], graphdef, params).model


@functools.partial(jax.jit, static_argnums=(1, 2))
def _normal(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
  return 0.02 * jax.random.normal(key, shape, dtype)


def narrow(num_layers: int) -> ModelConfig:
  """The config of a model so small that a start spends its time on compiling."""
  return ModelConfig(
    vocab_size=_VOCABULARY,
    num_hidden_layers=num_layers,
    max_position_embeddings=512,
    **_NARROW,
  )


def heavy(weight_bytes: int) -> ModelConfig:
  """The config of a model with so many bytes of float32 weights, in a few layers.

  The size is approximate.
  """
  # A layer of width D: 4 D D for attention, 3 D (2 D) for the MLP.
  width = (weight_bytes / 4 / _LAYERS / 10) ** 0.5
  heads = max(1, round(width / 128))
  return ModelConfig(
    vocab_size=_VOCABULARY,
    hidden_size=heads * 128,
    intermediate_size=heads * 256,
    num_hidden_layers=_LAYERS,
    num_attention_heads=heads,
    num_key_value_heads=heads,
    head_dim=128,
    max_position_embeddings=512,
  )


def write(folder: pathlib.Path, cfg: ModelConfig) -> None:
  """Writes a random model's checkpoint, which transformers and `load` can read."""
  params = nnx.to_pure_dict(llama.init_model(cfg, seed=0)[1])
  export.export_hf(folder, cfg, params)
  for file in hub.DEMO_MODEL.glob('tokenizer*'):
    shutil.copy(file, folder)


if __name__ == '__main__':
  write(pathlib.Path(sys.argv[1]), ModelConfig(**json.loads(sys.argv[2])))

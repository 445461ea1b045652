"""Fuses projections that read the same input into one matrix: q, k, v and gate, up.

The model runs the fused form: fewer and larger products cost less wherever each
product has a fixed cost, most of all in a pass over a few tokens. Checkpoints, and
training by Muon, use the separate form. Both forms are trees of the same nesting:

  q_proj [D, N H], k_proj, v_proj [D, K H]  <->  qkv_proj [D, K, G + 2, H]
  gate_proj, up_proj [D, F]                 <->  gate_up_proj [D, 2, F]

Each key/value head stands beside its G query heads, so that both forms split
over devices along K and along F.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from flax import traverse_util
import jax.numpy as jnp

from swift_jax.config.settings import ModelConfig
from swift_jax.typing import Array

Path = tuple[str | int, ...]
Tree = dict[Any, Any]

# The place of each separate projection on the fused one's last axis but one.
_PARTS = {
  'qkv_proj': {
    'q_proj': slice(None, -2),
    'k_proj': slice(-2, -1),
    'v_proj': slice(-1, None),
  },
  'gate_up_proj': {'gate_proj': slice(0, 1), 'up_proj': slice(1, 2)},
}
_FUSED_NAME = {part: name for name, parts in _PARTS.items() for part in parts}


def separate_paths(paths: Iterable[Path]) -> Iterator[Path]:
  """The paths of the separate form, from the paths of the fused form."""
  for *module, name, leaf in paths:
    for part in _PARTS.get(name, (name,)):
      yield *module, part, leaf


def separate(flat: Mapping[Path, Array], path: Path) -> Array:
  """The parameter that `path` names in the separate form.

  Args:
    flat: fused parameters by path.
  """
  *module, name, leaf = path
  if name not in _FUSED_NAME:
    return flat[path]
  fused_name = _FUSED_NAME[name]
  whole = flat[(*module, fused_name, leaf)]
  part = whole[..., _PARTS[fused_name][name], :]
  leading = 1 if leaf == 'kernel' else 0
  return part.reshape(*part.shape[:leading], -1)


def split(params: Tree) -> Tree:
  """Turns fused parameters into the separate form."""
  flat = traverse_util.flatten_dict(params)
  paths = separate_paths(flat)
  return traverse_util.unflatten_dict({p: separate(flat, p) for p in paths})


def fuse(params: Tree, cfg: ModelConfig) -> Tree:
  """Turns separate parameters, of the model or of one layer, into the fused form."""
  fused: dict[Path, Array] = {}
  parts: dict[Path, dict[str, Array]] = {}
  for path, value in traverse_util.flatten_dict(params).items():
    *module, name, leaf = path
    if name in _FUSED_NAME:
      whole = (*module, _FUSED_NAME[name], leaf)
      parts.setdefault(whole, {})[name] = value
    else:
      fused[path] = value
  inner = {
    'qkv_proj': (cfg.num_key_value_heads, -1, cfg.head_dim),
    'gate_up_proj': (1, cfg.intermediate_size),
  }
  for path, by_name in parts.items():
    name = path[-2]
    rows = [by_name[part] for part in _PARTS[name]]
    rows = [row.reshape(*row.shape[:-1], *inner[name]) for row in rows]
    fused[path] = jnp.concatenate(rows, axis=-2)
  return traverse_util.unflatten_dict(fused)

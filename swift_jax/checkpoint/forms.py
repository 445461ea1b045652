"""The forms of a model's parameters: separate, fused, or a stack of layers.

Checkpoints, and training by Muon, use separate projections. Passes use one of
the other two forms (see `layers.is_stacked`):

- fused: projections that read the same input are one matrix. Fewer and larger
  products cost less wherever each product has a fixed cost, most of all in a pass
  over a few tokens. Each layer is a tree of the same nesting:

    q_proj [D, N H], k_proj, v_proj [D, K H]  <->  qkv_proj [D, K, G + 2, H]
    gate_proj, up_proj [D, F]                 <->  gate_up_proj [D, 2, F]

  Each key/value head stands beside its G query heads, so that the fused form
  splits over devices along K and along F.
- stack: each array of `layers` has an axis L in front, in place of a tree for each
  layer. Kernels have D last: q, k, v, gate, up and the head stand as in a file of
  Hugging Face, [out, in].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from flax import traverse_util
import jax.numpy as jnp

from swift_jax.config.settings import ModelConfig
from swift_jax.model import layers
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
_HEAD, _TURNED_HEAD = ('lm_head', 'kernel'), ('lm_head', 'embedding')
_FUSED_NAME = {part: name for name, parts in _PARTS.items() for part in parts}


def is_stacked(path: Path) -> bool:
  """Whether the path leads to a stack of layers."""
  return path[0] == 'layers' and not isinstance(path[1], int)


def in_stack(path: Path) -> Path:
  """The path of the array that has a separate parameter, in the form of a stack."""
  if path == _HEAD:
    return _TURNED_HEAD
  return ('layers', *path[2:]) if path[0] == 'layers' else path


def is_turned(path: Path) -> bool:
  """Whether the form of a stack has a separate kernel as [out, in]."""
  is_turned_kernel = path[-1] == 'kernel' and path[-2] in _FUSED_NAME
  return path == _HEAD or is_turned_kernel


def separate_paths(flat: Mapping[Path, Array]) -> Iterator[Path]:
  """The paths of the separate form, from the parameters of another form."""
  for path, value in flat.items():
    *module, name, leaf = path
    if is_stacked(path):
      for i in range(value.shape[0]):
        yield 'layers', i, *path[1:]
    elif path == _TURNED_HEAD:
      yield _HEAD
    else:
      for part in _PARTS.get(name, (name,)):
        yield *module, part, leaf


def separate(flat: Mapping[Path, Array], path: Path) -> Array:
  """The parameter that `path` names in the separate form.

  Args:
    flat: parameters of another form, by path.
  """
  *module, name, leaf = path
  if path in flat:
    return flat[path]
  if in_stack(path) in flat:
    part = flat[in_stack(path)]
    part = part[path[1]] if path[0] == 'layers' else part
    return part.T if is_turned(path) else part
  fused_name = _FUSED_NAME[name]
  whole = flat[(*module, fused_name, leaf)]
  part = whole[..., _PARTS[fused_name][name], :]
  leading = 1 if leaf == 'kernel' else 0
  return part.reshape(*part.shape[:leading], -1)


def split(params: Tree) -> Tree:
  """Turns parameters of another form into the separate form."""
  flat = traverse_util.flatten_dict(params)
  paths = separate_paths(flat)
  return traverse_util.unflatten_dict({p: separate(flat, p) for p in paths})


def join(params: Tree, cfg: ModelConfig, platform: str) -> Tree:
  """Turns separate parameters into the form of passes on `platform`."""
  if not layers.is_stacked(platform):
    return fuse(params, cfg)
  joined: dict[Path, Array] = {}
  stacks: dict[Path, list[Array]] = {}
  for path, value in sorted(traverse_util.flatten_dict(params).items()):
    part = value.T if is_turned(path) else value
    if path[0] == 'layers':
      stacks.setdefault(in_stack(path), []).append(part)
    else:
      joined[in_stack(path)] = part
  joined |= {path: jnp.stack(parts) for path, parts in stacks.items()}
  return traverse_util.unflatten_dict(joined)


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
    'qkv_proj': (cfg.kv_heads, -1, cfg.head_dim),
    'gate_up_proj': (1, cfg.intermediate_size),
  }
  for path, by_name in parts.items():
    name = path[-2]
    rows = [by_name[part] for part in _PARTS[name]]
    rows = [row.reshape(*row.shape[:-1], *inner[name]) for row in rows]
    fused[path] = jnp.concatenate(rows, axis=-2)
  return traverse_util.unflatten_dict(fused)

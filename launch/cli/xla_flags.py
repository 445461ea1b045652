"""An XLA flag that makes passes over several tokens quicker on a CPU."""

from __future__ import annotations

from collections.abc import MutableMapping
import importlib.metadata
import importlib.util

# In this jaxlib version YNNPACK fusions are on by default. They make passes over 8
# and more tokens slower (docs/performance.md). They also make some matrix products
# wrong, of shapes other than ours (jax issue 39103).
_VERSION = '0.10.2'
_FLAG = '--xla_cpu_experimental_ynn_fusion_type'
# Packages of accelerators. With one of them the CPU does not decode, and its XLA
# might not know the flag.
_ACCELERATORS = ('libtpu', 'jax_plugins')


def set_for_cpu(environ: MutableMapping[str, str]) -> None:
  """Switches the fusions off, unless the user has set the flag.

  XLA reads its flags when it first computes.
  """
  given = environ.get('XLA_FLAGS', '')
  if _FLAG in given or importlib.metadata.version('jaxlib') != _VERSION:
    return
  if not any(map(importlib.util.find_spec, _ACCELERATORS)):
    environ['XLA_FLAGS'] = f'{given} {_FLAG}='.strip()

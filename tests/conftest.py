"""Shapes in annotations are checked while tests run; tests need no accelerator."""

import os

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')

from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

# The files whose annotations are shapes; before any of them is imported.
install_import_hook(
  [
    'swift_jax.decoding',
    'swift_jax.layers',
    'swift_jax.llama',
    'swift_jax.search.drift',
    'swift_jax.search.gaussian_process',
    'swift_jax.search.matchness',
    'swift_jax.search.paper',
    'swift_jax.search.paper_process',
    'swift_jax.search.proposals',
    'swift_jax.search.searcher',
    'swift_jax.search.surrogate',
  ],
  'annotations.check',
)

# The first example compiles, and a machine may be busy: time decides nothing.
settings.register_profile(
  'swift_jax', deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile('swift_jax')

"""Array types and the letters that name their axes everywhere.

B  batch                 N  query heads            F  MLP width
T  new tokens            K  key/value heads        V  vocabulary
S  cache slots           G  N / K                  C  candidate masks
L  layers                H  head dimension         W  verify width
D  model width
"""

import jax
from jaxtyping import Bool, Float, Int, UInt
import numpy as np

# What the host has fetched keeps the structure and the names it had before.
Array = jax.Array | np.ndarray

__all__ = ['Array', 'Bool', 'Float', 'Int', 'UInt']

"""Array types and the letters that name their axes everywhere.

B  batch                 N  query heads            F  MLP width
T  new tokens            K  key/value heads        V  vocabulary
S  cache slots           G  N / K                  C  candidate masks
L  layers                H  head dimension         W  verify width
D  model width
"""

from collections.abc import Callable
from typing import TypeVar

from jax import Array
import jaxtyping
from jaxtyping import Bool, Float, Int

__all__ = ['Array', 'Bool', 'Float', 'Int', 'typed']

F = TypeVar('F', bound=Callable)


def typed(function: F) -> F:
  """Checks the shapes in `function`'s annotations where checking is switched on.

  Tests switch it on with `SWIFT_JAX_TYPECHECK=1`; elsewhere the function comes
  back as it is, so the annotations cost nothing.
  """
  import os

  if os.environ.get('SWIFT_JAX_TYPECHECK') != '1':
    return function
  from beartype import beartype

  return jaxtyping.jaxtyped(typechecker=beartype)(function)

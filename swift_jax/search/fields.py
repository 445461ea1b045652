"""What is valid in the fields of our files, whichever the file."""

from __future__ import annotations

import re
from typing import Any

from swift_jax.checks import MAX_INT


def is_int(value: Any, low: int) -> bool:
  """An integer, no boolean, in [low, MAX_INT]."""
  return type(value) is int and low <= value <= MAX_INT


def is_fingerprint(value: Any) -> bool:
  """What `checkpoint.fingerprint` gives."""
  return isinstance(value, str) and bool(re.fullmatch('[0-9a-f]{16}', value))

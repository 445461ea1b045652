"""Prints the benchmark's tables, and its progress on standard error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
import sys
from typing import TYPE_CHECKING, Any

from cli import console

if TYPE_CHECKING:
  from swift_jax.benchmark.report import Table


def print_tables(tables: Iterable[Table]) -> None:
  """Prints tables, each after a blank line."""
  for table in tables:
    console.write(f'\n{table.text()}\n')


def print_figures(title: str, figures: Mapping[str, Any]) -> None:
  """Prints a title and one line for each figure."""
  from swift_jax.benchmark.report import show

  lines = [f'  {name:<28} {show(value)}' for name, value in figures.items()]
  console.write('\n'.join(['', title, *lines, '']))


def say(what: str) -> None:
  """Writes a line of progress to standard error, apart from the tables."""
  print(f'... {what}', file=sys.stderr, flush=True)

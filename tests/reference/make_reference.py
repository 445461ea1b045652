"""Writes reference.npz with transformers and torch (the `parity` extra).

In tests/: python -m reference.make_reference
"""

import pathlib
import tempfile

import numpy as np

from reference import cases, hugging_face


def main() -> None:
  arrays = {}
  for name in cases.CASES:
    with tempfile.TemporaryDirectory() as folder:
      model = hugging_face.load(name, pathlib.Path(folder))
    tokens = hugging_face.greedy(model, cases.prompt(name))
    logits = hugging_face.logits(model, tokens)
    arrays[f'{name}/tokens'] = tokens.astype(np.uint8)
    arrays[f'{name}/logits'] = logits[list(cases.STORED_POSITIONS)]
    top = np.sort(logits[cases.PROMPT_LENGTH - 1 : -1])[:, -2:]
    print(
      f'{name}: {len(set(tokens.tolist()))} different tokens,'
      f' logits of spread {logits.std():.2f},'
      f' smallest gap of the best two {np.diff(top).min():.4f}'
    )
  np.savez_compressed(cases.REFERENCE, **arrays)


if __name__ == '__main__':
  main()

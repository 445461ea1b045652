"""The demo model: a small Llama that was trained on two CPU cores."""

import pathlib

MODEL_DIR = pathlib.Path(__file__).parent / 'model'

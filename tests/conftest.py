"""Shapes in annotations are checked while tests run; tests need no accelerator."""

import os

os.environ.setdefault('SWIFT_JAX_TYPECHECK', '1')
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')

"""What the launchers share: flags and config, console and signals, jax's set-up.

Launchers are scripts: `launch/` stands first on their path, so this is `cli`.
"""

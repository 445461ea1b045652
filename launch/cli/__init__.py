"""Modules that the launchers share: flags, config, console, signals, jax's set-up.

Launchers are scripts, so `launch/` stands first on their import path and this
package is called `cli`.
"""

"""``python -m pgembed`` is the same as ``pgembed``."""

from __future__ import annotations

from pgembed.cli import main

main()

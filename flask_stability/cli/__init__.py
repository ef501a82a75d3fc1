"""The command line's old address, which entry points of older installations name."""

from ..operate.cli import stability as stability

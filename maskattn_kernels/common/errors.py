# SPDX-License-Identifier: BSD-3-Clause
"""Errors that commands show as one line."""

__all__ = ["CommandError"]


class CommandError(RuntimeError):
    """A command cannot go on, and its one line says all there is to say: exit code 1."""

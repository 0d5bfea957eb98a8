# SPDX-License-Identifier: BSD-3-Clause
"""The error of data that cannot be used."""

__all__ = ["DataError"]


class DataError(ValueError):
    """Data that cannot be used: one line with what is wrong, in which file, and what to do."""

# SPDX-License-Identifier: BSD-3-Clause
"""Words for messages: errors of others in one line, and lists of names."""

from collections.abc import Iterable

__all__ = ["first_line", "one_line", "quoted"]


def one_line(error: BaseException) -> str:
    """The message of ``error`` in one line; the name of its class if the message is empty.

    Example:
        >>> from maskattn_kernels.common.text import one_line
        >>> one_line(ValueError("no such\\n  file")), one_line(KeyError())
        ('no such file', 'KeyError')
    """
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of the message of ``error``, for errors that add a page of details.

    Example:
        >>> from maskattn_kernels.common.text import first_line
        >>> first_line(RuntimeError("out of memory\\nframe 1 ..")), first_line(KeyError())
        ('out of memory', 'KeyError')
    """
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def quoted(names: Iterable[str]) -> str:
    """The ``names`` in quotes, separated by commas.

    Example:
        >>> from maskattn_kernels.common.text import quoted
        >>> print(quoted(("sparse", "dense")))
        "sparse", "dense"
    """
    return ", ".join(f'"{name}"' for name in names)

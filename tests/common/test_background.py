# SPDX-License-Identifier: BSD-3-Clause
"""Work in threads ends well wherever its generator is closed."""

import threading

from maskattn_kernels.common.background import ahead


def test_a_generator_may_be_closed_in_its_own_thread():
    """As garbage collection does after an interrupt."""
    suspended, done, errors = threading.Event(), threading.Event(), []

    def items():
        yield from (0, 1)
        suspended.wait(60)
        try:
            results.close()
        except RuntimeError as error:
            errors.append(error)
        done.set()
        yield 2

    results = ahead(items())
    assert next(results) == 0
    suspended.set()
    assert done.wait(60) and not errors

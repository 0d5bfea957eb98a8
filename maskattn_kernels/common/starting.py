# SPDX-License-Identifier: BSD-3-Clause
"""Importing this lets a signal end the command ``maskattn`` in one line while it still imports.

Errors of a half-done import would be long, and other packages may swallow the exception. Nothing
changes for other programs.
"""

import signal
import threading

from maskattn_kernels.common.signals import SIGNALS, end_process, is_command

if is_command() and threading.current_thread() is threading.main_thread():
    for _number in SIGNALS:
        signal.signal(_number, end_process)

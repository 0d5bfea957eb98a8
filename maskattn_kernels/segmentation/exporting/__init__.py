# SPDX-License-Identifier: BSD-3-Clause
"""From a checkpoint to a file that other runtimes run, checked where they run."""

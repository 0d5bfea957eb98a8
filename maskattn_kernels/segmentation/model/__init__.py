# SPDX-License-Identifier: BSD-3-Clause
"""The network with its heads, what it learns from, and what it is saved as."""

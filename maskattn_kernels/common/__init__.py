# SPDX-License-Identifier: BSD-3-Clause
"""What several parts of the package share and what needs none of them: a leaf."""

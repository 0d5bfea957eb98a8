# SPDX-License-Identifier: BSD-3-Clause
"""Which state of the sources made a result."""

import subprocess
from pathlib import Path

__all__ = ["git_commit", "own_commit"]


def git_commit(folder: Path) -> str | None:
    """Commit of a checkout, with ``+`` if it has changes; None where there is no checkout.

    Args:
        folder: of the checkout, or in it.
    """
    try:
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.strip() or None


def own_commit() -> str | None:
    """As `git_commit`, of this package; None where it was installed from a wheel."""
    root = Path(__file__).parents[2]  # of a wheel, site-packages, which may lie in another checkout
    return git_commit(root) if (root / "pyproject.toml").is_file() else None

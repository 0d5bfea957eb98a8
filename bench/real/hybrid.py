# SPDX-License-Identifier: BSD-3-Clause
"""Whole frames of CamVid at half their size, with some tiles at full size beside, and all tiles.

    python -m bench.real.hybrid --checkpoint BEST     the table, into hybrid.json and on stdout

The checkpoint comes from the run "camvid-scales-seed0" of plan.py, which is trained at both scales.
"""

import argparse
import json
import sys
from collections.abc import Sequence

from bench.real.plan import DATA
from bench.real.tables import HYBRID, hybrid_table
from maskattn_kernels.segmentation import Checkpoint, open_dataset
from maskattn_kernels.segmentation.scoring.steps import hybrid_steps

SHARES = (0.1, 0.2, 1 / 3, 0.5, 1.0)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, help="of a training on CamVid")
    given = parser.parse_args(argv)
    checkpoint = Checkpoint.from_pretrained(given.checkpoint)
    steps = hybrid_steps(checkpoint, open_dataset("folder", DATA / "camvid", "val"), SHARES)
    rows = [step.as_dict() for step in steps]
    HYBRID.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    print(hybrid_table())
    return 0


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: BSD-3-Clause
"""`maskattn_kernels.segmentation`: its names; each use needs only its own packages."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from repository import ROOT
from segmentation_runs import CLASSES, tiny_arguments, tiny_checkpoint, write_images

from maskattn_kernels import segmentation
from maskattn_kernels.common.extras import IMPORT_NAMES
from maskattn_kernels.segmentation.checkpoints import Checkpoint
from maskattn_kernels.segmentation.data.sample import Sample


def run_without(packages: set[str], code: str, folder: Path) -> subprocess.CompletedProcess:
    """Run Python code in a process of its own where these packages cannot be imported."""
    hide = f"import sys; sys.modules.update(dict.fromkeys({sorted(packages)}))\n"
    return subprocess.run(
        [sys.executable, "-c", hide + code],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def brought_by(extra: str) -> set[str]:
    """Import names of the packages that an extra lists itself."""
    tomllib = pytest.importorskip("tomllib", reason="tomllib comes with Python 3.11")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    names = {re.split(r"[^\w-]", line)[0] for line in extras[extra]}
    return {IMPORT_NAMES[name] for name in names if name in IMPORT_NAMES}


def test_no_public_name_is_that_of_a_module() -> None:
    """An import of the module would take the place of the name."""
    modules = {path.stem for path in Path(segmentation.__file__).parent.iterdir()}
    assert not modules & set(segmentation.__all__)


def test_every_public_name_is_there_and_typed() -> None:
    assert list(segmentation.__all__) == sorted(
        segmentation.__all__, key=lambda n: (n != "VOID", n)
    )
    tree = ast.parse(Path(segmentation.__file__).read_text())
    (guarded,) = (node for node in tree.body if isinstance(node, ast.If))
    typed = {alias.name for node in guarded.body for alias in node.names}
    assert typed == set(segmentation.__all__) <= set(dir(segmentation))
    for name in segmentation.__all__:
        assert getattr(segmentation, name) is not None
    assert segmentation.Checkpoint is Checkpoint
    with pytest.raises(AttributeError, match="has no attribute 'Checkpiont'"):
        segmentation.Checkpiont  # noqa: B018
    with pytest.raises(ImportError):
        from maskattn_kernels.segmentation import nothing  # noqa: F401


def test_importing_the_face_imports_nothing_of_the_extras(tmp_path: Path) -> None:
    code = (
        "from maskattn_kernels import segmentation\n"
        "from maskattn_kernels.segmentation import Classes, Sample, SegmentationNetwork\n"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    run = run_without(set(), code, tmp_path)
    assert run.returncode == 0, run.stderr
    assert set(run.stdout.split()) & set(IMPORT_NAMES.values()) <= {"numpy"}


def test_predict_and_segment_need_nothing_of_training(tmp_path: Path) -> None:
    """What an edge device lacks; with ``--panels 0`` not even matplotlib."""
    tiny_checkpoint(tmp_path / "checkpoint")
    write_images(tmp_path / "images", 2)
    code = """
from maskattn_kernels import cli
from maskattn_kernels.segmentation import Checkpoint
assert cli.main(["predict", "images", "--checkpoint", "checkpoint", "--out", "out"]) == 0
assert cli.main(["pick", "images", "--checkpoint", "checkpoint", "--count", "1"]) == 0
found = Checkpoint.from_pretrained("checkpoint").segment("images/00.png")
assert found.semantic.shape == (24, 40)
import matplotlib, scipy
print("done")
"""
    train = brought_by("train")
    assert {"pytorch_lightning", "torchmetrics", "sklearn", "skimage", "jsonargparse"} <= train
    run = run_without(train, code, tmp_path)
    assert run.returncode == 0 and run.stdout.endswith("done\n"), run.stderr
    assert len(list((tmp_path / "out" / "panels").iterdir())) == 2

    code = """
from maskattn_kernels import cli
words = ["predict", "images", "--checkpoint", "checkpoint", "--out"]
assert cli.main([*words, "plain", "--panels", "0"]) == 0
assert cli.main([*words, "shown"]) == 1
"""
    run = run_without({*train, "matplotlib"}, code, tmp_path)
    assert run.returncode == 0, run.stderr
    hint = "matplotlib is not installed; pip install 'maskattn_kernels[predict]'"
    assert run.stderr.splitlines()[-1] == f"maskattn predict: cannot run: {hint}"
    assert len(list((tmp_path / "plain" / "labels").iterdir())) == 2


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path) -> None:
    """Readers are imported when a data set is opened: each needs its own packages only."""
    (tmp_path / "images").mkdir()
    code = """
from maskattn_kernels import cli, segmentation
for use in (
    lambda: segmentation.open_dataset("digit-scenes"),
    lambda: segmentation.evaluate,
    lambda: segmentation.train,
):
    try:
        use()
    except ModuleNotFoundError as error:
        print(error)
try:
    segmentation.open_dataset("folder", ".")
except segmentation.DataError as error:
    print(error)
cli.main(["eval", "--checkpoint", "checkpoint", "--data", "digit-scenes"])
cli.main(["check-data", "--data", "digit-scenes"])
"""
    run = run_without({"sklearn", "torchmetrics", "pytorch_lightning"}, code, tmp_path)
    assert run.returncode == 0, run.stderr
    hint = "is not installed; pip install 'maskattn_kernels[train]'"
    sets, scores, training, folder = run.stdout.splitlines()
    assert sets == f"sklearn {hint}" and folder.startswith("classes.yaml: no such file")
    assert scores == f"torchmetrics {hint}"
    assert re.fullmatch(rf"(torchmetrics|pytorch_lightning) {re.escape(hint)}", training)
    assert run.stderr.splitlines() == [
        f"maskattn eval: cannot run: torchmetrics {hint}",
        f"maskattn check-data: cannot run: sklearn {hint}",
    ]


class Scenes:
    """Labelled images of the classes of the checkpoint."""

    classes = CLASSES

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Sample:
        image = np.full((20, 30, 3), 80 * index, dtype=np.uint8)
        return Sample(str(index), image, np.full((20, 30), index, dtype=np.uint8))


def test_checkpoints_may_be_given_by_their_folder(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", task="semantic")
    done: list[int] = []
    scores = segmentation.evaluate(checkpoint, Scenes(), batch_size=1, progress=done.append)
    again = segmentation.evaluate(tmp_path / "checkpoint", Scenes(), batch_size=1)
    assert repr(scores) == repr(again)
    assert done == [1, 2]
    images = write_images(tmp_path / "images", 1)
    given = [
        segmentation.predict(images, source, tmp_path / out, panels=0)
        for source, out in ((checkpoint, "a"), (tmp_path / "checkpoint", "b"))
    ]
    assert [summary["checkpoint"] for summary in given] == [None, str(tmp_path / "checkpoint")]
    first, second = ((tmp_path / out / "labels" / "00.png").read_bytes() for out in "ab")
    assert first == second


def test_train_is_the_command(tmp_path: Path, capsys) -> None:
    from maskattn_kernels.segmentation.training.command import main

    main(tiny_arguments(tmp_path / "command", steps=2))
    trained = segmentation.train(
        tmp_path / "tiny.yaml", out=tmp_path / "python", steps=2, network={"width": 4}
    )
    other = Checkpoint.from_pretrained(tmp_path / "command" / "best")
    assert trained.metrics == other.metrics
    for name, tensor in trained.network.state_dict().items():
        assert tensor.equal(other.network.state_dict()[name]), name
    with pytest.raises(ValueError, match=r"network\.depht") as caught:
        segmentation.train(network={"depht": 3})
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"^config: 'digits' is neither a file nor"):
        segmentation.train("digits")

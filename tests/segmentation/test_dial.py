# SPDX-License-Identifier: BSD-3-Clause
"""The keep ratio and the selector as choices of whoever uses a trained network."""

import json
import threading

import numpy as np
import pytest
import torch
from segmentation_runs import measure_quickly, tiny_checkpoint, write_images

from maskattn_kernels.segmentation import Checkpoint, evaluate, open_dataset
from maskattn_kernels.segmentation.data.errors import DataError
from maskattn_kernels.segmentation.model.dialed import dialed
from maskattn_kernels.segmentation.model.network import SegmentationNetwork
from maskattn_kernels.segmentation.prediction import command as prediction
from maskattn_kernels.segmentation.scoring import command as scoring
from maskattn_kernels.segmentation.scoring.keep_curve import curve_table, keep_curve


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    measure_quickly(monkeypatch)


IMAGE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def kept(checkpoint: Checkpoint, **options) -> dict[str, float]:
    found = checkpoint.segment(IMAGE, attended=True, **options)
    return {name: float(a.mask.mean()) for name, a in found.attended.items()}


def on_scenes(**network) -> tuple[Checkpoint, object]:
    dataset = open_dataset("digit-scenes", split="val", count=5)
    classes = dataset.classes
    torch.manual_seed(0)
    made = SegmentationNetwork(len(classes), classes.things, width=4, depth=2, **network)
    return Checkpoint(made.eval(), classes, 32), dataset


def test_segment_takes_another_ratio_and_leaves_the_network(tmp_path):
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", keep=0.5)
    checkpoint.network.eval()
    before = {name: t.clone() for name, t in checkpoint.network.state_dict().items()}
    config = json.dumps(checkpoint.network.config)
    assert set(kept(checkpoint).values()) == {0.5}
    assert set(kept(checkpoint, keep=0.125).values()) == {0.125}
    assert set(kept(checkpoint, keep=1).values()) == {1.0}
    assert kept(checkpoint, keep={"up2": 0.25})["up2 keys"] == 0.25
    assert set(kept(checkpoint).values()) == {0.5}
    assert json.dumps(checkpoint.network.config) == config
    assert all(torch.equal(t, before[n]) for n, t in checkpoint.network.state_dict().items())


@pytest.mark.parametrize("selector", ["entropy", "random", "none"])
def test_a_densely_trained_network_takes_masks_that_need_no_training(tmp_path, selector):
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", selector="none")
    keep = None if selector == "none" else 0.25
    shares = set(kept(checkpoint, selector=selector, keep=keep).values())
    assert shares == (set() if selector == "none" else {0.25})


def test_what_is_usual_is_that_of_the_trained_masks(tmp_path):
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint")
    checkpoint.reference = object()
    assert checkpoint.with_masks().reference is checkpoint.reference
    assert checkpoint.with_masks(keep=0.1).reference is None
    assert checkpoint.reference is not None


def test_copies_are_kept_until_the_network_changes(tmp_path):
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint")
    network = checkpoint.network
    first = dialed(network, 0.1)
    assert dialed(network, 0.1) is first
    assert dialed(network, 0.2) is not first
    assert dialed(network, 0.1, "random") is not first
    assert dialed(network, {"up1": 0.1}) is dialed(network, {"up1": 0.1})
    assert dialed(network) is network
    with torch.no_grad():
        next(network.parameters()).add_(1)
    again = dialed(network, 0.1)
    assert again is not first
    assert torch.equal(next(again.parameters()), next(network.parameters()))


def test_threads_may_use_different_ratios_at_once(tmp_path):
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint")
    ratios = [0.125, 0.25, 0.5, 1.0]
    expected = {keep: checkpoint.segment(IMAGE, keep=keep).semantic for keep in ratios}
    assert len({array.tobytes() for array in expected.values()}) > 1
    shared, found = Checkpoint.from_pretrained(tmp_path / "checkpoint"), []

    def use(keep):
        found.extend((keep, shared.segment(IMAGE, keep=keep).semantic) for _ in range(5))

    threads = [threading.Thread(target=use, args=(keep,)) for keep in ratios]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 20
    assert all(np.array_equal(semantic, expected[keep]) for keep, semantic in found)


def test_what_is_saved_is_the_dialed_network(tmp_path):
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", selector="threshold")
    quick = checkpoint.with_masks(keep=0.125, selector="topk")
    quick.save_pretrained(tmp_path / "quick")
    again = Checkpoint.from_pretrained(tmp_path / "quick")
    assert set(kept(again).values()) == {0.125}
    assert np.array_equal(again.segment(IMAGE).semantic, quick.segment(IMAGE).semantic)
    assert checkpoint.network.config["selector"] == "threshold"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"keep": 2}, "keep: expected a number from 0 to 1, got 2"),
        ({"keep": [0.1]}, "keep: expected a number from 0 to 1, got list"),
        ({"keep": 0.1, "selector": "none"}, "keep: .* all tokens take part"),
        ({"selector": "best"}, "selector: expected one of"),
        ({"selector": "threshold"}, "selector: ThresholdSelector compares logits with 0"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path, options, says):
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", selector="topk")
    with pytest.raises((ValueError, TypeError), match=f"^{says}") as caught:
        checkpoint.segment(IMAGE, **options)
    assert "\n" not in str(caught.value)


# --- a curve ------------------------------------------------------------------------------------


def test_a_curve_has_the_scores_of_each_ratio_and_reads_each_image_once():
    checkpoint, dataset = on_scenes()

    class Counted:
        classes, reads = dataset.classes, []

        def __len__(self):
            return len(dataset)

        def __getitem__(self, index):
            self.reads.append(index)
            return dataset[index]

    rows = keep_curve(checkpoint, Counted(), [0.1, 1.0], batch_size=2)
    assert sorted(Counted.reads) == list(range(5))
    for row in rows:
        alone = evaluate(checkpoint, dataset, keep=row["keep"], batch_size=2)
        assert json.dumps(row["scores"]) == json.dumps(alone)
    quick, dense = (row["cost"] for row in rows)
    assert quick["gflops"] < dense["gflops"]
    assert quick["parameters"] == dense["parameters"]
    lines = curve_table(rows).splitlines()
    assert len(lines) == 3 and lines[0].split()[:5] == ["keep", "GFLOPs", "ms", "images/s", "mIoU"]


def test_a_curve_tells_images_that_cannot_be_read():
    checkpoint, dataset = on_scenes()

    class Damaged:
        classes = dataset.classes

        def __len__(self):
            return 3

        def __getitem__(self, index):
            if index == 1:
                raise DataError("1.png: damaged")
            return dataset[index]

    failed = []
    rows = keep_curve(checkpoint, Damaged(), [0.1, 0.5], failed=failed.append)
    assert [str(error) for error in failed] == ["1.png: damaged"]
    assert all(row["scores"]["original size"]["mean"]["mIoU"] >= 0 for row in rows)
    with pytest.raises(DataError, match=r"^1\.png: damaged$"):
        keep_curve(checkpoint, Damaged(), [0.1, 0.5])


def test_eval_prints_and_saves_a_curve(tmp_path, capsys):
    checkpoint, _ = on_scenes(selector="none")
    checkpoint.save_pretrained(tmp_path / "checkpoint")
    out = tmp_path / "curve.json"
    common = ["--checkpoint", str(tmp_path / "checkpoint"), "--data", "digit-scenes"]
    common += ["--set", "count=3", "--out", str(out)]
    assert scoring.main([*common, "--selector", "entropy", "--keep", "0.05,0.25,1"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed[:4]] == ["keep", "0.05", "0.25", "1"]
    saved = json.loads(out.read_text())
    assert saved["selector"] == "entropy"
    assert [row["keep"] for row in saved["keeps"]] == [0.05, 0.25, 1]
    assert saved["keeps"][0]["scores"]["original size"]["mean"]["mIoU"] >= 0
    assert scoring.main([*common, "--selector", "random", "--keep", "0.1"]) == 0
    saved = json.loads(out.read_text())
    assert (saved["selector"], saved["keep"]) == ("random", 0.1)
    assert "at original size" in capsys.readouterr().out
    assert scoring.main(common) == 0
    assert json.loads(out.read_text())["selector"] == "none"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--keep", "0.1,x"], "--keep: expected a number from 0 to 1, got 'x'"),
        (["--keep", "0.1,0.2"], "keep: expected a network that selects"),
        (["--selector", "topk"], "selector: TopKSelector selects by the logits of mask heads"),
    ],
)
def test_wrong_arguments_of_eval_are_one_line(tmp_path, capsys, arguments, says):
    from maskattn_kernels import cli

    checkpoint, _ = on_scenes(selector="none")
    checkpoint.save_pretrained(tmp_path / "checkpoint")
    common = ["eval", "--checkpoint", str(tmp_path / "checkpoint"), "--data", "digit-scenes"]
    common += ["--out", str(tmp_path / "eval.json")]
    try:
        code = cli.main([*common, *arguments])
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2
    assert says in capsys.readouterr().err.strip().splitlines()[-1]


def test_predict_attends_as_it_is_told(tmp_path, capsys):
    tiny_checkpoint(tmp_path / "checkpoint", selector="none")
    images = write_images(tmp_path / "images", 2)
    common = [str(images), "--checkpoint", str(tmp_path / "checkpoint"), "--panels", "0"]
    gflops = []
    for number, keep in enumerate(("0.1", "0.5")):
        out = tmp_path / f"out{number}"
        assert (
            prediction.main([*common, "--out", str(out), "--selector", "entropy", "--keep", keep])
            == 0
        )
        summary = json.loads((out / "summary.json").read_text())
        assert (summary["selector"], summary["keep"]) == ("entropy", float(keep))
        gflops.append(summary["network"]["gflops"])
    assert gflops[0] < gflops[1]


def test_a_curve_is_of_whole_images(tmp_path):
    checkpoint, _ = on_scenes()
    checkpoint.save_pretrained(tmp_path / "checkpoint")
    common = ["--checkpoint", str(tmp_path / "checkpoint"), "--data", "digit-scenes"]
    for more in (["--tiles", "32"], ["--hybrid", "0.5"]):
        with pytest.raises(ValueError, match=r"^keep: expected one ratio with --tiles or --hybrid"):
            scoring.main([*common, *more, "--keep", "0.1,0.2"])

# SPDX-License-Identifier: BSD-3-Clause
"""The demo: photographs, masks, agreement of the networks, and a page that stands alone."""

import json
import re
from html.parser import HTMLParser

import pytest
import torch

pytest.importorskip("skimage", reason="the extra [demo] is not installed")
pytest.importorskip("matplotlib", reason="the extra [demo] is not installed")
pytest.importorskip("pytorch_lightning", reason="the extra [demo] is not installed")

from maskattn_kernels import cli
from maskattn_kernels.benchmark import network
from maskattn_kernels.demo import compare, photographs, run, training

SIDE = 32
HARDLY_ANY_TRAINING = (
    *("--data.size=32", "--data.batch_size=2", "--data.val_options.count=2"),
    *("--network.width=4", "--steps=4", "--val_every=4", "--log_every=2"),
)


@pytest.fixture
def small(monkeypatch):
    """One photograph of 32 x 32 pixels, the smallest network, hardly any time."""
    monkeypatch.setattr(network, "PRESET", "edge")
    monkeypatch.setattr(network, "CLASSES", 5)
    monkeypatch.setattr(photographs, "SIDE", SIDE)
    monkeypatch.setattr(photographs, "NAMES", ("chelsea",))
    monkeypatch.setattr(run, "CHART_KEEPS", (0.25, 1.0))
    monkeypatch.setattr(run, "FORWARD_SECONDS", 0.01)
    monkeypatch.setattr(run, "LAYER_SECONDS", 0.01)
    monkeypatch.setattr(training, "OPTIONS", (*training.OPTIONS, *HARDLY_ANY_TRAINING))
    monkeypatch.setattr(training, "PANELS", 1)
    # Processes of their own would not see the patches above; they are tested with the benchmark.
    monkeypatch.setattr(run, "in_fresh_process", lambda *args: 3 * 2**20)
    monkeypatch.setattr(compare, "in_fresh_process", lambda *args: 2**20)


@pytest.mark.parametrize("name", photographs.NAMES)
def test_photographs_come_with_scikit_image(name):
    photo = photographs.load(name, SIDE)
    assert photo.pixels.shape == (SIDE, SIDE, 3)
    assert 0 <= photo.pixels.min() < photo.pixels.max() <= 1
    image = photo.tensor()
    assert image.shape == (1, 3, SIDE, SIDE) and image.dtype == torch.float32
    torch.testing.assert_close(image.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)


def test_masks_select_the_strongest_places_at_each_scale():
    photo = photographs.load("rocket", SIDE)
    masks = photo.masks({"a": (32, 32), "b": (16, 16)}, keep=0.25)
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {"a": 256, "b": 64}
    saliency, chosen = torch.from_numpy(photo.saliency), masks["a"][0]
    assert saliency[chosen].min() >= saliency[~chosen].max()
    other = photographs.load("coffee", SIDE).masks({"a": (32, 32)}, keep=0.25)
    assert not torch.equal(masks["a"], other["a"])


def test_sizes_fit_the_network(small):
    networks = compare.build_networks()
    sizes = run.sizes_of(networks.dense, SIDE)
    _, used = networks.dense(torch.zeros(1, 3, SIDE, SIDE), return_masks=True)
    assert {name: tuple(mask.shape[-2:]) for name, mask in used.items()} == sizes


def test_networks_that_disagree_are_found(small):
    networks = compare.build_networks()
    photo = photographs.load("chelsea", SIDE)
    masks = photo.masks(run.sizes_of(networks.dense, SIDE), 0.25)
    found = compare.agreement(networks, photo.tensor(), masks)
    assert found.same_class > 0.99 and found.largest < 1e-3
    with torch.no_grad():
        networks.swapped.up_attention[0].qkv.weight.mul_(1.001)
    with pytest.raises(compare.Disagreement, match="swapped network is off by"):
        compare.agreement(networks, photo.tensor(), masks)


def test_layers_see_what_the_network_sees(small):
    networks = compare.build_networks()
    photo = photographs.load("chelsea", SIDE)
    masks = photo.masks(run.sizes_of(networks.dense, SIDE), 0.25)
    calls = compare.layer_calls(networks.dense, photo.tensor(), masks)
    assert list(calls) == list(networks.dense.scales)
    for scale, call in calls.items():
        assert torch.equal(call["kwargs"]["key_mask"], masks[scale].flatten(1))
    row = compare.measure_layer("up3", calls["up3"], 0.01)
    assert (row["tokens"], row["selected"]) == (SIDE * SIDE, SIDE * SIDE // 4)
    assert row["sparse"]["flops"] * 16 == row["dense"]["flops"]


class Page(HTMLParser):
    """Collects what a page refers to, and that its tags are closed."""

    def __init__(self):
        super().__init__()
        self.sources, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("img", "meta", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_command_leaves_a_page_that_stands_alone(small, tmp_path, capsys):
    assert cli.main(["demo", "--out", str(tmp_path / "new")]) == 0
    out, err = capsys.readouterr()
    path = tmp_path / "new" / "index.html"
    assert out.strip() == f"written: {path}"
    steps = re.findall(r"^\[ ?(\d+)/(\d+) ", err, re.MULTILINE)
    assert [int(number) for number, _ in steps] == list(range(1, int(steps[0][1]) + 1))

    text = path.read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert page.open == []
    assert len(page.sources) > 8
    assert page.sources.pop(page.sources.index("#learned")) and 'id="learned"' in text
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert "for 4 steps on" in text and text.count('class="panel"') == 4
    assert not re.search(r"https?://|\$[a-z]", re.sub(r"base64,[^\"]*", "", text))
    assert "The weights are random" in text

    numbers = json.loads((path.parent / "numbers.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in numbers["agreement"]] == ["chelsea"]
    assert len(numbers["layers"]) == 6 and len(numbers["forward"]["keeps"]) == 2
    assert numbers["forward"]["swapped"]["flops"] < numbers["forward"]["dense"]["flops"]


def test_a_disagreement_fails_the_command_and_writes_nothing(small, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(compare, "ACCURACY", 0.0)
    assert cli.main(["demo", "--out", str(tmp_path)]) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("maskattn demo: Disagreement: the swapped network is off by")
    assert list(tmp_path.iterdir()) == []

# SPDX-License-Identifier: BSD-3-Clause
"""The model card beside saved weights: what it says, and that an edited one is never replaced."""

import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError
from segmentation_runs import CLASSES, tiny_checkpoint

from maskattn_kernels.common.atomic import WriteError
from maskattn_kernels.segmentation import Checkpoint
from maskattn_kernels.segmentation.data.sample import Classes
from maskattn_kernels.segmentation.model.network import SegmentationNetwork


def test_card_says_what_the_checkpoint_is(tmp_path):
    saved = tiny_checkpoint(tmp_path, selector="topk")
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    metadata = yaml.safe_load(text.split("---\n")[1])
    assert metadata["library_name"] == "maskattn_kernels"
    assert metadata["pipeline_tag"] == "image-segmentation"
    assert metadata["license"] == "unknown"
    assert ModelCard(text).data.to_dict() == metadata, "as the hub reads it"
    numbers = sum(t.numel() for t in saved.network.state_dict().values())
    for line in (
        "| gives | the class of each pixel, and each object |",
        "| size | 32 x 32 pixels (height x width): an image is scaled to lie within this size, "
        "its aspect kept |",
        f"| weights | {numbers:,} numbers, float32, without code |",
        "| attention | selector topk, keep 0.25 |",
        "| PQ | 12.5 |",
    ):
        assert line in text.splitlines()
    for number, name in enumerate(CLASSES.names):
        assert f"| {number} | {name} | " in text
    assert 'Checkpoint.from_pretrained("PATH")' in text


def test_the_code_of_a_card_runs(tmp_path, monkeypatch):
    from PIL import Image

    tiny_checkpoint(tmp_path)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 24)).save("image.png")
    code = re.search(r"```python\n(.*?)```", Path("README.md").read_text(), flags=re.S)[1]
    exec(code.replace("PATH", str(tmp_path)), {})
    assert Path("overlay.png").is_file()


def test_half_precision_and_unknown_scores(tmp_path):
    checkpoint = tiny_checkpoint(tmp_path)
    checkpoint.metrics = {"PQ": float("nan")}
    checkpoint.save_pretrained(tmp_path, half=True)
    text = (tmp_path / "README.md").read_text()
    assert "numbers, float16, without code" in text and "Not known." in text


def test_names_of_classes_break_no_table(tmp_path):
    classes = Classes(("a|b\nc", "<b>"), (False, True), ((0, 0, 0), (9, 9, 9)), (3, 7))
    network = SegmentationNetwork(2, classes.things, width=4, depth=2)
    Checkpoint(network, classes, 32).save_pretrained(tmp_path)
    lines = (tmp_path / "README.md").read_text().splitlines()
    assert "| 0 | a\\|b c | stuff | 3 |" in lines and "| 1 | &lt;b> | thing | 7 |" in lines


def test_a_card_that_nobody_edited_follows_the_checkpoint(tmp_path):
    checkpoint = tiny_checkpoint(tmp_path)
    checkpoint.metrics = {"PQ": 55.0}
    checkpoint.save_pretrained(tmp_path)
    assert "| PQ | 55.0 |" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    "edit",
    [
        lambda card: card.write_text(card.read_text() + "More.\n"),
        lambda card: card.write_text("More.\n" + card.read_text()),
        lambda card: card.write_text(card.read_text().replace("license: unknown", "license: mit")),
        lambda card: card.write_text(card.read_text().replace("once edited, this", "this")),
        lambda card: card.write_text("My own.\n"),
        lambda card: card.write_text(""),
        lambda card: card.write_bytes(b"\xff\xfe\x00"),
    ],
)
def test_a_card_that_somebody_edited_stays(tmp_path, edit):
    checkpoint = tiny_checkpoint(tmp_path)
    card = tmp_path / "README.md"
    edit(card)
    edited = card.read_bytes()
    checkpoint.metrics = {"PQ": 55.0}
    checkpoint.save_pretrained(tmp_path)
    assert card.read_bytes() == edited
    assert Checkpoint.from_pretrained(tmp_path).metrics == {"PQ": 55.0}


def test_a_card_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / ".README.md.part").mkdir()
    with pytest.raises(WriteError, match=r"^cannot write .*README\.md"):
        tiny_checkpoint(tmp_path)


@pytest.fixture
def hub(monkeypatch):
    """A hub that keeps what is uploaded; `hub.card` is the card there, or what asking raises."""

    class Hub:
        card: Path | Exception | None = None
        uploaded: tuple[str, ...] = ()

        def download(self, repo, file, token):
            if isinstance(self.card, Path):
                return str(self.card)
            raise self.card

        def upload(self, repo_id, folder_path, token, ignore_patterns):
            there = {path.name for path in Path(folder_path).iterdir()}
            self.uploaded = tuple(sorted(there - set(ignore_patterns or ())))
            return f"https://hub/{repo_id}"

    hub = Hub()
    monkeypatch.setattr("huggingface_hub.create_repo", lambda *args, **options: None)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", hub.download)
    monkeypatch.setattr("huggingface_hub.upload_folder", hub.upload)
    return hub


def nothing_there():
    error = RemoteEntryNotFoundError.__new__(RemoteEntryNotFoundError)
    Exception.__init__(error, "no such file")
    return error


def test_push_to_hub_uploads_a_card_where_there_is_none(hub, tmp_path):
    hub.card = nothing_there()
    assert tiny_checkpoint(tmp_path).push_to_hub("me/mine") == "https://hub/me/mine"
    assert hub.uploaded == ("README.md", "config.json", "model.safetensors")


def test_push_to_hub_replaces_a_card_of_its_own_and_no_other(hub, tmp_path):
    checkpoint = tiny_checkpoint(tmp_path)
    hub.card = tmp_path / "README.md"
    checkpoint.push_to_hub("me/mine")
    assert "README.md" in hub.uploaded
    hub.card.write_text("My own.\n")
    checkpoint.push_to_hub("me/mine")
    assert hub.uploaded == ("config.json", "model.safetensors")


def test_push_to_hub_uploads_nothing_where_the_card_cannot_be_asked_for(hub, tmp_path):
    hub.card = LocalEntryNotFoundError("no answer")
    with pytest.raises(RuntimeError, match=r"^push_to_hub\('me/mine'\): no answer"):
        tiny_checkpoint(tmp_path).push_to_hub("me/mine")
    assert hub.uploaded == ()

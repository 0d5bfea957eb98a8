# SPDX-License-Identifier: BSD-3-Clause
"""attn_implementation="maskattn" against "sdpa" in models of transformers with random weights."""

import pytest
import torch

from maskattn_kernels.integrations.sdpa import replace_sdpa
from maskattn_kernels.integrations.transformers import register

hf = pytest.importorskip("transformers", reason="needs the package transformers")

B, N = 3, 9
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL_MLP = SMALL | {"intermediate_size": 48}
KEPT = (torch.arange(N) < torch.tensor([[N], [5], [2]])).long()
LEFT = KEPT.flip(1)
TEXT = {"input_ids": torch.arange(B * N).reshape(B, N) % 40, "attention_mask": KEPT}
IMAGE = {"pixel_values": torch.rand(B, 3, 32, 32, generator=torch.Generator().manual_seed(0))}
PATCHES = SMALL_MLP | {"image_size": 32, "patch_size": 8}


def bart():
    width = {"d_model": 32, "vocab_size": 40, "max_position_embeddings": 16}
    layers = {
        f"{side}_{name}": number
        for side in ("encoder", "decoder")
        for name, number in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 48))
    }
    return hf.BartModel(hf.BartConfig(**width, **layers))


def llama(**options):
    return hf.LlamaForCausalLM(
        hf.LlamaConfig(
            **{**SMALL_MLP, "num_attention_heads": 4, "num_key_value_heads": 2},
            vocab_size=40,
            **options,
        )
    )


def segformer():
    return hf.SegformerForSemanticSegmentation(
        hf.SegformerConfig(
            hidden_sizes=[8, 16, 20, 32], depths=[1, 1, 1, 1], decoder_hidden_size=16
        )
    )


def eomt():
    """An image encoder whose last block has masks of pairs."""
    return hf.EomtForUniversalSegmentation(hf.EomtConfig(**PATCHES, num_blocks=1, num_queries=4))


# name: (model, input, calls on the op, calls on SDPA)
MODELS = {
    "bert": (lambda: hf.BertModel(hf.BertConfig(vocab_size=40, **SMALL_MLP)), TEXT, 2, 0),
    "distilbert": (
        lambda: hf.DistilBertModel(
            hf.DistilBertConfig(vocab_size=40, dim=32, n_layers=2, n_heads=2, hidden_dim=48)
        ),
        TEXT,
        2,
        0,
    ),
    "modernbert": (
        lambda: hf.ModernBertModel(
            hf.ModernBertConfig(
                vocab_size=40,
                pad_token_id=0,
                **SMALL_MLP,
                local_attention=4,
                global_attn_every_n_layers=2,
            )
        ),
        TEXT,
        1,
        1,  # a sliding window
    ),
    "bart": (bart, TEXT, 4, 2),  # two layers of encoder, two of cross-attention; two causal ones
    "vit": (lambda: hf.ViTModel(hf.ViTConfig(**PATCHES)), IMAGE, 2, 0),
    "dinov2": (lambda: hf.Dinov2Model(hf.Dinov2Config(**PATCHES)), IMAGE, 2, 0),
    "clip": (lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**PATCHES)), IMAGE, 2, 0),
    "siglip": (lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(**PATCHES)), IMAGE, 2, 0),
    "segformer": (segformer, IMAGE, 4, 0),
    "eomt": (eomt, IMAGE, 1, 1),
    "llama": (llama, TEXT | {"attention_mask": LEFT}, 0, 2),
    "llama without a mask": (llama, {"input_ids": TEXT["input_ids"]}, 0, 2),
    "bert with a mask of pairs": (
        lambda: hf.BertModel(hf.BertConfig(vocab_size=40, **SMALL_MLP)),
        TEXT | {"attention_mask": torch.ones(B, 1, N, N, dtype=torch.bool).tril()},
        0,
        2,
    ),
}


def made(name):
    torch.manual_seed(0)
    model = MODELS[name][0]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def outputs(model, inputs, implementation):
    """The results of a model and the gradients of its parameters."""
    model.set_attn_implementation(implementation)
    assert model.config._attn_implementation == implementation
    out = model(**inputs)
    tensors = [t for t in out.values() if isinstance(t, torch.Tensor) and t.is_floating_point()]
    sum(t.square().mean() for t in tensors).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return tensors, gradients


@pytest.mark.parametrize("name", MODELS)
def test_results_and_gradients_are_those_of_sdpa(name):
    _, inputs, taken, handed_on = MODELS[name]
    model, calls = made(name), register()
    right, right_gradients = outputs(model, inputs, "sdpa")
    got, gradients = outputs(model, inputs, "maskattn")
    assert (calls.taken, calls.handed_on.total()) == (taken, handed_on), str(calls)
    exact = 0.0 if not taken else 1e-5
    for ours, theirs in zip(got, right, strict=True):
        torch.testing.assert_close(ours, theirs, atol=exact * 10, rtol=exact)
    largest = max(g.abs().max().item() for g in right_gradients)
    for ours, theirs in zip(gradients, right_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=exact * largest, rtol=exact * 100)


def test_generation_with_left_padding():
    """The prompt is causal; each further step has one query, whose mask is about keys alone."""
    model, calls = made("llama"), register()
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    texts = []
    for implementation in ("sdpa", "maskattn"):
        model.set_attn_implementation(implementation)
        texts.append(model.generate(TEXT["input_ids"], attention_mask=LEFT, **options))
    assert torch.equal(*texts)
    assert calls.taken == 6 and calls.handed_on.keys() == {"mask of pairs"}


def test_dropout_in_training_gives_what_sdpa_gives():
    model, calls = made("bert").train(), register()
    results = []
    for implementation in ("sdpa", "maskattn"):
        torch.manual_seed(0)
        model.set_attn_implementation(implementation)
        results.append(model(**TEXT).last_hidden_state)
    assert torch.equal(*results)
    assert str(calls) == "taken 0, handed on 2 (dropout 2)"


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_compiled_in_one_graph(name):
    model, calls = made(name), register()
    model.set_attn_implementation("maskattn")
    inputs = MODELS[name][1]
    with torch.no_grad():
        right = model(**inputs).last_hidden_state
        assert calls.taken == 2
        compiled = torch.compile(model, backend="aot_eager", fullgraph=name == "vit")
        torch.testing.assert_close(compiled(**inputs).last_hidden_state, right)


def test_padding_is_never_read():
    model = made("bert")
    register()
    model.set_attn_implementation("maskattn")
    embeds = torch.randn(B, N, 32)
    kept = {"attention_mask": KEPT}
    with torch.no_grad():
        right = model(inputs_embeds=embeds, **kept).last_hidden_state
        got = model(
            inputs_embeds=embeds.masked_fill(~KEPT.bool()[..., None], torch.nan), **kept
        ).last_hidden_state
    assert torch.equal(got[KEPT.bool()], right[KEPT.bool()])


def test_replace_sdpa_selects_tokens_of_an_image_encoder():
    """With transformers' own "sdpa", whose calls have no mask there."""
    model = made("vit")
    model.set_attn_implementation("sdpa")
    tokens = torch.arange(17) % 4 == 0
    with torch.no_grad():
        right = model(**IMAGE).last_hidden_state
        with replace_sdpa() as calls:
            torch.testing.assert_close(model(**IMAGE).last_hidden_state, right)
        with replace_sdpa(tokens) as some:
            assert not torch.allclose(model(**IMAGE).last_hidden_state, right)
    assert (calls.taken, some.with_tokens) == (2, 2)


def test_models_beyond_sdpa_raise():
    """transformers checks what a model supports for its own implementations only."""
    register()
    config = hf.Gemma2Config(**SMALL_MLP, num_key_value_heads=1, head_dim=16, vocab_size=40)
    model = hf.Gemma2Model(config).eval()
    model.set_attn_implementation("maskattn")
    with pytest.raises(NotImplementedError, match=r"^softcap: expected None .* Gemma2Attention"):
        model(input_ids=TEXT["input_ids"])


def test_older_versions_are_refused(monkeypatch):
    monkeypatch.setattr("transformers.masking_utils.sdpa_mask", lambda cache_position: None)
    with pytest.raises(ImportError, match=r"^transformers: expected version 5\.8 or newer, got "):
        register()

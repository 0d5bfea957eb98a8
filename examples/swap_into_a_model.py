# SPDX-License-Identifier: BSD-3-Clause
"""Put masked attention into a model that exists already, and measure what it saves.

    python examples/swap_into_a_model.py

The model is a stack of torch's own transformer layers over 2048 tokens, of which a quarter count
(the rest is padding). `swap_attention` exchanges each `nn.MultiheadAttention` for one with the same
weights whose cost follows the tokens that count.
"""

import copy
import time

import torch
from torch import nn

from maskattn_kernels import explain, swap_attention


def seconds(model: nn.Module, x: torch.Tensor, padding: torch.Tensor) -> float:
    """The best of three runs."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        model(x, src_key_padding_mask=padding)
        times.append(time.perf_counter() - start)
    return min(times)


torch.manual_seed(0)
layer = nn.TransformerEncoderLayer(128, 4, dim_feedforward=256, batch_first=True)
dense = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False).eval()

# A copy, to compare with. In your own code swap in place: parameters and state_dict stay the same.
swapped = copy.deepcopy(dense)
print(swap_attention(swapped))  # what was exchanged, and what was not and why

x = torch.randn(1, 2048, 128)
padding = torch.arange(2048)[None] >= 512  # torch's meaning: True = ignore this key

with torch.inference_mode():
    before = dense(x, src_key_padding_mask=padding)
    after = swapped(x, src_key_padding_mask=padding)
    difference = (before - after).abs()[~padding].max()  # what padding gives is of no interest
    print(f"largest difference {difference:.1e}")
    print(f"dense   {1e3 * seconds(dense, x, padding):6.1f} ms")
    print(f"swapped {1e3 * seconds(swapped, x, padding):6.1f} ms")

# Which backend did the work, and why not another one.
q = torch.empty(1, 4, 2048, 32)
print(explain(q, q, q, key_mask=~padding))

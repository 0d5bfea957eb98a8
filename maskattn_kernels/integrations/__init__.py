# SPDX-License-Identifier: BSD-3-Clause
"""Ways into other libraries: each module serves one, and is imported on its own.

- `maskattn_kernels.integrations.sdpa`: whatever calls torch's scaled_dot_product_attention, such as
  timm and diffusers.
- `maskattn_kernels.integrations.transformers`: Hugging Face models, by ``attn_implementation``.
- `maskattn_kernels.integrations.smp`: mask attention in models of segmentation_models_pytorch.

The rest of the package imports nothing from here.
"""

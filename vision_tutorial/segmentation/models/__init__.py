"""Networks that map images (B, 3, H, W) to logits (B, C, H, W). Importing fills their registry."""

from . import deconvnet, deeplab, deeplab_early, fcn, smp, unet  # noqa: F401

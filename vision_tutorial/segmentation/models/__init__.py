"""Networks that map images (B, 3, H, W) to logits (B, C, H, W). Importing fills their registry.

Options of several networks:
backbone: any timm model that gives features. output_stride: how much smaller than the image the
    last ones are; 8 and 16 for VGGs and where timm has it (ResNets, EfficientNets, ConvNeXts, …).
dropout: before the classifier. dropout_encoder: after each of the encoder's stages.
auxiliary: in training, also give the logits of a head on the encoder's last stage but one: 3x3
    convolution to `auxiliary_channels`, dropout .1, 1x1 to classes.
pretrained: true takes timm's weights of the backbone, a path takes a .safetensors or .pt file.
UserError is raised where options do not go together.
"""

from . import deeplab, fcn, smp, unet  # noqa: F401

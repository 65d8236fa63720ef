"""Key tables of files that MMDetection wrote: a ResNet-50 with FPN, as fact sheets list them."""


def norm(name, channels):
    """The entries of a batch normalization."""
    vectors = {f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}
    return vectors | {f"{name}.num_batches_tracked": ()}


def backbone_shapes(*, pyramid_norm):
    """ResNet-50 and FPN, whose convolutions have a normalization or biases."""
    shapes = {"backbone.conv1.weight": (64, 3, 7, 7), **norm("backbone.bn1", 64)}
    inputs = 64
    for stage, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), start=1):
        for block in range(blocks):
            name = f"backbone.layer{stage}.{block}"
            sizes = ((1, inputs, width), (3, width, width), (1, width, 4 * width))
            for number, (side, before, after) in enumerate(sizes, start=1):
                shapes[f"{name}.conv{number}.weight"] = (after, before, side, side)
                shapes |= norm(f"{name}.bn{number}", after)
            if block == 0:
                shapes[f"{name}.downsample.0.weight"] = (4 * width, inputs, 1, 1)
                shapes |= norm(f"{name}.downsample.1", 4 * width)
            inputs = 4 * width
    for level in range(4):
        for part, before, side in (("lateral_convs", 256 * 2**level, 1), ("fpn_convs", 256, 3)):
            name = f"neck.{part}.{level}"
            shapes[f"{name}.conv.weight"] = (256, before, side, side)
            shapes |= norm(f"{name}.bn", 256) if pyramid_norm else {f"{name}.conv.bias": (256,)}
    return shapes


def oln_shapes():
    """The published OLN."""
    shapes = backbone_shapes(pyramid_norm=False)
    linear = {"shared_fcs.0": (1024, 12544), "shared_fcs.1": (1024, 1024), "fc_reg": (4, 1024)}
    linear |= {"fc_bbox_score": (1, 1024), "fc_cls": (2, 1024)}
    for name, shape in linear.items():
        shapes |= {f"roi_head.bbox_head.{name}.weight": shape, f"roi_head.bbox_head.{name}.bias": shape[:1]}
    return shapes | rpn_shapes({"rpn_reg": 4, "rpn_obj": 1, "rpn_cls": 1})


def rpn_shapes(outputs):
    """An RPN head."""
    shapes = {"rpn_head.rpn_conv.weight": (256, 256, 3, 3), "rpn_head.rpn_conv.bias": (256,)}
    for name, number in outputs.items():
        shapes |= {f"rpn_head.{name}.weight": (number, 256, 1, 1), f"rpn_head.{name}.bias": (number,)}
    return shapes


def ensemble_shapes():
    """A detector with two box heads on an FPN."""
    shapes = backbone_shapes(pyramid_norm=True) | rpn_shapes({"rpn_cls": 3, "rpn_reg": 12})
    for suffix in ("", "_for_image"):
        for number in range(4):
            name = f"roi_head.bbox_head.shared_convs{suffix}.{number}"
            shapes |= {f"{name}.conv.weight": (256, 256, 3, 3), **norm(f"{name}.bn", 256)}
        name = f"roi_head.bbox_head.shared_fcs{suffix}.0"
        shapes |= {f"{name}.weight": (1024, 12544), f"{name}.bias": (1024,)}
    shapes |= {"roi_head.bbox_head.fc_reg.weight": (4, 1024), "roi_head.bbox_head.fc_reg.bias": (4,)}
    return shapes | {"roi_head.projection_for_image.weight": (512, 1024), "roi_head.projection_for_image.bias": (512,)}


def lp_ovod_shapes():
    """The published LP-OVOD after linear probing."""
    return ensemble_shapes() | {"roi_head.prototype": (48, 1024), "roi_head.prototype_novel": (17, 1024)}


def detpro_shapes():
    """The published DetPro, trained with RAL."""
    shapes = ensemble_shapes()
    for number in range(4):
        name = f"roi_head.mask_head.convs.{number}.conv"
        shapes |= {f"{name}.weight": (256, 256, 3, 3), f"{name}.bias": (256,)}
    for name, shape, outputs in (("upsample", (256, 256, 2, 2), 256), ("conv_logits", (1, 256, 1, 1), 1)):
        shapes |= {f"roi_head.mask_head.{name}.weight": shape, f"roi_head.mask_head.{name}.bias": (outputs,)}
    shapes |= {"roi_head.projection.weight": (512, 1024), "roi_head.projection.bias": (512,)}
    return shapes | {"roi_head.bg_embedding.weight": (512, 1), "roi_head.bg_embedding.bias": (512,)}

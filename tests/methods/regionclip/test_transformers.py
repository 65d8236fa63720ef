"""The dense transformer encoders against independent implementations, and the detectors on them."""

import math
from functools import partial

import pytest
import timm.models.davit
import torch
import torchvision
from detectron2.structures import Boxes, Instances
from open_clip.transformer import QuickGELU, TextTransformer
from timm.models.vision_transformer import VisionTransformer
from torch.nn import functional as F

from regionclip.clip.image_encoders.davit import DaViT, DaViTSize
from regionclip.clip.image_encoders.focalnet import FocalNet, FocalNetSize
from regionclip.clip.image_encoders.vit import MeanPooledViT
from regionclip.clip.region_text_encoder import RegionTextEncoder, clean_name
from regionclip.clip.text_encoder import Tokenizer, tokenize
from regionclip.config.checks import check_config
from regionclip.config.checks import test_class_count as class_count
from regionclip.config.keys import get_value
from regionclip.config.loading import load_config
from regionclip.data.datasets.custom_images import use_custom_image_folder
from regionclip.engine.checkpoint.loading import load_weights
from regionclip.engine.evaluation.evaluate import prepare_evaluation
from regionclip.errors import UserError
from regionclip.modeling.backbones.transformers import DaViTBackbone, SwinBackbone, ViTBackbone
from regionclip.modeling.build import build_model
from regionclip.testing.deterministic import fill_deterministic
from tests.helpers.images import write_image
from tests.helpers.paths import DATA, REPOSITORY


def filled(model):
    """Give every entry a value that is not the initial one, so that no part can hide."""
    generator = torch.Generator().manual_seed(1)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            scale = 0.3 if value.ndim < 2 else 0.7 / math.sqrt(value[0].numel())
            value.copy_(torch.randn(value.shape, generator=generator) * scale + (value.ndim < 2 and "weight" in name))
    return model.eval()


def images(height, width, count=2):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def test_vit_equals_timm_at_the_size_of_its_position_table():
    ours = filled(MeanPooledViT(width=32, depth=3, heads=2, image_size=64))
    norm = partial(torch.nn.LayerNorm, eps=1e-6)
    reference = VisionTransformer(
        img_size=64, embed_dim=32, depth=3, num_heads=2, num_classes=0, global_pool="avg", norm_layer=norm
    )
    reference.load_state_dict(ours.state_dict())
    tokens = reference.eval().forward_features(images(64, 64))[:, 1:]
    expected = reference.fc_norm(tokens).transpose(1, 2).unflatten(2, (4, 4))
    torch.testing.assert_close(ours.feature_map(images(64, 64)), expected, atol=1e-5, rtol=0)
    assert ours.feature_map(images(70, 95)).shape == (2, 32, 4, 5)  # whole patches only
    grid = ours.pos_embed[:, 1:].transpose(1, 2).reshape(1, 32, 4, 4)
    wide = torch.nn.functional.interpolate(grid, (4, 5), mode="bicubic", align_corners=False)
    expected = torch.cat([ours.pos_embed[:, :1], wide.reshape(1, 32, 20).transpose(1, 2)], dim=1)
    torch.testing.assert_close(ours._positions(4, 5), expected)


@torch.no_grad()
@pytest.mark.parametrize("size", [(128, 160), (240, 336), (232, 312)])
def test_swin_equals_torchvision(size):
    ours = filled(SwinBackbone(16, [1, 1, 2, 1], [1, 2, 4, 8], 7, 4.0, 4))
    reference = torchvision.models.SwinTransformer([4, 4], 16, [1, 1, 2, 1], [1, 2, 4, 8], [7, 7], num_classes=1).eval()
    renamed = {}
    for key, value in ours.state_dict().items():
        if key.startswith(("norm0", "norm1.", "norm2.")):
            continue
        for old, new in (("patch_embed.proj", "features.0.0"), ("patch_embed.norm", "features.0.2")):
            key = key.replace(old, new)
        if key.startswith("layers."):
            _, stage, rest = key.split(".", 2)
            position = 2 * int(stage) + (2 if rest.startswith("downsample") else 1)
            key = f"features.{position}.{rest.removeprefix('blocks.').removeprefix('downsample.')}"
        key = key.replace("mlp.fc1", "mlp.0").replace("mlp.fc2", "mlp.3")
        renamed[key] = value.flatten() if key.endswith("position_index") else value
    missing, unexpected = reference.load_state_dict(renamed, strict=False)
    assert set(missing) == {"head.weight", "head.bias"} and not unexpected
    expected = reference.norm(reference.features(images(*size))).permute(0, 3, 1, 2)
    torch.testing.assert_close(ours(images(*size))["stage5"], expected, atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("size", [(128, 160), (224, 224)])
def test_davit_equals_timm(size):
    dimensions = DaViTSize(widths=(16, 32, 64, 128), depths=(1, 1, 2, 1), heads=(1, 2, 4, 8), groups=(1, 2, 4, 8))
    ours = filled(DaViT(dimensions))
    reference = timm.models.davit.DaVit(
        depths=(1, 1, 2, 1),
        embed_dims=(16, 32, 64, 128),
        num_heads=(1, 2, 4, 8),
        channel_attn_v2=True,
        named_blocks=True,
        num_classes=0,
    )
    body = {key: value for key, value in ours.state_dict().items() if not key.startswith("norm.")}
    renamed = timm.models.davit._convert_florence2(
        {f"vision_tower.{key}": value for key, value in body.items()}, reference
    )
    missing, unexpected = reference.load_state_dict(renamed, strict=False)
    assert all("head" in key or key.startswith("norm_pre") for key in missing) and not unexpected
    expected = reference.eval().forward_features(images(*size))
    torch.testing.assert_close(ours.feature_map(images(*size)), expected, atol=2e-4, rtol=1e-4)


def slow_focalnet(w, x, depths, levels):
    """FocalNet from its formulas, in functional form."""

    def norm(x, name):
        return F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2], w[f"{name}.weight"], w[f"{name}.bias"]).permute(
            0, 3, 1, 2
        )

    def conv(x, name, **options):
        return F.conv2d(x, w[f"{name}.weight"], w.get(f"{name}.bias"), **options)

    def linear(x, name):
        return torch.einsum("nchw,dc->ndhw", x, w[f"{name}.weight"]) + w[f"{name}.bias"][:, None, None]

    def embed(x, name, side, stride, padding):
        height, width = x.shape[-2:]
        x = F.pad(x, (0, -width % stride, 0, -height % stride))
        return norm(conv(x, f"{name}.proj", stride=stride, padding=padding), f"{name}.norm")

    x = embed(x, "patch_embed", 7, 4, 3)
    for stage, depth in enumerate(depths):
        for b in range(depth):
            p, channels = f"layers.{stage}.blocks.{b}", x.shape[1]
            x = x + conv(x, f"{p}.dw1", padding=1, groups=channels)
            mixed = linear(x, f"{p}.modulation.f")
            query, context, gates = mixed[:, :channels], mixed[:, channels : 2 * channels], mixed[:, 2 * channels :]
            total = 0
            for level in range(levels):
                weight = w[f"{p}.modulation.focal_layers.{level}.0.weight"]
                context = F.gelu(F.conv2d(context, weight, padding=weight.shape[-1] // 2, groups=channels))
                total = total + context * gates[:, level, None]
            total = total + F.gelu(context.mean((2, 3), keepdim=True)) * gates[:, levels, None]
            modulated = linear(query * conv(total / (levels + 1), f"{p}.modulation.h"), f"{p}.modulation.proj")
            x = norm(x + w[f"{p}.gamma_1"][:, None, None] * modulated, f"{p}.norm1")
            x = x + conv(x, f"{p}.dw2", padding=1, groups=channels)
            hidden = F.gelu(linear(x, f"{p}.mlp.fc1"))
            x = norm(x + w[f"{p}.gamma_2"][:, None, None] * linear(hidden, f"{p}.mlp.fc2"), f"{p}.norm2")
        if stage < len(depths) - 1:
            x = embed(x, f"layers.{stage}.downsample", 3, 2, 1)
    return norm(x, "norm")


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 96), (57, 77)])
def test_focalnet_equals_its_formulas_in_double_precision(size):
    dimensions = FocalNetSize(width=8, depths=(1, 2, 1, 1), focal_levels=(3, 3, 3, 3), focal_windows=(3, 3, 3, 3))
    ours = filled(FocalNet(dimensions)).double()
    expected = slow_focalnet(ours.state_dict(), images(*size).double(), (1, 2, 1, 1), 3)
    found = ours.feature_map(images(*size).double())
    torch.testing.assert_close(found, expected, atol=1e-11, rtol=0)
    assert found.shape[-2:] == (math.ceil(size[0] / 32), math.ceil(size[1] / 32))


@torch.no_grad()
@pytest.mark.parametrize("causal", [True, False])
def test_text_encoder_equals_open_clip(causal):
    ours = filled(RegionTextEncoder(layers=2, causal=causal))
    norm = partial(torch.nn.LayerNorm, eps=1e-12)
    options = {} if causal else {"no_causal_mask": True, "use_pad_mask": True}
    reference = TextTransformer(
        77, 49408, 512, 8, 2, output_dim=512, act_layer=QuickGELU, norm_layer=norm, pad_id=0, **options
    )
    renamed = {
        key.removeprefix("lang_encoder.")
        .replace("resblocks", "transformer.resblocks")
        .replace("lang_proj", "text_projection"): v
        for key, v in ours.state_dict().items()
        if key != "logit_scale"
    }
    reference.load_state_dict(renamed)
    tokens = tokenize(["a cat", "a photo of a traffic cone", ""], Tokenizer())
    expected = F.normalize(reference.eval()(tokens), dim=1)
    torch.testing.assert_close(ours(tokens), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_class_embedding_is_the_mean_over_two_templates():
    encoder = filled(RegionTextEncoder(layers=1))
    prompts = tokenize(["traffic cone.", "a photo of a traffic cone."], Tokenizer())
    expected = F.normalize(encoder(prompts).mean(dim=0), dim=0)
    found = encoder.embed_classes(["cat", "traffic_cone", "dog"], batch=4)
    assert found.shape == (3, 512)
    torch.testing.assert_close(found[1], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "words"),
    [("aerosol_can", "aerosol can"), ("bow_(decorative_ribbons)", "bow decorative ribbons"), ("wall-other", "wall")],
)
def test_names_are_cleaned(name, words):
    assert clean_name(name) == words


SMALL = {
    "swin_base": [
        "MODEL.SWIN.EMBED_DIM",
        "16",
        "MODEL.SWIN.DEPTHS",
        "[1, 1, 1, 1]",
        "MODEL.SWIN.NUM_HEADS",
        "[1, 2, 4, 8]",
    ],
    "focal_base": ["MODEL.FOCAL.EMBED_DIM", "16", "MODEL.FOCAL.DEPTHS", "[1, 1, 1, 1]"],
    "davit_d3": [
        *("MODEL.DAVIT.DIM_EMBED", "[16, 32, 64, 128]", "MODEL.DAVIT.DEPTHS", "[1, 1, 1, 1]"),
        *("MODEL.DAVIT.NUM_HEADS", "[1, 2, 4, 8]", "MODEL.DAVIT.NUM_GROUPS", "[1, 2, 4, 8]"),
    ],
}
GROUND_TRUTH = ["MODEL.DEVICE", "cpu", "MODEL.CLIP.CROP_REGION_TYPE", "GT", "MODEL.CLIP.MULTIPLY_RPN_SCORE", "False"]


def config_of(name, *overrides):
    path = f"configs/COCO-InstanceSegmentation/CLIP_fast_rcnn_{name}_C4_zsinf.yaml"
    return load_config(path, [*GROUND_TRUTH, *SMALL[name], *overrides])


def item(height=96, width=120):
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.tensor([[4.0, 4.0, 60.0, 70.0], [30.0, 20.0, 100.0, 90.0]]))
    instances.gt_classes = torch.tensor([0, 1])
    pixels = torch.randint(0, 255, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    return {"image": pixels, "instances": instances, "height": height, "width": width}


@torch.no_grad()
@pytest.mark.parametrize("name", SMALL)
def test_detector_scores_every_word_and_no_background(name):
    cfg = config_of(name, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "MODEL.ROI_HEADS.NMS_THRESH_TEST", "1.0")
    model = build_model(cfg).eval()
    fill_deterministic(model)
    with pytest.raises(RuntimeError, match="set_classes"):
        model([item()])
    model.set_classes(["cat", "traffic_cone", "teapot"])
    (output,) = model([item()])
    instances = output["instances"]
    assert len(instances) == 6
    assert instances.scores.sum().item() == pytest.approx(2.0, abs=1e-4)  # one for each box
    # From the formulas: mean over the pooled cells, projection, cosine times the scale.
    preprocessed = model.preprocessor([item()["image"]])
    pooled = model.roi_heads.pooler([model.backbone(preprocessed.tensor)["stage5"]], [item()["instances"].gt_boxes])
    vectors = pooled.mean(dim=(2, 3))
    vectors = model.backbone.norm(vectors) if isinstance(model.backbone, DaViTBackbone) else vectors
    unit = F.normalize(vectors @ model.image_projection, dim=1)
    words = model.roi_heads.box_predictor.class_embeddings
    scale = model.roi_heads.box_predictor.lang_encoder.logit_scale.exp()
    expected = (scale * unit @ words.T).softmax(dim=1).flatten().sort(descending=True).values
    torch.testing.assert_close(instances.scores, expected, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 1), (31, 200)])
@pytest.mark.parametrize("name", SMALL)
def test_very_small_images_run(name, size):
    model = build_model(config_of(name)).eval()
    fill_deterministic(model)
    model.set_classes(["cat"])
    (output,) = model([item(*size)])
    assert torch.isfinite(output["instances"].scores).all()


@torch.no_grad()
def test_region_embeddings_are_in_the_joint_space():
    model = build_model(config_of("davit_d3")).eval()
    fill_deterministic(model)
    replaced = {key: value * 2 if key == "image_projection" else value for key, value in model.state_dict().items()}
    proposals = Instances((96, 120), proposal_boxes=item()["instances"].gt_boxes)
    (before,) = model.encode_regions([item()], [proposals])
    assert before.shape == (2, 512)
    model.load_state_dict(replaced, assign=True)  # puts other parameters instead of the first
    torch.testing.assert_close(model.encode_regions([item()], [proposals])[0], 2 * before)


def test_box_deltas_start_at_zero():
    deltas = build_model(config_of("davit_d3")).roi_heads.box_predictor.bbox_pred
    assert not deltas.weight.any() and not deltas.bias.any()


def test_training_is_refused():
    model = build_model(config_of("swin_base")).train()
    model.set_classes(["cat"])
    with pytest.raises(UserError, match="inference"):
        model([item()])


def test_shipped_configs_are_consistent():
    check_config(config_of("swin_base", "DATASETS.TEST", "()"))
    with pytest.raises(UserError, match=r"MODEL\.ROI_HEADS\.NAME"):
        check_config(config_of("swin_base", "DATASETS.TEST", "()", "MODEL.ROI_HEADS.NAME", "CLIPRes5ROIHeads"))


def test_files_of_the_branch_merge(tmp_path):
    """Its files say in a word where class embeddings come from, and spell out what the encoders are."""
    base = REPOSITORY / "configs/COCO-InstanceSegmentation/CLIP_fast_rcnn_focal_base_C4_zsinf.yaml"
    path = tmp_path / "focal.yaml"
    path.write_text(
        f"_BASE_: {base}\n"
        "MODEL:\n"
        "  CLIP: {USE_TEXT_EMB_CLASSIFIER: text-encoder, CROP_REGION_TYPE: GT}\n"
        "  FOCAL: {USE_POSTLN: True, DROP_PATH_RATE: 0.3, PATCH_NORM: True, USE_CHECKPOINT: False, APE: False}\n"
        "  SWIN: {QKV_BIAS: True, DROP_RATE: 0.1}\n"
        "DATASETS: {TEST: []}\n"
    )
    cfg = load_config(str(path))
    check_config(cfg)
    assert cfg.MODEL.CLIP.USE_TEXT_EMB_CLASSIFIER


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["MODEL.FOCAL.USE_POSTLN", "False"], r"MODEL\.FOCAL\.USE_POSTLN: expected True"),
        (["MODEL.SWIN.APE", "True"], r"MODEL\.SWIN\.APE: expected False"),
        (["MODEL.CLIP.USE_TEXT_EMB_CLASSIFIER", "text-embedding"], "or text-encoder with CLIPTransformerROIHeads"),
    ],
)
def test_what_is_not_built_is_an_error(tmp_path, overrides, message):
    cfg = config_of("focal_base", "DATASETS.TEST", "()")
    # Not merged as an override: yacs would refuse a word instead of a flag before the check does.
    *parents, leaf = overrides[0].split(".")
    get_value(cfg, ".".join(parents))[leaf] = {"True": True, "False": False}.get(overrides[1], overrides[1])
    with pytest.raises(UserError, match=message):
        check_config(cfg)


def test_own_images_take_the_words_of_their_dataset(tmp_path):
    """A detector made for 80 classes scores the 1203 words of the LVIS names."""
    write_image(tmp_path / "in" / "a.jpg")
    use_custom_image_folder(tmp_path / "in")
    tests = ["DATASETS.TEST", "('lvis_v1_val_custom_img',)", "OUTPUT_DIR", str(tmp_path / "out")]
    cfg = config_of("davit_d3", *tests, "INPUT_DIR", str(tmp_path / "in"))
    assert class_count(cfg, "lvis_v1_val_custom_img") == 1203
    cfg.MODEL.CLIP.CROP_REGION_TYPE, cfg.MODEL.CLIP.OFFLINE_RPN_CONFIG = "RPN", str(DATA / "tiny_rpn.yaml")
    check_config(cfg)
    (job,) = prepare_evaluation(cfg)
    assert job.evaluator.category_ids == list(range(1, 1204))


IMAGE_ENCODER, TEXT = "backbone.", "roi_heads.box_predictor.lang_encoder."
LAYOUTS = {
    "UniCL": ("image_encoder.", {"lang_encoder.": "text_encoder.", "lang_proj": "text_projection"}),
    "K-LITE": ("visual.", {"lang_encoder.": "text.", "lang_proj": "text_projection"}),
    "FocalNet": (
        "backbone.",
        {
            "lang_encoder.": "lang_encoder.lang_encoder.",
            "lang_proj": "lang_encoder.lang_proj",
            "logit_scale": "lang_encoder.logit_scale",
        },
    ),
    "DaViT": ("image_encoder.", {"lang_encoder.": "lang_encoder.", "lang_proj": "lang_projection"}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_published_layouts_load_completely(tmp_path, layout):
    model = build_model(config_of("davit_d3"))
    fill_deterministic(model)
    expected = {key: value.clone() for key, value in model.state_dict().items()}
    image_encoder, text = LAYOUTS[layout]
    state = {}
    for key, value in expected.items():
        name = key.replace(IMAGE_ENCODER, image_encoder, 1) if key.startswith(IMAGE_ENCODER) else key
        if key.startswith(f"{IMAGE_ENCODER}norm.") and layout == "FocalNet":
            name = key.removeprefix(IMAGE_ENCODER)
        if key.startswith(TEXT):
            inner = key.removeprefix(TEXT)
            name = next((new + inner[len(old) :] for old, new in text.items() if inner.startswith(old)), inner)
        if layout == "K-LITE" and key == "image_projection":
            name = "vision_projection"
        if "bbox_pred" not in key:
            state[name] = value
    torch.save(state, tmp_path / "weights.pth")
    for value in model.state_dict().values():
        value.zero_()
    report = load_weights(model, str(tmp_path / "weights.pth"))
    assert not report.unexpected
    for key, value in model.state_dict().items():
        if "bbox_pred" not in key:
            assert torch.equal(value, expected[key]), key


def test_position_table_of_another_size_is_resized(tmp_path):
    cfg = load_config("configs/COCO-InstanceSegmentation/CLIP_fast_rcnn_vit_b16_C4_zsinf.yaml", GROUND_TRUTH)
    model = build_model(cfg)
    assert isinstance(model.backbone, ViTBackbone)
    for count in (24 * 24, 200):  # without class token, and no square
        torch.save({"image_encoder.pos_embed": torch.ones(1, count, 768)}, tmp_path / "weights.pth")
        with pytest.raises(UserError, match="pos_embed"):
            load_weights(model, str(tmp_path / "weights.pth"), required=("backbone.pos_embed",))
    table = torch.rand(1, 1 + 24 * 24, 768, generator=torch.Generator().manual_seed(0))
    torch.save({"image_encoder.pos_embed": table}, tmp_path / "weights.pth")
    load_weights(model, str(tmp_path / "weights.pth"), required=())
    grid = table[:, 1:].transpose(1, 2).reshape(1, 768, 24, 24)
    resized = torch.nn.functional.interpolate(grid, (14, 14), mode="bicubic", align_corners=False)
    expected = torch.cat([table[:, :1], resized.reshape(1, 768, 196).transpose(1, 2)], dim=1)
    torch.testing.assert_close(model.backbone.pos_embed.data, expected)

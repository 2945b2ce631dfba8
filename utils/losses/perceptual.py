"""Distance of deep features between picture and photograph, on crops around the eyes and the mouth (or where else).

    vgg     lambda n mean over crops of VGGPerceptualLoss
    lpips   lambda n mean over crops of LPIPS
on every n-th step from --perceptual_from_iter on; absent on all others, so that the weight n keeps their mean over
time. With --vgg_weights random (or LPIPS's) a term is called vgg_random (lpips_random), wherever it is logged.

A crop has a fixed size and surrounds the region's vertices that are in the picture (`utils/maths/crops.py`); whether
something hides them isn't asked. A region larger than the crop is looked at piece by piece: the R2 sequence (Roberts
2018) says where. A region beside the picture gives no crop.

Parameters of the network are constants, and nothing is remembered between steps: a resumed run needs no state of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from utils.contracts import Subject
from utils.errors import InputError
from utils.losses.context import LossContext
from utils.maths.crops import bounds_in_picture, place_crop
from utils.perceptual_loss import LEAST_SIDE, VGG_TAPS, CombinedPerceptualLoss, LPIPSWrapper, VGGPerceptualLoss
from utils.perceptual_networks import (
    LPIPS_VARIANTS,
    build_lpips,
    digest_of,
    load_features,
    needed_weights,
    random_features,
)

RANDOM = "random"
WHOLE = "image"
LATE = 0.6  # of the run: densification is over, so that its thresholds keep their sense
MOST_INTERVAL, MOST_CROP = 10, 4096
R2 = (0.7548776662466927, 0.5698402909980532)  # powers of the inverse of the real root of x^3 = x + 1
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class PerceptualOptions:
    """Which networks look at which part of a picture, and when."""

    lambda_perceptual: float = field(default=0.0, metadata={"help": "weight of the perceptual loss; 0: off"})
    use_vgg_loss: bool = field(default=False, metadata={"help": "L1 of VGG19 features"})
    use_lpips_loss: bool = field(default=False, metadata={"help": "LPIPS"})
    lpips_net: str = field(
        default="vgg", metadata={"help": f"backbone of LPIPS: {' or '.join(LPIPS_VARIANTS)} (cheap)"}
    )
    vgg_weights: str = field(default="", metadata={"help": "VGG19: .safetensors or torchvision's .pth; `random`: for "
                                                           "tests and to measure cost only"})  # fmt: skip
    lpips_vgg16_weights: str = field(default="", metadata={"help": "likewise VGG16, of LPIPS"})
    lpips_alex_weights: str = field(default="", metadata={"help": "likewise AlexNet, of LPIPS"})
    perceptual_patches: str = field(default="eyes,mouth", metadata={"help": "crops around these regions of "
                                    "--flame_masks; `image`: the whole picture"})  # fmt: skip
    perceptual_crop: int = field(default=64, metadata={"help": "side of a crop, pixels"})
    perceptual_layers: int = field(default=5, metadata={"help": "of VGG19's five layers, the first so many"})
    perceptual_interval: int = field(default=10, metadata={"help": "look at every n-th step, with n-fold weight"})
    perceptual_from_iter: int = field(default=-1, metadata={"help": "first step of it; -1: after 60 % of all"})
    perceptual_stop_gradient: bool = field(default=False, metadata={"help": "it changes colours and opacities only, "
                                           "neither positions and shapes nor FLAME parameters"})  # fmt: skip
    perceptual_precision: str = field(default="auto", metadata={"help": "of features: float32, bfloat16; auto: "
                                      "bfloat16 on a GPU that has it"})  # fmt: skip

    def __post_init__(self) -> None:
        weight, names = self.lambda_perceptual, split_names(self.perceptual_patches)
        rules = [
            (not (math.isfinite(weight) and weight >= 0), "lambda_perceptual", "a finite number of at least 0"),
            (self.lpips_net not in LPIPS_VARIANTS, "lpips_net", " or ".join(LPIPS_VARIANTS)),
            (not names or "" in names or len(set(names)) < len(names) or (WHOLE in names and len(names) > 1),
             "perceptual_patches", "names of regions with commas between them, or `image`"),
            (not LEAST_SIDE <= self.perceptual_crop <= MOST_CROP, "perceptual_crop", f"{LEAST_SIDE} to {MOST_CROP}"),
            (not 1 <= self.perceptual_layers <= len(VGG_TAPS), "perceptual_layers", f"1 to {len(VGG_TAPS)}"),
            (not 1 <= self.perceptual_interval <= MOST_INTERVAL, "perceptual_interval", f"1 to {MOST_INTERVAL}"),
            (self.perceptual_from_iter < -1, "perceptual_from_iter", "a step, or -1"),
            (self.perceptual_precision not in ("auto", *PRECISIONS), "perceptual_precision",
             f"auto, {', '.join(PRECISIONS)}"),
        ]  # fmt: skip
        for broken, name, expected in rules:
            if broken:
                raise InputError(f"--{name}", "", f"is {getattr(self, name)}, expected {expected}")
        if weight and not (self.use_vgg_loss or self.use_lpips_loss):
            raise InputError("--lambda_perceptual", "", f"is {weight}, but no network is asked for",
                             "Add --use_vgg_loss, --use_lpips_loss or both.")  # fmt: skip

    @property
    def needs_regions(self) -> bool:
        """Whether what comes out depends on --flame_masks."""
        return bool(self.lambda_perceptual) and split_names(self.perceptual_patches) != [WHOLE]


def split_names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def networks(options: PerceptualOptions) -> dict[str, tuple[str, str, str]]:
    """The terms that are asked for, as they are logged: name -> backbone, its weights, the flag that takes them."""
    if not options.lambda_perceptual:
        return {}
    variant = LPIPS_VARIANTS[options.lpips_net]
    known = {
        "vgg": (options.use_vgg_loss, "vgg19", "--vgg_weights"),
        "lpips": (options.use_lpips_loss, variant.backbone, variant.flag),
    }
    found = {}
    for name, (wanted, backbone, flag) in known.items():
        weights = getattr(options, flag.removeprefix("--"))
        if wanted:
            found[f"{name}_{RANDOM}" if weights == RANDOM else name] = (backbone, weights, flag)
    return found


def check(options: PerceptualOptions) -> None:
    """Raise InputError if weights are missing: quick, before anything else of a run is read."""
    for backbone, weights, flag in networks(options).values():
        if weights != RANDOM:
            needed_weights(backbone, weights, flag)


def fingerprints(options: PerceptualOptions) -> dict[str, str]:
    """What the networks that are asked for are made of, by the flag that names it: SHA-256 of the file, or `random`."""
    return {
        flag.removeprefix("--"): RANDOM if given == RANDOM else digest_of(needed_weights(backbone, given, flag))
        for backbone, given, flag in networks(options).values()
    }


def build(
    options: PerceptualOptions, threads: int | None = None, subject: Subject | None = None
) -> Callable[[LossContext], dict[str, Tensor]]:
    """Terms `vgg` and `lpips`, of those that are asked for.

    Raises:
        InputError: weights are missing or aren't what they must be, a region is not known, or pictures are too small.
        EnvironmentFault: a package is missing.
    """
    if not networks(options):
        return lambda context: {}
    subject = subject or Subject()
    if 0 < subject.least_side < LEAST_SIDE:
        found = f"found training pictures of {subject.least_side} pixels along a side, expected {LEAST_SIDE} or more"
        raise InputError("--lambda_perceptual", "", found, "Leave it out, or give larger pictures (--resolution).")
    vertices_of = region_vertices(options, subject)
    network = open_networks(options)
    weight = options.lambda_perceptual * options.perceptual_interval

    def loss(context: LossContext) -> dict[str, Tensor]:
        if not is_due(options, context.step, context.iterations):
            return {}
        target = context.frame.image
        place = crops(vertices_of(context), context, options)
        if not place:
            return {}
        image = context.appearance() if options.perceptual_stop_gradient else context.rendered.image
        prepare(network, target.device, options.perceptual_precision)
        terms = network(cut(image, place), cut(target, place))
        return {name: weight * value for name, value in terms.items()}

    return loss


def weights(options: PerceptualOptions) -> dict[str, float]:
    """Mean over the steps; a due step has the weight of all that were not."""
    return dict.fromkeys(networks(options), options.lambda_perceptual)


def describe(options: PerceptualOptions) -> str:
    """What looks at what, and loudly if it sees nothing."""
    terms = networks(options)
    if not terms:
        used = [name for name in ("use_vgg_loss", "use_lpips_loss") if getattr(options, name)]
        return f"perceptual: off; --{' and --'.join(used)} without --lambda_perceptual has no effect" if used else ""
    start = "60 % of the run" if options.perceptual_from_iter < 0 else f"step {options.perceptual_from_iter}"
    side, patches = options.perceptual_crop, options.perceptual_patches
    where = "the whole picture" if patches == WHOLE else f"{side} x {side} pixels around {patches}"
    seen = [f"{name} ({backbone})" for name, (backbone, _, _) in terms.items()]
    line = f"perceptual: {', '.join(seen)} on {where}, every {options.perceptual_interval} steps from {start} on"
    line += ", for colours and opacities only" if options.perceptual_stop_gradient else ""
    if any(weights == RANDOM for _, weights, _ in terms.values()):
        line += "; RANDOM WEIGHTS WERE ASKED FOR: this measures cost, the avatar gains nothing from it"
    return line


def is_due(options: PerceptualOptions, step: int, iterations: int) -> bool:
    """Whether a step of a run of so many looks."""
    first = options.perceptual_from_iter
    return step >= (first if first >= 0 else LATE * iterations) and step % options.perceptual_interval == 0


def open_networks(options: PerceptualOptions) -> CombinedPerceptualLoss:
    """The networks that are asked for, on the CPU."""
    parts: dict[str, nn.Module] = {}
    for name, (backbone, weights, flag) in networks(options).items():
        known = weights != RANDOM
        features = (
            load_features(backbone, needed_weights(backbone, weights, flag)) if known else random_features(backbone)
        )
        if flag == "--vgg_weights":
            parts[name] = VGGPerceptualLoss(features, options.perceptual_layers)
        else:
            parts[name] = LPIPSWrapper(build_lpips(options.lpips_net, features))
    return CombinedPerceptualLoss(parts)


def prepare(network: CombinedPerceptualLoss, device: torch.device, precision: str) -> None:
    """Bring the networks to where the pictures are, in the precision that was asked for; of no effect a second time."""
    if precision == "auto":
        has_it = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        precision = "bfloat16" if has_it else "float32"
    network.to(device)
    network.use_precision(PRECISIONS[precision])


def region_vertices(
    options: PerceptualOptions, subject: Subject
) -> Callable[[LossContext], Mapping[str, Tensor] | None]:
    """From a step to the vertices [K, 3] in world space of each region that is looked at; None: the whole picture.

    Raises:
        InputError: a region is not known, or none is.
    """
    names = split_names(options.perceptual_patches)
    if names == [WHOLE]:
        return lambda context: None
    if not subject.regions:
        raise InputError("--perceptual_patches", "", f"is {options.perceptual_patches}, but no regions are known",
                         "On a FLAME mesh give --flame_masks FILE; --perceptual_patches image needs none.")  # fmt: skip
    for name in names:
        if name not in subject.regions or not bool(subject.regions[name].any()):
            have = ", ".join(sorted(region for region, inside in subject.regions.items() if bool(inside.any())))
            raise InputError("--perceptual_patches", name, "is no region of this mesh", f"It has {have}; or `{WHOLE}`.")
    ids: dict[str, Tensor] = {}  # of the one mesh of the run

    def vertices_of(context: LossContext) -> Mapping[str, Tensor]:
        if not ids:
            faces = context.mesh.faces
            ids.update({name: faces[subject.regions[name].to(faces.device)].unique() for name in names})
        return {name: context.mesh.vertices.detach()[rows] for name, rows in ids.items()}

    return vertices_of


def crops(
    regions: Mapping[str, Tensor] | None, context: LossContext, options: PerceptualOptions
) -> list[tuple[slice, slice]]:
    """Rows and columns of each crop of a step; regions beside the picture have none."""
    height, width = context.frame.image.shape[1:]
    if regions is None:
        return [(slice(0, height), slice(0, width))]
    turn = context.step // options.perceptual_interval
    places = []
    for points in regions.values():
        bounds = bounds_in_picture(points, context.frame.camera)
        if bounds is None:
            continue
        left, top, right, bottom = bounds
        across, down = min(options.perceptual_crop, width), min(options.perceptual_crop, height)
        x = place_crop((left, right), across, width, turn * R2[0] % 1)
        y = place_crop((top, bottom), down, height, turn * R2[1] % 1)
        places.append((slice(y, y + down), slice(x, x + across)))
    return places


def cut(image: Tensor, places: list[tuple[slice, slice]]) -> Tensor:
    """[B, 3, h, w] the pieces of an image [3, H, W]."""
    return torch.stack([image[:, rows, columns] for rows, columns in places])

"""What PyTorch does between the kernels on the way to the loss, on a GPU that is only pretended: tensors without
values, whose operations refuse to mix devices, and to hand a value to the CPU, which would wait for a real one. The way
back needs a real one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor

from flame_model import skinning
from scene.densification.gradient import add_view
from scene.placement import place_in_torch
from scripts.gpu_benchmark.scenes import flame_shell
from utils import temporal_consistency
from utils.contracts import Camera, Frame, Mesh, Neighbour, Rendered, Subject
from utils.engine.adam import adam_rows, adam_step
from utils.flow_consistency import MeshFlow, OpticalFlowConsistency, TemporalFeatureStability
from utils.losses import LossContext, binding, offsets, photometric, temporal
from utils.maths.table_rows import take_row

fake = pytest.importorskip("torch._subclasses.fake_tensor", reason="this PyTorch has no fake tensors")
GPU = torch.device("cuda", 0)
COUNT, HEIGHT, WIDTH, TIMESTEPS = 12, 16, 20, 9


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Tensor]]:
    """Makes a tensor on the pretended GPU, of these sizes; native kernels are not to be called."""
    for module in (photometric, binding):
        monkeypatch.setattr(module, "NATIVE", "no_such_package")
    mode: AbstractContextManager[object] = fake.FakeTensorMode()
    with mode:
        yield lambda *size, grad=False, **more: torch.empty(size, device=GPU, requires_grad=grad, **more)
    for kept in (temporal_consistency.windows, skinning._rotation_constants, skinning._tree_constants):
        kept.cache_clear()  # they hold pretended tensors now


def context(gpu: Callable[..., Tensor], **more: object) -> LossContext:
    camera = Camera(gpu(4, 4), gpu(3, 3), WIDTH, HEIGHT)
    frame = Frame(camera, gpu(3, HEIGHT, WIDTH), gpu(1, HEIGHT, WIDTH), gpu(3), 4, "0", "a")
    image = gpu(3, HEIGHT, WIDTH, grad=True)
    rendered = Rendered(image, gpu(1, HEIGHT, WIDTH), None, gpu(COUNT, dtype=torch.int32), gpu(COUNT, 2))
    mesh = Mesh(gpu(20, 3, grad=True), gpu(6, 3, dtype=torch.int64))
    local = {"local_means": gpu(COUNT, 3, grad=True), "local_scales": gpu(COUNT, 3, grad=True)}
    return LossContext(1, frame, rendered, **local, mesh=mesh, binding=gpu(COUNT, dtype=torch.int64), **more)  # type: ignore[arg-type]


def test_the_pretended_gpu_would_notice(gpu: Callable[..., Tensor]) -> None:
    with pytest.raises(RuntimeError):
        gpu(3) + torch.empty(3)
    with pytest.raises(Exception, match="_local_scalar_dense"):
        float(gpu(1).sum())


def on_gpu(terms: Mapping[str, Tensor], *names: str) -> bool:
    return tuple(terms) == names and all(term.device == GPU and term.shape == () for term in terms.values())


@pytest.mark.parametrize("metric", [False, True])
def test_limits(gpu: Callable[..., Tensor], metric: bool) -> None:
    options = binding.BindingOptions(metric_xyz=metric, metric_scale=metric)
    assert on_gpu(binding.build(options)(context(gpu)), "xyz", "scale")


def test_photometric(gpu: Callable[..., Tensor]) -> None:
    assert on_gpu(photometric.build(photometric.PhotometricOptions())(context(gpu)), "l1", "ssim")


def test_offsets(gpu: Callable[..., Tensor]) -> None:
    table = gpu(TIMESTEPS, 20, 3, grad=True)
    options = offsets.OffsetOptions(1.0, 1.0, 0.0)  # the mesh's edges are found once, which may wait
    terms = offsets.build(options)(context(gpu, motion={"dynamic_offset": table}))
    assert on_gpu(terms, "dynamic_offset", "dynamic_offset_std")


def test_temporal(gpu: Callable[..., Tensor]) -> None:
    """The prior is estimated on the CPU before the first step; its tables are then on the GPU."""
    with fake.unset_fake_temporarily():
        random = torch.Generator().manual_seed(0)
        sizes = {"rotation": 3, "expr": 5}
        tracked = {name: torch.randn(TIMESTEPS, size, generator=random) for name, size in sizes.items()}
        sequence = torch.zeros(TIMESTEPS, dtype=torch.int64)
        loss = temporal.TemporalTerms(1.0, Subject(tracked, sequence), sequence)
    consistency = loss.consistency
    for name in ("precision", "smoothness", "anchor"):
        setattr(consistency, name, gpu(*getattr(consistency, name).shape))
    motion = {name: gpu(*values.shape, grad=True) for name, values in tracked.items()}
    motion["dynamic_offset"] = gpu(TIMESTEPS, 20, 3, grad=True)
    assert on_gpu(loss(context(gpu, motion=motion)), "temporal", "temporal_offset")


def test_flow(gpu: Callable[..., Tensor]) -> None:
    """The flow itself is computed on the CPU."""
    seen = context(gpu)
    flow = MeshFlow(gpu(2, HEIGHT, WIDTH), gpu(1, HEIGHT, WIDTH, dtype=torch.bool))
    other = Neighbour(seen.frame, seen.mesh, gpu(3, HEIGHT, WIDTH, grad=True))
    for part in (OpticalFlowConsistency(), TemporalFeatureStability()):
        assert part(seen.rendered.image, seen.frame.image, other, flow).device == GPU


def test_placement_and_statistics(gpu: Callable[..., Tensor]) -> None:
    mesh = Mesh(gpu(20, 3, grad=True), gpu(6, 3, dtype=torch.int64))
    columns = {name: gpu(COUNT, *size, grad=True) for name, size in (("means", (3,)), ("quats", (4,)), ("scales", (3,)),
                                                                     ("opacities", ()))}  # fmt: skip
    placed = place_in_torch(mesh, gpu(COUNT, dtype=torch.int64), columns)
    assert all(values.device == GPU for values in vars(placed).values())
    add_view(gpu(COUNT, 2), gpu(COUNT, dtype=torch.int32), 1.0, gpu(COUNT), gpu(COUNT), gpu(COUNT))


def test_adam(gpu: Callable[..., Tensor]) -> None:
    adam_step(gpu(COUNT, 3), gpu(COUNT, 3), (gpu(COUNT, 3), gpu(COUNT, 3)), 0.1, 5)
    adam_rows(gpu(TIMESTEPS, 3), gpu(TIMESTEPS, 3), (gpu(TIMESTEPS, 3), gpu(TIMESTEPS, 3)), 0.1, gpu(TIMESTEPS))


def test_flame(gpu: Callable[..., Tensor]) -> None:
    with fake.unset_fake_temporarily():
        model = flame_shell(1, "cpu").flame
    for name, buffer in list(model.named_buffers()):
        setattr(model, name, gpu(*buffer.shape, dtype=buffer.dtype))
    identity = model.fold_identity(gpu(10))
    widths = {"rotation": 3, "neck_pose": 3, "jaw_pose": 3, "eyes_pose": 6, "translation": 3, "expr": model.n_expr}
    tables = {name: gpu(TIMESTEPS, width, grad=True) for name, width in widths.items()}
    posed = model.posed(identity, **dict(zip(tables, take_row(3, *tables.values()), strict=True)))
    assert posed.shape == (model.n_vertices, 3) and posed.device == GPU

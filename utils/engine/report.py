"""What a training run shows and leaves behind: progress, scalars, evaluations, saved avatars, checkpoints."""

from __future__ import annotations

import math
import time

import torch

from gaussian_renderer import Renderer
from scene.densification import Strategy
from scene.frames import Dataset
from scene.gaussian_model import GaussianModel
from utils.engine.build import iterations_saved
from utils.engine.evaluate import evaluate
from utils.engine.guard import FiniteGuard
from utils.engine.run import Run
from utils.engine.step import Look
from utils.io.atomic import write_json
from utils.losses import Losses

SHOW_EVERY, RECORD_EVERY = 10, 100  # iterations


class Reporter:
    """Does, after each step, what is due at it. Nothing is kept before the guard has been asked."""

    def __init__(  # noqa: PLR0913
        self,
        run: Run,
        data: Dataset,
        avatar: GaussianModel,
        strategy: Strategy,
        render: Renderer,
        guard: FiniteGuard,
        losses: Losses,
    ) -> None:
        self.run, self.data, self.avatar, self.strategy = run, data, avatar, strategy
        self.render, self.guard, self.losses = render, guard, losses
        self.shares: dict[str, float] = {}  # of a step's time, by loss
        self.since = (time.perf_counter(), run.first)
        self.met: set[str] = set()  # terms that have had a value: others don't apply to this subject, or come later
        self.weights = {term: weight for terms in losses.weights.values() for term, weight in terms.items()}
        write_cameras(run, data)
        end = run.options.optimiser.iterations
        if run.first == end and end not in iterations_saved(run.folder):
            self.save(end)  # a finished run that lost its avatar gets it back from the checkpoint
        if run.options.run.port:
            run.log.say("--port: there is no viewer yet, nothing listens")

    def say(self, *notes: str) -> None:
        """Lines for people, such as what computes what on this machine."""
        for note in notes:
            self.run.log.say(note)

    def step(self, step: int, look: Look) -> None:
        """Report a step; of a batch, its last view."""
        run = self.run
        last = step == run.options.optimiser.iterations
        # A GPU is waited for before its numbers can be shown, and does a hundred steps while a CPU does one.
        if step % (RECORD_EVERY if self.guard.deferred else SHOW_EVERY) == 0 or last:
            frame, terms, image = look()
            read = torch.stack([value.detach() for value in terms.values.values()]).tolist()  # one wait for a GPU
            values = dict(zip(terms.values, read, strict=True))
            self.met |= values.keys()
            error = (image.detach().clamp(0.0, 1.0) - frame.image).square().mean()
            values["psnr"] = -10.0 * math.log10(max(float(error), 1e-12))
            run.log.progress(step, values, len(self.avatar))
            if step % RECORD_EVERY == 0 or last:
                run.log.scalars(step, "train", {**values, "gaussians": len(self.avatar),
                                            "pruned": self.strategy.pruned})  # fmt: skip
                run.log.scalars(step, "weight", {term: self.weights[term] for term in terms.values})
                self.share_time(step)
        if step in run.evaluate_at | run.save_at | run.checkpoint_at:
            self.guard.poll(step, self.avatar.parameters)
        if step in run.evaluate_at:
            self.evaluate(step)
        if step in run.save_at:
            self.save(step)
        if step in run.checkpoint_at:
            run.checkpoint(step)
        if step in run.evaluate_at | run.save_at | run.checkpoint_at:
            self.since = (time.perf_counter(), step)  # none of that is a step's time

    def share_time(self, step: int) -> None:
        """Which share of a step's time each loss takes, on average since the last call."""
        now, (before, first) = time.perf_counter(), self.since
        whole = (now - before) / max(1, step - first)
        self.since = (now, step)
        shares = {name: seconds / whole for name, seconds in self.losses.watch.per_step().items()}
        self.shares = shares or self.shares
        self.run.log.scalars(step, "time_share", shares)

    def save(self, step: int) -> None:
        """Save the avatar and the facts about the run so far."""
        self.avatar.save(self.run.folder / "point_cloud" / f"iteration_{step}")
        offsets = self.avatar.columns["means"].detach().norm(dim=-1)
        self.run.write_facts(step, {
            "gaussians": len(self.avatar), "pruned": self.strategy.pruned,
            "losses": {name: {"weights": {term: weight for term, weight in terms.items() if term in self.met},
                              "time_share": round(self.shares.get(name, 0.0), 4)}
                       for name, terms in self.losses.weights.items() if self.met & terms.keys()},
            "edition": self.data.edition or self.avatar.rig.edition,
            "median_offset": round(float(offsets.median()), 6),  # from the centre of the triangle, in its scales
        })  # fmt: skip

    @torch.no_grad()
    def evaluate(self, step: int) -> None:
        """Measure the held-out splits and say the result."""
        for name, split in (("val", self.data.val), ("test", self.data.test)):
            if len(split):
                threads = self.run.options.run.threads or None
                scores = evaluate(self.avatar, self.render, split, split[0].background, threads)
                found = {key: value for key, value in scores.items() if value is not None}
                self.run.log.scalars(step, name, found)
                line = ", ".join(f"{key} {value:.4f}" for key, value in found.items())
                self.run.log.say(f"step {step} ({self.run.elapsed():.1f} s), {name}: {line}")


def write_cameras(run: Run, data: Dataset) -> None:
    """Write `cameras.json` in the layout that viewers of the original read (test, train, val; camera-to-world)."""
    rows = []
    views = [view for split in (data.test, data.train, data.val) for view in split.views]
    for number, view in enumerate(views):
        camera_to_world = torch.linalg.inv(view.camera.world_to_camera.double())
        intrinsics = view.camera.intrinsics
        rows.append({
            "id": number, "img_name": view.name, "width": view.camera.width, "height": view.camera.height,
            "position": camera_to_world[:3, 3].tolist(), "rotation": camera_to_world[:3, :3].tolist(),
            "fx": float(intrinsics[0, 0]), "fy": float(intrinsics[1, 1]),
            "cx": float(intrinsics[0, 2]), "cy": float(intrinsics[1, 2]),
        })  # fmt: skip
    write_json(run.folder / "cameras.json", rows)

"""Samplers from a profile's settings."""

import pytest
import torch

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.synthesis.editor import Editor, EditSettings, read_edit_settings
from anomaly_detector_ros.synthesis.gaussian import GaussianDenoiser
from anomaly_detector_ros.synthesis.guidance import GUIDANCES
from anomaly_detector_ros.synthesis.guidance.noisy import Forward, Mismatched
from anomaly_detector_ros.synthesis.guidance.reverse import Reverse
from anomaly_detector_ros.synthesis.samplers import SAMPLERS
from anomaly_detector_ros.synthesis.samplers.algorithm1 import Algorithm1
from anomaly_detector_ros.synthesis.samplers.few_step import FewStep
from anomaly_detector_ros.synthesis.schedule import Schedule
from anomaly_detector_ros.synthesis.similarity import SIMILARITIES
from anomaly_detector_ros.synthesis.similarity.changed_fraction import ChangedFractionSimilarity
from anomaly_detector_ros.synthesis.similarity.norms import GaussianSimilarity, L1Similarity

JACOBIANS = ("identity", "exact")
DENOISER = GaussianDenoiser(Schedule.named("cosine", 20), 0.3, 0.4)
X_INPUT = torch.linspace(-0.9, 0.9, 2 * 3 * 4 * 4).reshape(2, 3, 4, 4)


def run(sampler) -> torch.Tensor:
    noise = torch.randn(X_INPUT.shape, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    return sampler(DENOISER, X_INPUT, initial_noise=noise, generator=generator)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"name": "few_step"}, EditSettings(FewStep())),
        (
            {"name": "few_step", "noise_level": 0.85, "steps": 3, "data_std": 0.3, "clip": False}
            | {"guidance_scale": 40, "num_edits": 2, "seed": 7},
            EditSettings(
                FewStep(Reverse(), GaussianSimilarity(40.0), 0.85, 3, 0.3, clip=False), 2, 7
            ),
        ),
        (
            {"name": "few_step", "guidance": "forward", "similarity": "l1"}
            | {"guidance_scale": "4e1"},
            EditSettings(FewStep(Forward(), L1Similarity(40.0))),
        ),
        (
            {"name": "algorithm1", "guidance_scale": 40.0},
            EditSettings(Algorithm1(Reverse("identity"), GaussianSimilarity(40.0))),
        ),
        (
            {"name": "algorithm1", "guidance_scale": 40.0, "jacobian": "exact"},
            EditSettings(Algorithm1(Reverse("exact"), GaussianSimilarity(40.0))),
        ),
        (
            {"name": "algorithm1", "guidance": "mismatched", "guidance_scale": 40.0},
            EditSettings(Algorithm1(Mismatched(), GaussianSimilarity(40.0))),
        ),
        (
            {"name": "algorithm1", "guidance": "forward", "guidance_scale": 40.0}
            | {"similarity": "changed_fraction", "width": [1.0, 0.5], "steepness": [1, 20]},
            EditSettings(
                Algorithm1(Forward(), ChangedFractionSimilarity(40.0, (1.0, 0.5), (1.0, 20.0)))
            ),
        ),
    ],
)
def test_settings_arrive(settings, expected):
    assert read_edit_settings(settings) == expected


def test_every_combination_edits():
    edits = {
        (name, guidance, jacobian, similarity): run(
            read_edit_settings(
                {
                    "name": name,
                    "guidance": guidance,
                    "jacobian": jacobian,
                    "similarity": similarity,
                    "guidance_scale": 5.0,
                }
            ).sampler
        )
        for name in SAMPLERS.names()
        for guidance in GUIDANCES.names()
        for jacobian in JACOBIANS
        for similarity in SIMILARITIES.names()
    }
    assert all(torch.isfinite(x).all() for x in edits.values())
    # All differ but those where reverse matching's Jacobian is not asked for.
    distinct = {tuple(x.flatten().tolist()) for x in edits.values()}
    kinds = [len(each.names()) for each in (SAMPLERS, SIMILARITIES, GUIDANCES)]
    assert len(distinct) == kinds[0] * kinds[1] * (kinds[2] + 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": None}, "unknown sampler 'None': choose one of algorithm1, ddim, few_step"),
        ({"name": "magic"}, "unknown sampler 'magic'"),
        ({"name": ["few_step"]}, "unknown sampler"),
        ({"guidance": "upward"}, "unknown guidance 'upward'.*: choose one of forward, mismatched"),
        ({"jacobian": None}, "jacobian is None: it must be 'identity' or 'exact'"),
        ({"similarity": "l3"}, "unknown similarity 'l3'.*: choose one of changed_fraction, gaussi"),
        ({"step": 4}, "sampler few_step has no setting 'step' .*'steps'.*: known are clip, data_"),
        ({"width": [1, 2]}, "sampler few_step has no setting 'width'"),
        ({"name": "algorithm1", "steps": 4}, "sampler algorithm1 has no setting 'steps'"),
        ({3: 4}, "no setting '3'"),
        ({"sampler": "few_step"}, "no setting 'sampler'"),
        ({"guidance_scale": -1}, "guidance_scale is -1: it must be greater than or equal to 0"),
        ({"guidance_scale": "inf"}, "guidance_scale is 'inf': it must be a finite number"),
        ({"guidance_scale": True}, "guidance_scale is True: give a number"),
        ({"noise_level": 0}, "noise_level is 0: it must be greater than 0"),
        ({"noise_level": 1.5}, "noise_level is 1.5: it must be less than or equal to 1"),
        ({"steps": 0}, "steps is 0: it must be greater than or equal to 1"),
        ({"steps": 2.5}, "steps is 2.5: it must be a valid integer"),
        ({"steps": [3]}, r"steps is \[3\]"),
        ({"data_std": 0}, "data_std is 0: it must be greater than 0"),
        ({"data_std": "wide"}, "data_std is 'wide': it must be a valid number"),
        ({"similarity": "changed_fraction", "width": 2}, "width is 2: it must be a valid tuple"),
        ({"similarity": "changed_fraction", "width": [2, 0]}, "width.1 is 0: it must be greater"),
        ({"similarity": "changed_fraction", "steepness": "12"}, "steepness is '12'"),
        ({"num_edits": 0}, "num_edits is 0: it must be greater than or equal to 1"),
        ({"seed": "one"}, "seed is 'one': it must be a valid integer"),
    ],
)
def test_bad_settings_are_refused_in_one_line(settings, message):
    with pytest.raises(UserError, match=message) as caught:
        read_edit_settings({"name": "few_step", **settings})
    assert "\n" not in str(caught.value)


def test_the_name_is_needed():
    with pytest.raises(UserError, match="unknown sampler 'None'"):
        read_edit_settings({})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_edits_that_are_not_finite_never_leave(value):
    def denoiser(x, t):
        return torch.full_like(x, value)

    denoiser.schedule = DENOISER.schedule
    editor = Editor(EditSettings(FewStep(steps=2)), (4, 4), torch.device("cpu"))
    with pytest.raises(RuntimeError, match="not finite"):
        editor.edit(denoiser, X_INPUT)

"""Samplers from a profile's settings."""

from functools import partial

import pytest
import torch

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.synthesis.editing import (
    GUIDANCES,
    JACOBIANS,
    SAMPLERS,
    SIMILARITIES,
    make_sampler,
)
from anomaly_detector_ros.synthesis.editor import Editor
from anomaly_detector_ros.synthesis.gaussian import GaussianDenoiser
from anomaly_detector_ros.synthesis.guidance import forward_matching, mismatched, reverse_matching
from anomaly_detector_ros.synthesis.samplers import algorithm1, few_step
from anomaly_detector_ros.synthesis.schedule import Schedule
from anomaly_detector_ros.synthesis.similarity import (
    ChangedFractionSimilarity,
    GaussianSimilarity,
    L1Similarity,
)

DENOISER = GaussianDenoiser(Schedule.named("cosine", 20), 0.3, 0.4)
X_INPUT = torch.linspace(-0.9, 0.9, 2 * 3 * 4 * 4).reshape(2, 3, 4, 4)


def run(sampler) -> torch.Tensor:
    noise = torch.randn(X_INPUT.shape, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    return sampler(DENOISER, X_INPUT, initial_noise=noise, generator=generator)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"name": "few_step"}, partial(few_step, similarity=GaussianSimilarity(0.0))),
        (
            {"name": "few_step", "noise_level": 0.85, "steps": 3, "data_std": 0.3}
            | {"guidance_scale": 40, "num_edits": 2, "seed": 7},
            partial(
                few_step,
                similarity=GaussianSimilarity(40.0),
                noise_level=0.85,
                steps=3,
                data_std=0.3,
            ),
        ),
        (
            {
                "name": "few_step",
                "guidance": "forward",
                "similarity": "l1",
                "guidance_scale": "4e1",
            },
            partial(few_step, similarity=L1Similarity(40.0), guidance="forward"),
        ),
        (
            {"name": "algorithm1", "guidance_scale": 40.0},
            partial(
                algorithm1,
                similarity=GaussianSimilarity(40.0),
                guidance=partial(reverse_matching, jacobian="identity"),
            ),
        ),
        (
            {"name": "algorithm1", "guidance_scale": 40.0, "jacobian": "exact"},
            partial(algorithm1, similarity=GaussianSimilarity(40.0), guidance=reverse_matching),
        ),
        (
            {"name": "algorithm1", "guidance": "mismatched", "guidance_scale": 40.0},
            partial(algorithm1, similarity=GaussianSimilarity(40.0), guidance=mismatched),
        ),
        (
            {"name": "algorithm1", "guidance": "forward", "guidance_scale": 40.0}
            | {"similarity": "changed_fraction", "width": [1.0, 0.5], "steepness": [1, 20]},
            partial(
                algorithm1,
                similarity=ChangedFractionSimilarity(40.0, (1.0, 0.5), (1.0, 20.0)),
                guidance=forward_matching,
            ),
        ),
    ],
)
def test_settings_arrive(settings, expected):
    assert torch.equal(run(make_sampler(settings)), run(expected))


def test_every_combination_edits():
    edits = {
        (name, guidance, jacobian, similarity): run(
            make_sampler(
                {
                    "name": name,
                    "guidance": guidance,
                    "jacobian": jacobian,
                    "similarity": similarity,
                    "guidance_scale": 5.0,
                }
            )
        )
        for name in SAMPLERS
        for guidance in GUIDANCES
        for jacobian in JACOBIANS
        for similarity in SIMILARITIES
    }
    assert all(torch.isfinite(x).all() for x in edits.values())
    # All differ but those where reverse matching's Jacobian is not asked for.
    distinct = {tuple(x.flatten().tolist()) for x in edits.values()}
    assert len(distinct) == len(SAMPLERS) * len(SIMILARITIES) * (len(GUIDANCES) + 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": None}, "unknown sampler 'None': choose one of few_step, algorithm1"),
        ({"name": "magic"}, "unknown sampler 'magic'"),
        ({"name": ["few_step"]}, "unknown sampler"),
        ({"guidance": "upward"}, "unknown guidance 'upward': choose one of reverse, mismatched"),
        ({"jacobian": None}, "unknown jacobian 'None': choose one of identity, exact"),
        ({"similarity": "l3"}, "unknown similarity 'l3': choose one of gaussian, l1, changed"),
        ({"step": 4}, "sampler few_step has no setting 'step' .*: known are data_std, guidance"),
        ({"width": [1, 2]}, "no setting 'width' with similarity gaussian"),
        ({"name": "algorithm1", "steps": 4}, "sampler algorithm1 has no setting 'steps'"),
        ({3: 4}, "no setting '3'"),
        ({"guidance_scale": -1}, "'guidance_scale' is -1: give a number of at least 0"),
        ({"guidance_scale": "inf"}, "'guidance_scale' is 'inf'"),
        ({"guidance_scale": True}, "'guidance_scale' is True"),
        ({"noise_level": 0}, "'noise_level' is 0: give a number above 0, at most 1"),
        ({"noise_level": 1.5}, "'noise_level' is 1.5"),
        ({"steps": 0}, "'steps' is 0: give a whole number of at least 1"),
        ({"steps": 2.5}, "'steps' is 2.5"),
        ({"steps": [3]}, r"'steps' is \[3\]"),
        ({"data_std": 0}, "'data_std' is 0: give a positive number"),
        ({"data_std": "wide"}, "'data_std' is 'wide'"),
        ({"similarity": "changed_fraction", "width": 2}, "'width' is 2: give two positive numbers"),
        ({"similarity": "changed_fraction", "width": [2, 0]}, r"'width' is \[2, 0\]"),
        ({"similarity": "changed_fraction", "steepness": "12"}, "'steepness' is '12'"),
    ],
)
def test_bad_settings_are_refused_in_one_line(settings, message):
    with pytest.raises(UserError, match=message) as caught:
        make_sampler({"name": "few_step", **settings})
    assert "\n" not in str(caught.value)


def test_the_name_is_needed():
    with pytest.raises(UserError, match="unknown sampler 'None'"):
        make_sampler({})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_edits_that_are_not_finite_never_leave(value):
    def denoiser(x, t):
        return torch.full_like(x, value)

    denoiser.schedule = DENOISER.schedule
    editor = Editor({"name": "few_step", "steps": 2}, (4, 4), torch.device("cpu"))
    with pytest.raises(RuntimeError, match="not finite"):
        editor.edit(denoiser, X_INPUT)

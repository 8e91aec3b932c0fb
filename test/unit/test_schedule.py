import pytest
import torch
from diffusers import DDPMScheduler

from anomaly_detector_ros.synthesis.schedule import BETA_SCHEDULES, Schedule, make_betas


@pytest.mark.parametrize("name", BETA_SCHEDULES)
def test_signal_falls_from_almost_all_to_almost_none(name):
    schedule = Schedule.named(name, 1000)
    abar = schedule.alphas_cumprod
    assert (abar[1:] < abar[:-1]).all()
    assert abar[0] > 0.999
    assert abar[-1] < 1e-4


def test_cosine_matches_diffusers():
    expected = DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2").betas.double()
    torch.testing.assert_close(make_betas("cosine", 1000), expected, atol=1e-6, rtol=1e-4)


def test_posterior_matches_diffusers_step():
    schedule = Schedule.named("cosine", 1000)
    scheduler = schedule.to_diffusers()
    scheduler.config.clip_sample = False
    generator = torch.Generator().manual_seed(0)
    x, output = torch.randn((2, 1, 3, 4, 4), generator=generator).unbind()
    for t in (1, 10, 500, 999):
        mean, variance = schedule.posterior(schedule.predict_x0(x, output, t), x, t)
        torch.manual_seed(1)
        step = scheduler.step(output, t, x).prev_sample
        torch.manual_seed(1)
        noise = torch.randn(x.shape)
        torch.testing.assert_close(mean + variance**0.5 * noise, step, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon", "sample"])
def test_perfect_prediction_gives_back_the_clean_image(prediction_type):
    schedule = Schedule.named("sigmoid", 100, prediction_type)
    x0, noise = torch.randn((2, 2, 3, 8, 8), generator=torch.Generator().manual_seed(0)).unbind()
    t = torch.tensor([10, 60])
    x = schedule.add_noise(x0, noise, t)
    output = schedule.training_target(x0, noise, t)
    torch.testing.assert_close(schedule.predict_x0(x, output, t), x0, atol=1e-4, rtol=1e-4)


def test_round_trip_through_diffusers():
    schedule = Schedule.named("sigmoid", 50, "epsilon")
    again = Schedule.from_diffusers(schedule.to_diffusers())
    torch.testing.assert_close(again.alphas_cumprod, schedule.alphas_cumprod, atol=1e-6, rtol=1e-5)
    assert again.prediction_type == "epsilon"


def test_timestep_at_runs_over_the_whole_schedule():
    schedule = Schedule.named("linear", 1000)
    assert schedule.timestep_at(0) == 0
    assert schedule.timestep_at(1) == 999
    middle = schedule.timestep_at(0.5)
    assert schedule.noise_level(middle) == pytest.approx(0.5**0.5, abs=0.01)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        schedule.timestep_at(1.5)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="unknown beta schedule 'quadratic'"):
        make_betas("quadratic", 10)
    with pytest.raises(ValueError, match="unknown prediction type"):
        Schedule.named("linear", 10, "score")

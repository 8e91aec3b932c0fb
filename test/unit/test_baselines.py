"""Baselines: their scores against other computations, and wrong use."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture
from support.baseline_fits import SETTINGS, blobs, fitted, make, scores
from torch import Tensor

from anomaly_detector_ros.baselines.base import BASELINES as REGISTRY
from anomaly_detector_ros.baselines.base import FittedBaseline
from anomaly_detector_ros.baselines.flow import Flow
from anomaly_detector_ros.baselines.gmm import VARIANCE_FLOOR, Whitening
from anomaly_detector_ros.baselines.residual_flow import residual_log_det
from anomaly_detector_ros.errors import UserError

BASELINES = REGISTRY.names()


@pytest.fixture(scope="module")
def all_fitted() -> dict[str, FittedBaseline]:
    vectors = blobs(2000, 16)
    return {name: fitted(name, vectors) for name in BASELINES}


# --- scores ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("covariance_type", ["full", "diag"])
def test_gmm_equals_scikit_learn(covariance_type: str) -> None:
    train, test = blobs(1500, 6), blobs(200, 6, seed=1)
    settings = {"components": 3, "covariance_type": covariance_type, "pca_dims": None}
    baseline = make("gmm", **settings).fit(train, seed=5)
    # The same EM, in one run of scikit-learn and on components whitened by NumPy.
    mean = train.numpy().mean(0)
    variances, directions = np.linalg.eigh(np.cov(train.numpy().T, bias=True).astype(np.float64))
    project = directions / np.sqrt(variances)
    reference = GaussianMixture(
        3, covariance_type=covariance_type, reg_covar=VARIANCE_FLOOR, tol=1e-2, random_state=5
    ).fit((train.numpy() - mean) @ project)
    log_prob = reference.score_samples((test.numpy() - mean) @ project)
    log_prob += np.log(np.abs(np.linalg.det(project)))
    np.testing.assert_allclose(scores(baseline, test), -log_prob, rtol=1e-3, atol=1e-2)


def test_gmm_equals_the_formula_with_a_gaussian_for_the_rest() -> None:
    train, test = blobs(1500, 6), blobs(50, 6, seed=1).double().numpy()
    baseline = fitted("gmm", train, components=3, pca_dims=4)
    state = {name: value.double().numpy() for name, value in baseline.state.items()}
    whitened = (test - state["mean"]) @ state["projection"]
    density = np.zeros(len(test))
    for weight, mean, factor in zip(state["weights"], state["means"], state["scales"], strict=True):
        covariance = factor @ factor.T
        delta = whitened[:, :4] - mean
        distance = np.einsum("ni,ij,nj->n", delta, np.linalg.inv(covariance), delta)
        normaliser = np.sqrt((2 * np.pi) ** 4 * np.linalg.det(covariance))
        density += weight * np.exp(-distance / 2) / normaliser
    density *= np.exp(-(whitened[:, 4:] ** 2).sum(1) / 2) / (2 * np.pi)
    density *= np.abs(np.linalg.det(state["projection"]))
    np.testing.assert_allclose(scores(baseline, as_float(test)), -np.log(density), rtol=1e-4)


def as_float(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(np.float32))


def test_gmm_without_whitening_is_scikit_learns_own() -> None:
    train, test = blobs(1500, 6), blobs(50, 6, seed=1)
    settings = {"components": 3, "whiten": False, "max_iterations": 50}
    baseline = make("gmm", **settings).fit(train, seed=5)
    reference = GaussianMixture(3, max_iter=50, random_state=5).fit(train.double().numpy())
    expected = -reference.score_samples(test.double().numpy())
    np.testing.assert_allclose(scores(baseline, test), expected, rtol=1e-3, atol=1e-2)


def test_a_residual_flows_determinant_is_that_of_its_jacobian() -> None:
    import normflows

    torch.manual_seed(0)
    net = normflows.nets.LipschitzMLP([3, 8, 3], max_lipschitz_iter=50, init_zeros=False).eval()
    points = torch.randn(5, 3)
    jacobians = [torch.autograd.functional.jacobian(lambda v: v + net(v), x) for x in points]
    # The mean of e^T J e over all signs is the trace itself.
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=3)))
    found = residual_log_det(net, points, signs)
    torch.testing.assert_close(found, torch.linalg.slogdet(torch.stack(jacobians))[1])


def test_a_residual_flow_of_empty_networks_is_its_mixture() -> None:
    vectors = blobs(600, 6)
    flow = fitted("residual_flow", vectors)
    for name, value in flow.state.items():
        if ".nnet." in name and name.endswith((".weight", ".bias")):
            value.zero_()
    empty = FittedBaseline(flow.method, flow.state, 6)
    mixture = make("gmm", components=4, whiten=False, max_iterations=50).fit(vectors, seed=3)
    test = blobs(50, 6, seed=1)
    np.testing.assert_allclose(scores(empty, test), scores(mixture, test), rtol=1e-5)


@pytest.mark.parametrize(("metric", "k"), [("cosine", 1), ("cosine", 3), ("l2", 1), ("l2", 3)])
def test_nearest_equals_brute_force(metric: str, k: int) -> None:
    bank, queries = blobs(700, 12), blobs(40, 12, seed=1)
    baseline = fitted("nearest", bank, metric=metric, k=k)
    a, b = queries.double().numpy(), bank.double().numpy()
    if metric == "cosine":
        norms = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)
        distances = 1 - a @ b.T / norms
    else:
        distances = np.linalg.norm(a[:, None] - b, axis=2)
    expected = np.sort(distances, axis=1)[:, :k].mean(1)
    np.testing.assert_allclose(scores(baseline, queries), expected, rtol=1e-3, atol=1e-5)


def test_nearest_of_a_known_vector_is_zero() -> None:
    bank = blobs(300, 12)
    for metric, tolerance in (("cosine", 1e-6), ("l2", 1e-2)):
        found = scores(fitted("nearest", bank, metric=metric), bank[:20])
        assert (found >= 0).all()
        assert found.max() <= tolerance


def banana(count: int, seed: int) -> tuple[Tensor, float]:
    """x ~ N(0, 1), y = x^2 + N(0, 0.3^2), and the entropy in nats: no Gaussian has its shape."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=count)
    y = x**2 + 0.3 * rng.normal(size=count)
    return as_float(np.stack([x, y], 1)), float(np.log(2 * np.pi * np.e * 0.3))


def test_flow_learns_a_density_that_its_base_cannot_hold() -> None:
    train, entropy = banana(4000, seed=0)
    test, _ = banana(4000, seed=1)
    base = fitted("gmm", train, components=1, pca_dims=None)
    flow = Flow(components=1, transforms=3, epochs=15, learning_rate=1e-2).fit(train, seed=0)
    assert scores(base, test).mean() > entropy + 0.5
    # A density other than the true one costs more than the entropy, up to the test's own error.
    assert entropy - 0.06 < scores(flow, test).mean() < entropy + 0.12


def test_flow_integrates_to_one() -> None:
    train, _ = banana(2000, seed=0)
    flow = fitted("flow", train, components=2, epochs=5)
    step = 0.05
    x, y = torch.meshgrid(torch.arange(-6, 6, step), torch.arange(-4, 16, step), indexing="ij")
    density = np.exp(-scores(flow, torch.stack([x.flatten(), y.flatten()], 1)).astype(np.float64))
    assert density.sum() * step**2 == pytest.approx(1, abs=0.02)


def test_flow_log_determinant_is_that_of_its_jacobian_and_it_inverts() -> None:
    flow = fitted("flow", blobs(600, 5), pca_dims=None, epochs=10, learning_rate=1e-2)
    assert isinstance(flow.method, Flow)
    lazy = flow.method._make_transform(5, seed=0)
    learned = {k[10:]: v for k, v in flow.state.items() if k.startswith("transform.")}
    lazy.load_state_dict(learned)
    lazy.requires_grad_(False)
    transform, z = lazy(), torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    image, log_det = transform.call_and_ladj(z)
    assert (image - z).abs().max() > 0.01, "the flow is still the identity"
    torch.testing.assert_close(transform.inv(image), z, atol=1e-4, rtol=1e-4)
    jacobians = torch.stack([torch.autograd.functional.jacobian(transform, row) for row in z])
    torch.testing.assert_close(torch.linalg.slogdet(jacobians)[1], log_det, atol=1e-4, rtol=1e-4)


def test_flow_begins_at_the_mixture() -> None:
    vectors = blobs(800, 6)
    mixture = fitted("gmm", vectors, pca_dims=4)
    flow = fitted("flow", vectors, pca_dims=4, epochs=1, learning_rate=1e-12)
    np.testing.assert_allclose(scores(flow, vectors), scores(mixture, vectors), atol=1e-3)


@pytest.mark.parametrize("name", BASELINES)
def test_what_is_out_of_distribution_scores_higher(name: str, all_fitted: dict) -> None:
    nominal = scores(all_fitted[name], blobs(500, 16, seed=1))
    strange = scores(all_fitted[name], 5 * blobs(500, 16, seed=2).roll(1, dims=1))
    assert np.median(strange) > np.quantile(nominal, 0.99)


@pytest.mark.parametrize("name", ["gmm", "flow"])
def test_leaving_the_nominal_subspace_is_noticed(name: str) -> None:
    nominal = blobs(1000, 12)
    nominal[:, 8:] *= 0.01
    baseline = fitted(name, nominal, pca_dims=4)
    left = nominal.clone()
    left[:, 11] += 1
    assert scores(baseline, left).min() > scores(baseline, nominal).max()


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("scale", [1e4, 1e15])
def test_scores_stay_finite_and_high_far_away(name: str, scale: float, all_fitted: dict) -> None:
    nominal = blobs(50, 16)
    far = scores(all_fitted[name], scale * torch.randn(50, 16))
    assert np.isfinite(far).all()
    if (name, scale) != ("nearest", 1e15):  # directions know no distance
        assert np.median(far) > scores(all_fitted[name], nominal).max()


@pytest.mark.parametrize("name", BASELINES)
def test_score_of_maps(name: str, all_fitted: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    maps = blobs(2 * 5 * 7, 16, seed=4).reshape(2, 5, 7, 16).permute(0, 3, 1, 2)
    found = all_fitted[name].score(maps)
    assert found.shape == (2, 5, 7)
    assert found.dtype == torch.float32
    pixel = scores(all_fitted[name], maps[1, :, 3, 2][None])
    assert float(found[1, 3, 2]) == pytest.approx(float(pixel[0]), rel=1e-4, abs=1e-5)
    monkeypatch.setattr("anomaly_detector_ros.baselines.base._BATCH_FLOATS", 16 * 3)
    torch.testing.assert_close(all_fitted[name].score(maps), found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["gmm", "flow"])
@pytest.mark.parametrize("channels", [3, 40])
def test_degenerate_features_can_be_fitted(name: str, channels: int) -> None:
    grey = torch.linspace(-1, 1, 8).repeat(6)[:, None].repeat(1, channels)
    grey[:, 2] = 0.5
    baseline = fitted(name, grey, pca_dims=8)
    coloured = grey.clone()
    coloured[:, 0] += 0.5
    assert np.isfinite(scores(baseline, grey)).all()
    assert scores(baseline, coloured).min() > scores(baseline, grey).max()


@pytest.mark.parametrize("name", BASELINES)
def test_same_seed_same_scores(name: str, all_fitted: dict) -> None:
    state = torch.get_rng_state()
    again = fitted(name, blobs(2000, 16))
    assert torch.equal(torch.get_rng_state(), state)
    test = blobs(50, 16, seed=1)
    np.testing.assert_array_equal(scores(again, test), scores(all_fitted[name], test))


@pytest.mark.parametrize("name", BASELINES)
def test_progress_reaches_its_total(name: str) -> None:
    calls: list[tuple[int, int, str]] = []
    make(name, **SETTINGS[name]).fit(
        blobs(600, 8), 0, lambda done, total, what: calls.append((done, total, what))
    )
    assert calls[-1][0] == calls[-1][1] > 0
    assert all(0 <= done <= total and what for done, total, what in calls)


def test_whitening_gives_unit_variance_by_falling_variance() -> None:
    vectors = blobs(2000, 6)
    whitened, _ = Whitening.fit(vectors, None)(vectors)
    torch.testing.assert_close(torch.cov(whitened.T, correction=0), torch.eye(6), atol=1e-3, rtol=0)
    leading, _ = Whitening.fit(vectors, 2)(vectors)
    torch.testing.assert_close(leading, whitened[:, :2], atol=1e-5, rtol=1e-5)
    variances = torch.linalg.eigvalsh(torch.cov(vectors.T)).flip(0)
    projection = Whitening.fit(vectors, None).projection
    torch.testing.assert_close(projection.norm(dim=0) ** -2, variances, rtol=1e-2, atol=0)


# --- wrong use ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("pca", {}, "unknown baseline 'pca': choose one of flow, gmm, nearest"),
        ("gmm", {"clusters": 3}, "clusters.*components, covariance_type, pca_dims"),
        (
            "gmm",
            {"components": 0},
            "baseline gmm: components is 0: it must be greater than or equal to 1",
        ),
        ("gmm", {"components": "many"}, "components is 'many'"),
        ("gmm", {"covariance_type": "tied"}, "'full' or 'diag'"),
        ("gmm", {"pca_dims": 2.5}, "pca_dims.* is 2.5"),
        ("gmm", {"pca_dims": 0}, "pca_dims.* is 0"),
        ("nearest", {"metric": "l1"}, "'cosine' or 'l2'"),
        ("nearest", {"k": -1}, "k is -1"),
        ("flow", {"epochs": 0}, "epochs is 0"),
        ("flow", {"pca_dims": 1}, "pca_dims.* is 1"),
        ("flow", {"learning_rate": 0}, "learning_rate is 0"),
    ],
)
def test_bad_settings_are_named(name: str, settings: dict, told: str) -> None:
    with pytest.raises(UserError, match=told):
        make(name, **settings)


@pytest.mark.parametrize("name", BASELINES)
def test_bad_features_are_refused(name: str, all_fitted: dict) -> None:
    with pytest.raises(UserError, match=r"\(B, 16, h, w\)"):
        all_fitted[name].score(torch.zeros(1, 15, 4, 4))
    fresh = make(name, **SETTINGS[name])
    with pytest.raises(UserError, match="not finite"):
        fresh.fit(torch.full((100, 16), torch.nan))
    with pytest.raises(UserError, match=r"\(N, C\)"):
        fresh.fit(torch.zeros(100))


@pytest.mark.parametrize("name", BASELINES)
def test_too_few_vectors_are_refused(name: str) -> None:
    settings = {"k": 5} if name == "nearest" else {"components": 5}
    with pytest.raises(UserError, match="4 feature vectors"):
        make(name, **settings).fit(torch.zeros(4, 8))

"""Every operator found in the folder keeps the contract; no list."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from offmap.core.errors import ConfigError, SignalError
from offmap.represent.operators import contract
from offmap.represent.operators.contract import Operator
from offmap.represent.operators.parse import operators, parse

SIZE = (24, 28)
FURTHER = (
    "ct:views=7,arc=120",
    "fan:views=9,distance=1.1",
    "mri:coils=3,acceleration=2",
    "inpaint:grid=5,keep=0.2",
    "deblur:kernel=5,deviation=1",
)
TEXTS = (*operators(), *FURTHER)


@pytest.fixture(params=TEXTS)
def operator(request: pytest.FixtureRequest) -> Operator:
    return parse(request.param)


def drawn(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def dense(operator: Operator, size: tuple[int, int] = SIZE) -> Tensor:
    """A as a matrix, column by column."""
    unit = torch.eye(math.prod(size), dtype=torch.float64).reshape(-1, 1, *size)
    return operator.forward(unit).flatten(1).T


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_the_adjoint_is_exact(operator: Operator, dtype: torch.dtype, limit: float) -> None:
    x, y = drawn((2, 3, *SIZE), 1, dtype), drawn((2, 3, *operator.measured(SIZE)), 2, dtype)
    one = (operator.forward(x).double() * y.double()).sum(dim=tuple(range(1, y.ndim)))
    other = (x.double() * operator.adjoint(y, SIZE).double()).sum(dim=(1, 2, 3))
    scale = operator.lipschitz(SIZE) * x.double().flatten(1).norm(dim=1) * y.double().flatten(1).norm(dim=1)
    assert float(((one - other).abs() / scale).max()) <= limit


def test_the_lipschitz_constant_is_the_largest_singular_value(operator: Operator) -> None:
    assert operator.lipschitz(SIZE) == pytest.approx(float(torch.linalg.matrix_norm(dense(operator), 2)), rel=1e-3)


def test_it_is_linear_and_measures_channels_and_images_by_themselves(operator: Operator) -> None:
    x, other = drawn((3, 2, *SIZE), 1), drawn((3, 2, *SIZE), 2)
    both = operator.forward(2 * x - other)
    torch.testing.assert_close(both, 2 * operator.forward(x) - operator.forward(other), rtol=1e-10, atol=1e-12)
    assert both.shape == (3, 2, *operator.measured(SIZE))
    torch.testing.assert_close(both[1:2, 1:], operator.forward((2 * x - other)[1:2, 1:]), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("limit", [contract.DENSE, 0])
def test_the_pull_solves_its_equation(operator: Operator, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By eigenvectors and by conjugate gradients, against a dense solution."""
    monkeypatch.setattr(contract, "DENSE", limit)
    operator = type(operator).from_params({**operator.params(), "noise": 0.2})
    matrix, variance = dense(operator), torch.tensor([0.05, 1.5], dtype=torch.float64)
    y = drawn((2, 1, *operator.measured(SIZE)), 3)
    for i in range(2):
        system = variance[i] * matrix @ matrix.T + 0.2**2 * torch.eye(len(matrix), dtype=torch.float64)
        expected = matrix.T @ torch.linalg.solve(system, y[i].flatten())
        torch.testing.assert_close(operator.pull(y, variance, SIZE)[i].flatten(), expected, rtol=1e-3, atol=1e-4)


def test_reconstruction_recovers_what_was_measured_well(operator: Operator) -> None:
    operator = type(operator).from_params({**operator.params(), "noise": 1e-3})
    y = operator.forward(drawn((1, 1, *SIZE), 4))
    again = operator.forward(operator.reconstruct(y, SIZE, variance=100.0))
    assert float((again - y).norm() / y.norm()) < 0.05


def test_text_and_back(operator: Operator) -> None:
    assert parse(operator.text()) == operator
    assert hash(parse(operator.text())) == hash(operator)


def test_measurements_that_do_not_fit_are_refused(operator: Operator) -> None:
    shape = operator.measured(SIZE)
    y = drawn((4, 1, *shape))
    operator.check(y, SIZE)
    broken = y.clone()
    broken[2].view(-1)[0] = torch.nan
    with pytest.raises(SignalError, match=r"not finite in rows \[2\]"):
        operator.check(broken, SIZE)
    with pytest.raises(SignalError, match=operator.method()):
        operator.check(drawn((4, 1, *shape[:-1], shape[-1] + 1)), SIZE)
    with pytest.raises(ConfigError, match=r"noise = 0\.0 must be above 0"):
        type(operator).from_params({"noise": 0.0})


def test_trap_views_that_do_not_match_are_named_with_the_way_out() -> None:
    with pytest.raises(SignalError, match=r"it has 30 views, the operator 24: is it ct:views=30\?"):
        parse("ct:views=24").check(torch.zeros(1, 1, 30, 34), (24, 24))
    with pytest.raises(SignalError, match=r"it has 40 bins"):
        parse("ct:views=24").check(torch.zeros(1, 1, 24, 40), (24, 24))
    with pytest.raises(SignalError, match=r"is it mri:coils=2\?"):
        parse("mri").check(torch.zeros(1, 1, 2, 2, 24, 6), (24, 24))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cc", r"no operator 'cc'; did you mean 'ct'\?"),
        ("ct:view=24", r"no parameter 'view'; did you mean 'views'\?"),
        ("ct:views", "must be key=value"),
        ("ct:views=3,views=4", "each key once"),
        ("ct:views=many", "wrong type: int expected"),
        ("ct:views=0", "views = 0 must be at least 1"),
        ("ct:arc=400", "arc = 400"),
        ("fan:distance=0.5", "distance = 0.5"),
        ("mri:acceleration=0.5", "acceleration = 0.5"),
        ("inpaint:keep=0", "keep = 0"),
        ("deblur:kernel=4", "kernel = 4"),
        ("super_resolution:factor=0", "factor = 0"),
    ],
)
def test_texts_are_parsed_strictly(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse(text)


@pytest.mark.parametrize("text", ["deblur", "inpaint:grid=30", "super_resolution:factor=5"])
def test_images_that_cannot_be_measured_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="12 x 12"):
        parse(text).measured((12, 12))


def disc(side: int, radius: float, right: float, up: float, finer: int = 8) -> Tensor:
    """A disc with antialiased edges: means over ``finer`` points a side of each pixel."""
    at = (torch.arange(side * finer, dtype=torch.float64) + 0.5) / finer - side / 2
    fine = ((at[None, :] - right).square() + (-at[:, None] - up).square() < radius**2).double()
    return torch.nn.functional.avg_pool2d(fine[None, None], finer)


def under(t: np.ndarray, radius: float) -> np.ndarray:
    """Area of a disc left of t."""
    u = np.clip(t / radius, -1, 1)
    return radius**2 * (u * np.sqrt(1 - u**2) + np.arcsin(u) + np.pi / 2)


def test_parallel_projections_of_a_disc_are_those_in_closed_form() -> None:
    side, radius, right, up = 64, 17.3, 6.0, -9.0
    operator = parse("ct:views=12")
    found = operator.forward(disc(side, radius, right, up))[0, 0].numpy() * side
    edges = np.arange(operator.measured((side, side))[1] + 1) - operator.measured((side, side))[1] / 2
    for view in range(12):
        angle = np.pi * view / 12
        middle = right * np.cos(angle) + up * np.sin(angle)
        expected = np.diff(under(edges - middle, radius))
        wrong = np.abs(found[view] - expected)
        inside = np.abs((edges[1:] + edges[:-1]) / 2 - middle) < radius - 2
        assert wrong[inside].max() < 0.01 * 2 * radius
        assert wrong.max() < 0.04 * 2 * radius
        assert found[view].sum() == pytest.approx(np.pi * radius**2, rel=2e-3)


def test_fan_projections_of_a_disc_are_chords() -> None:
    side, radius, right, up, distance = 64, 15.0, 7.0, 4.0, 1.5
    operator = parse(f"fan:views=10,distance={distance}")
    found = operator.forward(disc(side, radius, right, up))[0, 0].numpy() * side
    bins = operator.measured((side, side))[1]
    at = np.arange(bins) - bins / 2 + 0.5
    for view in range(10):
        angle = 2 * np.pi * view / 10
        source = distance * side * np.array([-np.sin(angle), np.cos(angle)])
        towards = at[:, None] * np.array([np.cos(angle), np.sin(angle)]) - source
        towards /= np.linalg.norm(towards, axis=1, keepdims=True)
        to_centre = np.array([right, up]) - source
        miss = np.abs(towards[:, 0] * to_centre[1] - towards[:, 1] * to_centre[0])
        chord = 2 * np.sqrt(np.clip(radius**2 - miss**2, 0, None))
        inside = np.abs(miss - radius) > 2
        assert np.abs(found[view] - chord)[inside].max() < 0.03 * 2 * radius


def test_parallel_projections_agree_with_scikit_image() -> None:
    transform = pytest.importorskip("skimage.transform", reason="needs scikit-image")
    side = 65
    image = disc(side, 20.0, 4.0, 6.0) - 0.5 * disc(side, 7.0, 8.0, 9.0)
    operator = parse("ct:views=18")
    found = operator.forward(image)[0, 0].numpy() * side
    theirs = transform.radon(image[0, 0].numpy(), theta=np.arange(18) * 10.0, circle=False).T
    assert theirs.shape == found.shape
    between = (theirs + np.roll(theirs, -1, axis=1)) / 2
    assert np.abs(found - between).mean() < 0.005 * theirs.max()
    assert np.abs(found - between).max() < 0.1 * theirs.max()


def test_one_coil_measures_the_fourier_transform_of_the_columns() -> None:
    x = drawn((1, 1, *SIZE), 5)
    operator = parse("mri:acceleration=1")
    spectrum = np.fft.fft2(x[0, 0].numpy(), norm="ortho")
    y = operator.forward(x)[0, 0, 0].numpy()
    np.testing.assert_allclose(y[0] + 1j * y[1], spectrum, atol=1e-12)
    torch.testing.assert_close(operator.adjoint(operator.forward(x), SIZE), x)
    assert parse("mri:acceleration=4").measured((320, 320))[-1] == 80


def test_coils_are_smooth_and_of_unit_sum_of_squares() -> None:
    x = drawn((1, 1, *SIZE), 6)
    operator = parse("mri:acceleration=1,coils=4")
    torch.testing.assert_close(operator.adjoint(operator.forward(x), SIZE), x)


def test_blurring_equals_a_circular_convolution() -> None:
    x, operator = drawn((1, 1, 16, 16), 7), parse("deblur:kernel=5,deviation=1.3")
    line = np.exp(-0.5 * (np.arange(-2, 3) / 1.3) ** 2)
    kernel = np.outer(line, line) / line.sum() ** 2
    expected = np.zeros((16, 16))
    for i in range(5):
        for j in range(5):
            expected += kernel[i, j] * np.roll(x[0, 0].numpy(), (i - 2, j - 2), axis=(0, 1))
    np.testing.assert_allclose(operator.forward(x)[0, 0].numpy(), expected, atol=1e-12)


def test_pixels_that_are_not_seen_do_not_matter() -> None:
    operator = parse("inpaint:grid=4,keep=0.5,seed=3")
    x = drawn((1, 1, 16, 16), 8)
    hidden = operator.adjoint(torch.ones_like(operator.forward(x)), (16, 16)) == 0
    assert 0 < int(hidden.sum()) < 256
    assert int(hidden.sum()) % 16 == 0
    assert torch.equal(operator.forward(torch.where(hidden, 99.0, x)), operator.forward(x))

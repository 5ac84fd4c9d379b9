"""The dense CRF against exact sums over all pairs, a lattice written as loops, and pydensecrf2.

pydensecrf2 is compared where it is there: `uv pip install --no-deps pydensecrf2==1.1` (built from
source: a C++ compiler, Python 3.11 or 3.12).
"""

import numpy as np
import pytest
import torch

from vision_tutorial.core.errors import UserError
from vision_tutorial.core.registry import refiners
from vision_tutorial.segmentation.refine import dense_crf
from vision_tutorial.segmentation.refine.permutohedral import lattice

DEEPLAB = {}  # the defaults
WIDE = {
    "gaussian_xy": 3.0,
    "bilateral_weight": 10.0,
    "bilateral_xy": 80.0,
    "bilateral_rgb": 13.0,
}
NARROW = {"gaussian_xy": 2.0, "bilateral_xy": 5.0, "bilateral_rgb": 40.0}


def example(height=40, width=36, classes=4, seed=0):
    """An image of rectangles, and the noisy, coarse opinion of a network about them."""
    rng = np.random.default_rng(seed)
    truth = np.zeros((height, width), int)
    for label in range(1, classes):
        top, left = rng.integers(0, height * 2 // 3 + 1), rng.integers(0, width * 2 // 3 + 1)
        truth[top : top + height // 3, left : left + width // 3] = label
    colours = rng.integers(30, 220, (classes, 3))
    image = (colours[truth] + rng.normal(0, 8, (height, width, 3))).clip(0, 255).astype(np.uint8)
    votes = np.eye(classes)[np.roll(truth, (2, 1), (0, 1))].transpose(2, 0, 1)
    scores = torch.tensor(2 * votes + rng.normal(0, 1, votes.shape))
    return image, scores.softmax(0).float(), truth


def crf(image, probabilities, **options):
    return dense_crf(image, probabilities, **options).numpy()


def agreement(found, wanted):
    return (found.argmax(0) == wanted.argmax(0)).mean()


# Oracles ------------------------------------------------------------------------------------------


def exact(
    image,
    probabilities,
    *,
    iterations=10,
    gaussian_weight=3.0,
    gaussian_xy=1.0,
    bilateral_weight=4.0,
    bilateral_xy=67.0,
    bilateral_rgb=3.0,
):
    """Mean field with the kernels as whole matrices, in float64."""
    classes, height, width = probabilities.shape
    pixels = [(x, y, *image[y, x]) for y in range(height) for x in range(width)]
    place, colour = np.array(pixels, float)[:, :2], np.array(pixels, float)[:, 2:]
    both = np.hstack([place / bilateral_xy, colour / bilateral_rgb])
    coupling = 0
    for weight, points in ((gaussian_weight, place / gaussian_xy), (bilateral_weight, both)):
        squares = (points**2).sum(1)
        kernel = np.exp(points @ points.T - squares / 2 - squares[:, None] / 2)
        degree = kernel.sum(1)
        coupling = coupling + weight * kernel / np.sqrt(np.outer(degree, degree))
    unary = np.log(np.clip(probabilities.double().numpy(), 1e-5, 1)).reshape(classes, -1)

    def softmax(scores):
        powers = np.exp(scores - scores.max(0))
        return powers / powers.sum(0)

    found = softmax(unary)
    for _ in range(iterations):
        found = softmax(unary + found @ coupling)
    return found.reshape(probabilities.shape)


def filtered_by_loops(features, values):
    """Splat, blur, slice on the permutohedral lattice, vertices in a dictionary, in float64.

    The simplex of a point is found in another way than ours: its vertex of remainder k is the
    nearest point of remainder k, and barycentric coordinates solve a linear system.
    """
    d = len(features)
    basis = np.zeros((d + 1, d))
    for j in range(1, d + 1):
        basis[:j, j - 1], basis[j, j - 1] = 1, -j
        basis[:, j - 1] /= np.sqrt(j * (j + 1))
    points = (basis @ features * np.sqrt(2 / 3) * (d + 1)).T

    def nearest(point, remainder):
        shift = np.array([remainder] * (d + 1 - remainder) + [remainder - d - 1] * remainder)
        goal = (point - shift) / (d + 1)
        found = np.rint(goal)
        while found.sum():  # off the plane: move where it costs least
            step = -np.sign(found.sum())
            found[np.argmin(step * (found - goal))] += step
        return tuple((found * (d + 1) + shift).astype(int))

    vertices, shares = [], []
    for point in points:
        simplex = [nearest(point, remainder) for remainder in range(d + 1)]
        system = np.vstack([np.array(simplex).T, np.ones(d + 1)])
        shares.append(np.linalg.lstsq(system, np.append(point, 1), rcond=None)[0])
        vertices.append(simplex)
    held = {}
    for simplex, share, value in zip(vertices, shares, values, strict=True):
        for vertex, part in zip(simplex, share, strict=True):
            held[vertex] = held.get(vertex, 0) + part * value
    for axis in range(d + 1):
        step = np.ones(d + 1, int)
        step[axis] = -d
        held = {
            vertex: value
            + (held.get(tuple(vertex + step), 0) + held.get(tuple(vertex - step), 0)) / 2
            for vertex, value in held.items()
        }
    return np.array(
        [
            sum(part * held[vertex] for vertex, part in zip(simplex, share, strict=True))
            for simplex, share in zip(vertices, shares, strict=True)
        ]
    )


@pytest.mark.parametrize("d", [1, 2, 3, 5])
@pytest.mark.parametrize("spread", [0.3, 3.0, 40.0])
def test_the_lattice_equals_its_definition_in_loops(d, spread):
    rng = np.random.default_rng(d)
    features = rng.normal(0, spread, (d, 60))
    values = rng.random((60, 3))
    wanted = filtered_by_loops(features, values)
    found = lattice(torch.tensor(features).float()).filter(torch.tensor(values).float())
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-4, atol=1e-4)


def test_the_lattice_is_a_gaussian():
    """In the plane: response at distance r beside exp(-r²/2), once the constant is divided out."""
    line = torch.linspace(-4, 4, 33)
    points = torch.cartesian_prod(line, line).T
    middle = torch.zeros(points.shape[1], 1)
    middle[points.square().sum(0) == 0] = 1
    response = lattice(points).filter(middle).squeeze(1)
    wanted = (-points.square().sum(0) / 2).exp()
    assert (response / response.sum() - wanted / wanted.sum()).abs().sum() < 0.25
    variance = (response * points.square()).sum(1) / response.sum()
    torch.testing.assert_close(variance, torch.ones(2), rtol=0.2, atol=0)


# The lattice approximates, and mean field may then end on the other side of a tie: the share of
# pixels that get the same class, and the mean distance of the probabilities, for each setting.
@pytest.mark.parametrize(
    ("options", "least", "most"),
    [(DEEPLAB, 0.98, 0.01), (WIDE, 0.995, 0.001), (NARROW, 0.985, 0.006)],
    ids=["deeplab", "wide", "narrow"],
)
@pytest.mark.parametrize("seed", range(3))
def test_mean_field_is_near_the_exact_one(options, least, most, seed):
    image, probabilities, _ = example(seed=seed)
    found, wanted = crf(image, probabilities, **options), exact(image, probabilities, **options)
    assert agreement(found, wanted) >= least
    assert abs(found - wanted).mean() <= most
    assert agreement(probabilities.numpy(), wanted) < 0.8  # there was much to do


@pytest.mark.parametrize("options", [DEEPLAB, WIDE, NARROW], ids=["deeplab", "wide", "narrow"])
@pytest.mark.parametrize("size", [(40, 36), (97, 64), (1, 30)], ids=str)
def test_pydensecrf2_gives_the_same(options, size):
    densecrf = pytest.importorskip("pydensecrf.densecrf")
    image, probabilities, _ = example(*size)
    settings = {"gaussian_xy": 1.0, "bilateral_weight": 4.0, "bilateral_xy": 67.0}
    settings |= {"bilateral_rgb": 3.0} | options
    model = densecrf.DenseCRF2D(size[1], size[0], len(probabilities))
    unary = -probabilities.clamp(min=1e-5).log().flatten(1).numpy()
    model.setUnaryEnergy(np.ascontiguousarray(unary))
    model.addPairwiseGaussian(sxy=settings["gaussian_xy"], compat=3.0)
    model.addPairwiseBilateral(
        sxy=settings["bilateral_xy"],
        srgb=settings["bilateral_rgb"],
        rgbim=image,
        compat=settings["bilateral_weight"],
    )
    wanted = np.array(model.inference(10)).reshape(probabilities.shape)
    found = crf(image, probabilities, **options)
    assert agreement(found, wanted) == 1
    np.testing.assert_allclose(found, wanted, atol=1e-3)


# What must hold whatever the numbers --------------------------------------------------------------


def test_it_finds_the_edges():
    image, probabilities, truth = example()
    wanted = np.eye(4)[truth].transpose(2, 0, 1)
    assert agreement(probabilities.numpy(), wanted) < 0.75
    assert agreement(crf(image, probabilities, **WIDE), wanted) > 0.99


@pytest.mark.parametrize(
    "nothing", [{"iterations": 0}, {"gaussian_weight": 0, "bilateral_weight": 0}]
)
def test_without_weights_or_steps_it_is_the_softmax_of_the_unary(nothing):
    image, probabilities, _ = example()
    probabilities[:, 0, 0] = torch.tensor([1.0, 0, 0, 0])
    wanted = probabilities.clamp(min=1e-5)
    torch.testing.assert_close(
        dense_crf(image, probabilities, **nothing), wanted / wanted.sum(0), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("alone", [{"gaussian_weight": 0.0}, {"bilateral_weight": 0.0}])
def test_each_kernel_alone_is_near_the_exact_one(alone):
    image, probabilities, _ = example()
    found, wanted = crf(image, probabilities, **alone), exact(image, probabilities, **alone)
    assert agreement(found, wanted) > 0.97


def test_permuting_classes_commutes():
    image, probabilities, _ = example()
    order = torch.tensor([2, 0, 3, 1])
    found = dense_crf(image, probabilities)[order]
    torch.testing.assert_close(dense_crf(image, probabilities[order]), found, rtol=0, atol=1e-5)


def test_probabilities_stay_probabilities_and_equal_calls_give_equal_bits():
    image, probabilities, _ = example()
    before = probabilities.clone()
    found = dense_crf(image, probabilities)
    assert found.dtype == torch.float32 and found.shape == probabilities.shape
    assert (found >= 0).all()
    torch.testing.assert_close(found.sum(0), torch.ones(40, 36))
    assert torch.equal(found, dense_crf(image, probabilities))
    assert torch.equal(probabilities, before)


def test_where_nothing_tells_classes_apart_nothing_changes():
    image = np.full((20, 30, 3), 128, np.uint8)
    even = torch.full((4, 20, 30), 0.25)
    torch.testing.assert_close(dense_crf(image, even), even)
    leaning = torch.tensor([0.4, 0.3, 0.2, 0.1]).view(4, 1, 1).expand(4, 20, 30)
    assert (dense_crf(image, leaning).argmax(0) == 0).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 2)])
def test_tiny_images(size):
    image, probabilities, _ = example(*size)
    assert agreement(crf(image, probabilities), exact(image, probabilities)) == 1


def test_halves_arrays_and_graphs_are_taken():
    image, probabilities, _ = example()
    wanted = dense_crf(image, probabilities.half().float())
    assert torch.equal(dense_crf(image, probabilities.half()), wanted)
    assert torch.equal(dense_crf(image, probabilities.numpy()), dense_crf(image, probabilities))
    assert not dense_crf(image, probabilities.clone().requires_grad_()).requires_grad
    image.flags.writeable = False
    assert dense_crf(image, probabilities).isfinite().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_the_same():
    image, probabilities, _ = example()
    found = dense_crf(image, probabilities.cuda())
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), dense_crf(image, probabilities), rtol=0, atol=1e-3)


def test_it_is_on_the_shelf():
    image, probabilities, _ = example()
    refine = refiners.build("dense_crf", iterations=2)
    assert torch.equal(refine(image, probabilities), dense_crf(image, probabilities, iterations=2))


# Errors -------------------------------------------------------------------------------------------

PICTURE, PROBABILITIES = np.zeros((4, 5, 3), np.uint8), torch.full((2, 4, 5), 0.5)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (PICTURE.astype(np.float32), "float32, (4, 5, 3); it needs the uint8 RGB pixels"),
        (torch.zeros(4, 5, 3), "torch.float32"),
        (None, "NoneType"),
        (PICTURE.transpose(2, 0, 1), "the probabilities are for (4, 5)"),
        (PICTURE[:3], "(3, 5, 3)"),
        (PICTURE[..., 0], "(4, 5) and the probabilities"),
    ],
)
def test_other_images_are_refused(image, said):
    with pytest.raises(UserError) as error:
        dense_crf(image, PROBABILITIES)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("probabilities", "said"),
    [
        (PROBABILITIES[0], "shape (4, 5)"),
        (PROBABILITIES[None], "shape (1, 2, 4, 5)"),
        (PROBABILITIES.long(), "torch.int64"),
        (PROBABILITIES[:0], "shape (0, 4, 5)"),
        (PROBABILITIES * 5, "Take the softmax"),
        (-PROBABILITIES, "from -0.5"),
        (PROBABILITIES * np.nan, "from nan"),
    ],
)
def test_what_is_no_probabilities_is_refused(probabilities, said):
    with pytest.raises(UserError) as error:
        dense_crf(PICTURE, probabilities)
    assert said in str(error.value)


@pytest.mark.parametrize(
    "options",
    [
        {"iterations": -1},
        {"gaussian_weight": -1.0},
        {"bilateral_weight": float("nan")},
        {"gaussian_xy": 0.0},
        {"bilateral_rgb": -3.0},
        {"bilateral_xy": float("inf")},
    ],
)
def test_impossible_options_are_refused(options):
    ((option, value),) = options.items()
    with pytest.raises(UserError, match=f"{option} is {value}; a number"):
        dense_crf(PICTURE, PROBABILITIES, **options)


@pytest.mark.parametrize(
    "options", [{"gaussian_xy": 1e-6}, {"bilateral_rgb": 1e-3}, {"bilateral_rgb": 1e-320}]
)
def test_bandwidths_too_small_for_the_lattice_are_refused(options):
    image, probabilities, _ = example()
    with pytest.raises(UserError, match="standard deviations"):
        dense_crf(image, probabilities, **options)

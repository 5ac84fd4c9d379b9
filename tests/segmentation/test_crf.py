"""The dense CRF against exact sums over all pairs, and its lattice against one written as loops.

benchmarks/crf.py compares it with pydensecrf2.
"""

import numpy as np
import pytest
import torch

from vision_tutorial.core.errors import UserError
from vision_tutorial.segmentation.dense_crf import dense_crf, lattice

WIDE = {"gaussian_xy": 3.0, "bilateral_weight": 10.0, "bilateral_xy": 80.0, "bilateral_rgb": 13.0}
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


def agreement(found, wanted):
    return (found.argmax(0) == wanted.argmax(0)).mean()


def exact(image, probabilities, **options):
    """Mean field with the kernels as whole matrices, in float64."""
    o = {"gaussian_weight": 3, "gaussian_xy": 1, "bilateral_weight": 4, "bilateral_xy": 67}
    o |= {"bilateral_rgb": 3, "iterations": 10, **options}
    classes, height, width = probabilities.shape
    pixels = [(x, y, *image[y, x]) for y in range(height) for x in range(width)]
    place, colour = np.array(pixels, float)[:, :2], np.array(pixels, float)[:, 2:]
    both = np.hstack([place / o["bilateral_xy"], colour / o["bilateral_rgb"]])
    near = place / o["gaussian_xy"]
    coupling = 0
    for weight, points in ((o["gaussian_weight"], near), (o["bilateral_weight"], both)):
        squares = (points**2).sum(1)
        kernel = np.exp(points @ points.T - squares / 2 - squares[:, None] / 2)
        degree = kernel.sum(1)
        coupling = coupling + weight * kernel / np.sqrt(np.outer(degree, degree))
    unary = np.log(np.clip(probabilities.double().numpy(), 1e-5, 1)).reshape(classes, -1)

    def softmax(scores):
        powers = np.exp(scores - scores.max(0))
        return powers / powers.sum(0)

    found = softmax(unary)
    for _ in range(o["iterations"]):
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
        at = held.get
        held = {v: h + (at((*(v + step),), 0) + at((*(v - step),), 0)) / 2 for v, h in held.items()}
    pairs = zip(vertices, shares, strict=True)
    return np.array([sum(s * held[v] for v, s in zip(*pair, strict=True)) for pair in pairs])


@pytest.mark.parametrize("d", [1, 2, 5])
@pytest.mark.parametrize("spread", [0.3, 40.0])
def test_the_lattice_equals_its_definition_in_loops(d, spread):
    rng = np.random.default_rng(d)
    features = rng.normal(0, spread, (d, 60))
    values = rng.random((60, 3))
    wanted = filtered_by_loops(features, values)
    found = lattice(torch.tensor(features).float()).filter(torch.tensor(values).float())
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-4, atol=1e-4)


# The lattice approximates, and mean field may then end on the other side of a tie: the share of
# pixels that get the same class, and the mean distance of the probabilities, for each setting.
@pytest.mark.parametrize(
    ("options", "least", "most"),
    [
        ({}, 0.98, 0.01),  # DeepLab's
        (WIDE, 0.995, 0.001),
        (NARROW, 0.985, 0.006),
        ({"gaussian_weight": 0.0}, 0.97, 0.02),
        ({"bilateral_weight": 0.0}, 0.97, 0.02),
    ],
)
def test_mean_field_is_near_the_exact_one(options, least, most):
    image, probabilities, _ = example()
    found = dense_crf(image, probabilities, **options).numpy()
    wanted = exact(image, probabilities, **options)
    assert agreement(found, wanted) >= least
    assert abs(found - wanted).mean() <= most
    if len(options) != 1:
        assert agreement(probabilities.numpy(), wanted) < 0.8  # there was much to do


def test_without_steps_it_is_the_softmax_of_the_unary_in_whatever_form():
    image, probabilities, _ = example()
    probabilities[:, 0, 0] = torch.tensor([1.0, 0, 0, 0])
    before, wanted = probabilities.clone(), probabilities.clamp(min=1e-5)
    found = dense_crf(image, probabilities, iterations=0)
    torch.testing.assert_close(found, wanted / wanted.sum(0), rtol=1e-5, atol=1e-7)
    found = dense_crf(image, probabilities)
    assert torch.equal(dense_crf(image, probabilities.numpy()), found)  # equal calls, equal bits
    assert torch.equal(probabilities, before)
    half = probabilities.half().requires_grad_()
    assert torch.equal(dense_crf(image, half), dense_crf(image, half.detach().float()))
    image, probabilities, _ = example(1, 7)
    found = dense_crf(image, probabilities)
    assert agreement(found.numpy(), exact(image, probabilities)) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_the_same():
    image, probabilities, _ = example()
    found = dense_crf(image, probabilities.cuda())
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), dense_crf(image, probabilities), rtol=0, atol=1e-3)


IMAGE, PROBABILITIES = np.zeros((4, 5, 3), np.uint8), torch.full((2, 4, 5), 0.5)


@pytest.mark.parametrize(
    ("image", "probabilities", "options", "words"),
    [
        (IMAGE.astype(np.float32), PROBABILITIES, {}, "it needs uint8 RGB pixels"),
        (IMAGE.transpose(2, 0, 1), PROBABILITIES, {}, "RGB pixels (4, 5, 3)"),
        (IMAGE, PROBABILITIES[0], {}, "torch.float32 (4, 5); give"),
        (IMAGE, PROBABILITIES * 5, {}, "take the softmax"),
        (IMAGE, PROBABILITIES * np.nan, {}, "given nan"),
        (IMAGE, PROBABILITIES, {"gaussian_xy": 0.0}, "gaussian_xy is 0.0; a number in (0, inf)"),
        (*example()[:2], {"gaussian_xy": 1e-6}, "standard deviations"),
    ],
)
def test_what_does_not_fit_is_refused(image, probabilities, options, words):
    with pytest.raises(UserError) as error:
        dense_crf(image, probabilities, **options)
    assert words in str(error.value) and "\n" not in str(error.value)

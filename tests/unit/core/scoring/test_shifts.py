"""Control sets: pure, named by their generator, and really changed."""

from __future__ import annotations

import pytest
import torch

from vitrael.core.errors import DataError
from vitrael.core.rng import torch_stream
from vitrael.core.scoring import shifts


def images(edges: int = 2) -> torch.Tensor:
    return 0.2 + 0.6 * torch.rand(4, 1, *[12] * edges, generator=torch_stream(1, "images"))


def applied(x: torch.Tensor, *, seed: int = 3) -> dict[str, torch.Tensor]:
    def rng(name: str) -> torch.Generator:
        return torch_stream(seed, name)

    return {
        "rotated": shifts.rotate_right_angle(x),
        "flipped": shifts.flip_axis(x, axis=0),
        "squeezed": shifts.squeeze_contrast(x),
        "smooth": shifts.smooth(x),
        "noise": shifts.add_noise(x, rng("noise")),
        "chunk": shifts.remove_chunk(x, rng("chunk")),
        "lesion": shifts.add_lesion(x, rng("lesion"))[0],
    }


@pytest.mark.parametrize("edges", [2, 3])
def test_shifts_change_every_image_and_leave_what_was_given(edges: int) -> None:
    x = images(edges)
    before = x.clone()
    for name, out in applied(x).items():
        assert out.shape == x.shape, name
        assert ((out - x).abs().flatten(1).amax(1) > 0.01).all(), name
        assert 0 <= out.min() <= out.max() <= 1, name
    torch.testing.assert_close(x, before, rtol=0, atol=0)


def test_equal_generators_give_equal_sets() -> None:
    first, second, other = (applied(images(), seed=seed) for seed in (3, 3, 4))
    for name, out in first.items():
        torch.testing.assert_close(out, second[name], rtol=0, atol=0)
    for name in ("noise", "chunk", "lesion"):
        assert (first[name] != other[name]).any()


def test_four_rotations_and_two_flips_are_none() -> None:
    x = turned = images(3)
    for _ in range(4):
        turned = shifts.rotate_right_angle(turned)
    torch.testing.assert_close(turned, x)
    torch.testing.assert_close(shifts.flip_axis(shifts.flip_axis(x, axis=2), axis=2), x)


def test_image_without_two_equal_axes_is_not_rotated() -> None:
    with pytest.raises(DataError, match="no two equal axes"):
        shifts.rotate_right_angle(images()[..., :10])


@pytest.mark.parametrize(("shape", "plane"), [((5, 6, 5), (-3, -1)), ((5, 5, 6), (-3, -2))])
def test_volume_is_turned_in_the_plane_of_its_equal_axes(
    shape: tuple[int, int, int], plane: tuple[int, int]
) -> None:
    x = torch.rand((2, 1, *shape), generator=torch_stream(4, "volume"))
    assert torch.equal(shifts.rotate_right_angle(x), torch.rot90(x, 1, dims=plane))


def test_chunk_is_a_box_of_zeros_in_the_middle() -> None:
    out = shifts.remove_chunk(images(), torch_stream(5, "chunk"), share=0.25)
    assert ((out == 0).flatten(1).sum(1) == 9).all()
    assert (out[..., 0] != 0).all()


def test_lesions_are_bright_and_dark_in_turn_and_nowhere_but_in_the_mask() -> None:
    x = images()
    out, mask = shifts.add_lesion(x, torch_stream(6, "lesion"), radius=0.2)
    change = (out - x)[:, 0]
    assert mask.flatten(1).any(1).all()
    torch.testing.assert_close(change[~mask], torch.zeros_like(change[~mask]))
    assert (change[0][mask[0]] < 0).all()
    assert (change[1][mask[1]] > 0).all()


def test_squeezed_and_smooth_images_have_less_contrast() -> None:
    x = images()
    for out in (shifts.squeeze_contrast(x), shifts.smooth(x)):
        assert (out.flatten(1).std(1) < 0.9 * x.flatten(1).std(1)).all()
    torch.testing.assert_close(shifts.smooth(torch.full((1, 1, 8, 8), 0.3)).std(), torch.zeros(()))

import torch

from disue.privacy.sketch import BLOCK, sketch


def test_inner_products_are_kept_up_to_chance() -> None:
    rng = torch.Generator().manual_seed(3)
    vectors = torch.nn.functional.normalize(
        torch.randn(12, 640, generator=rng) + torch.randn(640, generator=rng), dim=1
    )
    sketches = torch.cat([sketch(vector.view(10, 64), 128, seed=5) for vector in vectors])
    assert sketches.shape == (12, 128)
    errors = (sketches @ sketches.T - vectors @ vectors.T).flatten()
    assert float(errors.square().mean().sqrt()) < 2 * 128**-0.5
    assert float(errors.abs().max()) < 5 * 128**-0.5


def test_it_is_linear_and_the_run_seed_alone_decides_it() -> None:
    x, y = torch.randn(2, BLOCK + 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sketch(x, 8, 1) + 2.0 * sketch(y, 8, 1), sketch(x + 2.0 * y, 8, 1), rtol=0.0, atol=0.02)
    assert torch.equal(sketch(x, 8, 1), sketch(x, 8, 1))
    assert not torch.equal(sketch(x, 8, 1), sketch(x, 8, 2))

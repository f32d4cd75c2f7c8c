"""The optimizer of the demo's training."""

import pytest
import torch

from hubbot.demo.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(24, 64), (64, 24), (32, 32)])
def test_a_matrix_is_made_about_orthogonal_and_keeps_its_singular_vectors(shape):
    left, _, right = torch.linalg.svd(
        torch.randn(shape, generator=torch.Generator().manual_seed(0)), full_matrices=False
    )
    matrix = left * torch.linspace(0.2, 1.0, left.shape[1]) @ right
    found = left.T @ orthogonal(matrix) @ right.T
    values = found.diagonal()
    assert 0.6 < values.min() < values.max() < 1.3
    torch.testing.assert_close(found, torch.diag(values), atol=1e-4, rtol=0)


def test_a_step_agrees_with_torchs_own_up_to_the_rounding_of_bfloat16():
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(32, 48, generator=generator)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    pair = (
        (ours, Muon([ours], lr=0.01)),
        (theirs, torch.optim.Muon([theirs], lr=0.01, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")),
    )
    for _ in range(3):
        gradient = torch.randn(32, 48, generator=generator)
        for weight, optimizer in pair:
            weight.grad = gradient.clone()
            optimizer.step()
    moved = (theirs - start).norm()
    assert (ours - theirs).norm() < 0.02 * moved

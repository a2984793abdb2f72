from __future__ import annotations

from unetcli.training.learning import step_seed


def test_every_step_of_every_seed_draws_its_own() -> None:
    drawn = {step_seed(seed, number) for seed in range(100) for number in range(100)}
    assert len(drawn) > 9_990  # 32 bits: a pair may meet by chance
    assert step_seed(3, 7) == step_seed(3, 7)

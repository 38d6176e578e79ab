"""The learning rate over the steps of a run."""

import math

from gspn_dit.config import TrainingConfig


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Rate of step 0, 1, ...: linear warm-up, then constant or half a cosine that ends with the run."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    weight = (1 + math.cos(math.pi * min(1.0, progress))) / 2
    return config.min_learning_rate + weight * (config.learning_rate - config.min_learning_rate)


def rate_change(before: TrainingConfig, now: TrainingConfig, step: int) -> str | None:
    """What another train.steps does to the rate of a run that continues after `step` steps; None for nothing."""
    if now.schedule == "constant" or before.steps == now.steps or step >= now.steps:
        return None
    last, following = learning_rate(max(step - 1, 0), before), learning_rate(step, now)
    if following == learning_rate(step, before):  # in the warm-up
        return None
    return (
        f"train.steps is {now.steps}, was {before.steps}: the cosine of the learning rate now ends at step "
        f"{now.steps}; the rate goes from {last:.3g} at step {step} to {following:.3g} at step {step + 1}, then to "
        f"{now.min_learning_rate:.3g} by the end"
    )

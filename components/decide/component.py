"""KFP doorway of the decision step."""

from kfp import dsl

from components.core.component import component


@component
def decide(
    config: str, run_id: str, window: str, validation: str, drift: str, summary: dsl.Output[dsl.Markdown]
) -> str:
    """Decide what to do with the window, and why: the first rule of the policy that applies.

    Args:
        config: Path of the configuration file, as the pods see it.
        run_id: This run.
        window: Id of the window.
        validation: What validation said: valid or invalid.
        drift: What drift detection said: no-champion, stable, drifted, new-classes or broken.
        summary: The decision, its reasons, and the ladder of training attempts.

    Returns:
        train, skip or quarantine.
    """
    from components.decide import step

    decision = step.run(config, run_id, window)
    with open(summary.path, "w") as file:
        file.write(decision.sentence)
    return decision.word

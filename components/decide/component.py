"""KFP doorway of the decision step."""

from kfp import dsl

from components.core.component import component


@component
def decide(
    config: str, run_id: str, window: str, validation: str, drift: str, summary: dsl.Output[dsl.Markdown]
) -> str:
    """Decide what to do with the window, and why: the first rule of the policy that applies, then the best utility.

    The plan says what each strategy is expected to bring and to cost, and what would have changed its mind.

    Args:
        config: Path of the configuration file, as the pods see it.
        run_id: This run.
        window: Id of the window.
        validation: What validation said: valid or invalid.
        drift: What drift detection said: no-champion, stable, drifted, new-classes or broken.
        summary: The plan: its reasons, what was weighed, the ladder of training attempts, what would change it.

    Returns:
        train, skip or quarantine.
    """
    from components.decide import step

    decision = step.run(config, run_id, window)
    with open(summary.path, "w") as file:
        file.write(decision.markdown)
    return decision.word

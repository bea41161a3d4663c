"""KFP doorway of the decision step."""

from kfp import dsl

from components.core.component import component


@component
def decide(
    config: str,
    run_id: str,
    window: str,
    validation: str,
    drift: str,
    plan: dsl.Output[dsl.Markdown],
    plan_metrics: dsl.Output[dsl.Metrics],
) -> str:
    """Decide what to do with the window, and why: the first rule of the policy that applies, then the best utility.

    The plan says what each strategy is expected to bring and to cost, and what would have changed its mind. Where too
    few images have a label to learn from and there is a reason to, it asks for labels, and lists which images to label
    first in runs/RUN/to_label.csv of the store. The run's parameter `strategy` overrules the policy.

    Args:
        config: Path of the configuration file, as the pods see it.
        run_id: This run.
        window: Id of the window.
        validation: What validation said: valid or invalid.
        drift: What drift detection said: no-champion, stable, drifted, new-classes, undecided or broken.
        plan: Its reasons, what was weighed, the ladder of training attempts, what would change it.
        plan_metrics: Expected gain of accuracy, seconds and price of the first attempt, confidence, labels wanted.

    Returns:
        train, skip or quarantine.
    """
    from components.decide import step

    decision = step.run(config, run_id, window)
    for name, value in decision.figures.items():
        plan_metrics.log_metric(name, value)
    with open(plan.path, "w") as file:
        file.write(decision.markdown)
    return decision.word

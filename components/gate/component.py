"""KFP doorway of the gate."""

from kfp import dsl

from components.core.component import component


@component
def gate(
    config: str,
    run_id: str,
    rung: int,
    evaluation: str,
    gate_checks: dsl.Output[dsl.Markdown],
    gate_metrics: dsl.Output[dsl.Metrics],
) -> str:
    """Say whether the challenger may replace the champion: nothing may have regressed.

    Only what is certain counts: each check shows what was measured, the bound that this surely reaches, and the
    threshold that the bound must reach. What the held-out images cannot tell is held, with how many more would decide.

    Args:
        config: Path of the configuration file, as the pods see it.
        run_id: This run.
        rung: Which attempt of the plan, from 1.
        evaluation: The word of the evaluation that is judged.
        gate_checks: Every check with its figure, its bound and its threshold.
        gate_metrics: The same as numbers, to compare runs by; rows that were gained and lost; the level of the test.

    Returns:
        promote, escalate (a stronger strategy is left to try), reject or hold (more labelled images would decide).
    """
    from components.gate import step

    verdict = step.run(config, run_id, rung)
    for name, value in step.figures(config, run_id, rung, verdict).items():
        gate_metrics.log_metric(name, value)
    with open(gate_checks.path, "w") as file:
        file.write(verdict.markdown)
    return verdict.word

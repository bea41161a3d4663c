"""Decide: gather the evidence of a run, apply the policy, file the plan, and the images to label where it wants labels;
or take the plan that was asked for."""

from __future__ import annotations

from components.core.config import Config, planned
from components.core.contracts import DriftReport
from components.core.errors import ConfigurationError
from components.core.plans import Decision, find_plan, save_plan
from components.core.runs import Run, open_run, perform
from components.decide.evidence import gather_evidence
from components.decide.labelling import file_list
from components.decide.policy import decide
from components.decide.utility import digest_of, policy_of


def run(config_path: str, run_id: str, window: str) -> Decision:
    """Decide what to do with a window.

    Raises:
        ConfigurationError: A plan was asked for that does not exist, is for another window, or for a champion that is
            none any more.
        IntegrityError: See `gather_evidence`.
    """
    record = open_run(config_path, run_id)
    return perform("decide", record, Decision, lambda: _decide(record, window))


def _decide(record: Run, window: str) -> Decision:
    config = record.config
    if digest := planned(record.parameters.strategy):
        return _as_planned(record, window, digest)
    plan = decide(gather_evidence(record, window), policy_of(config))
    if plan.labels_wanted:
        file_list(record, window, plan)  # before the record: where that stands, the list does
    save_plan(record.store, config.model, plan)
    return plan


def _as_planned(record: Run, window: str, name: str) -> Decision:
    """The plan of that digest, if it still is about what is there."""
    plan = find_plan(record.store, record.config.model, name)
    check_plan(plan, window, record.need("detect_drift", DriftReport).champion, record.config)
    return plan


def check_plan(plan: Decision, window: str, champion: str | None, config: Config) -> None:
    """Refuse a plan that was made for something else.

    Raises:
        ConfigurationError: Its window or its champion is not this one, or challengers are trained otherwise by now.
    """
    made_for = (plan.evidence.window if plan.evidence else None, plan.champion)
    if made_for != (window, champion):
        raise ConfigurationError(
            f"plan {plan.digest[:12]} is for window {made_for[0]} and champion {made_for[1]}, "
            f"and these are {window} and {champion}",
            expected="the window and the champion that the plan was made for",
            next_command=f"retrain plan {window}, then retrain run --plan DIGEST",
        )
    if plan.training != digest_of(config.training):
        raise ConfigurationError(
            f"plan {plan.digest[:12]} was made with another section `training` than the configuration has",
            expected="the section that the plan was made with",
            next_command=f"put it back, or make a new plan: retrain plan {window}",
        )

"""What starts runs, and says how they are getting on.

Not covered: the two that do (`pipelines.client` through the Kubeflow API, `pipelines.trigger.local` on this machine).
"""

from __future__ import annotations

from typing import Literal, Protocol

from components.core.contracts import RunArguments

RunState = Literal["running", "succeeded", "failed", "gone"]
"""`running`: not ended, a run that waits for its first pod too. `failed`: a step crashed, or it was terminated or timed
out: engines cannot be relied on to tell these apart. `gone`: there is no such run, somebody deleted it."""


class LauncherUnavailable(Exception):
    """The engine did not answer, or not in time: what was asked may have happened or not."""


class Launcher(Protocol):
    """Starts runs under names that their starter chose, so that one that was started and not recorded is found."""

    def find(self, name: str) -> str | None:
        """The id of the run of that name, the oldest where there are several; None where there is none.

        Raises:
            LauncherUnavailable: No answer.
        """

    def start(self, name: str, arguments: RunArguments) -> str:
        """Start a run. Does not look whether there is one of that name.

        Returns:
            Its id: what its steps are told as `run_id`.

        Raises:
            LauncherUnavailable: No answer: it may have been started.
            ConfigurationError: Refused, and trying again would change nothing.
        """

    def state(self, run_id: str) -> RunState:
        """How a run is getting on.

        Raises:
            LauncherUnavailable: No answer.
        """

"""The software bill of materials of a promotion: every installed package, as CycloneDX JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from importlib.util import find_spec

from components.core.errors import ConfigurationError

SPECIFICATION = "1.6"


@cache  # seconds, and a process does not outlive its environment
def list_packages() -> bytes:
    """List what is installed in this environment. The same environment gives the same bytes: no time, no serial number.

    Raises:
        ConfigurationError: cyclonedx-bom is not installed.

    Source:
        ECMA-424, CycloneDX 1.6.
    """
    if find_spec("cyclonedx_py") is None:
        raise ConfigurationError(
            "the bill of materials needs cyclonedx-bom, which is not installed",
            expected="it in the environment that promotes",
            next_command="pip install 'retrain-pipeline[bundle]'",
        )
    command = [sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible", "--no-validate"]
    told = subprocess.run([*command, "--spec-version", SPECIFICATION], stdout=subprocess.PIPE, check=True).stdout
    bill = json.loads(told)
    for component in bill["components"]:
        references = component.get("externalReferences", [])
        # Where a package was installed from on this machine is nobody's business.
        component["externalReferences"] = [one for one in references if not one["url"].startswith("file:")]
    return json.dumps(bill, indent=1, sort_keys=True).encode()
